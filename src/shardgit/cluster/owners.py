"""Turns of a cluster: a row names the session that has it, and its revision is the fencing token.

What an owner commits compares that row, so that one who lost its turn without knowing commits nothing any more: no
clock and no lease is trusted for that.
"""

from __future__ import annotations

from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from shardgit import faultpoints
from shardgit.cluster.records import NOTE_MAX_BYTES, OwnerRecord, owner_key, session_key
from shardgit.errors import Conflict, LimitExceeded, ShardgitError
from shardgit.journal.fences import fenced
from shardgit.journal.interface import Compare, Delete, Put

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.cluster.session import Heard, Session
    from shardgit.journal.interface import Condition, Journal
    from shardgit.turns import Turn


class Owners:
    """See Turns. Errors: Unavailable when etcd does not answer, or has not heard of this process for too long."""

    def __init__(self, journal: Journal, session: Session) -> None:
        self._journal = journal
        self._session = session
        self._live: dict[
            str, tuple[bytes, int]
        ] = {}  # turns that threads have: session, row's revision
        self._taking: set[str] = set()
        self._left: dict[str, int] = {}  # rows that nobody has, and that are there still
        self._lock = Lock()

    def try_take(self, name: str, *, note: bytes = b"") -> Turn | None:
        """See Turns. The turn of a session that has ended is free; etcd decides between two who take it."""
        if len(note) > NOTE_MAX_BYTES:
            raise LimitExceeded("note of a turn is too long", bytes=len(note), limit=NOTE_MAX_BYTES)
        mine = self._session.now()
        with self._lock:
            live = self._live.get(name)
            if name in self._taking or (live is not None and live[0] == mine.id):
                return None
            self._taking.add(name)
            left = next(((one, at) for one, at in self._left.items() if one != name), None)
        try:
            if left is not None:
                self._end(*left)
            return self._take(name, note, mine)
        finally:
            with self._lock:
                self._taking.discard(name)

    def _take(self, name: str, note: bytes, mine: Heard) -> Turn | None:
        key = owner_key(name)
        with self._journal.snapshot() as snapshot:
            row = snapshot.get(key)
            conditions: list[Condition] = [
                Compare(session_key(mine.id), mine.revision),
                Compare(key, row.revision if row is not None else 0),
            ]
            session = OwnerRecord.decode(row.value).session if row is not None else mine.id
            # Our own, and no thread has it: we could not end it, or did not hear that it was ours.
            if session != mine.id:
                if snapshot.get(session_key(session)) is not None:
                    return None
                conditions.append(Compare(session_key(session), 0))
        try:
            # commit point: before it the turn is whose it was, after it ours.
            faultpoints.reach("turn.before_take")
            put = Put(key, OwnerRecord(mine.id, note).encode())
            revision = self._journal.commit_sync(conditions, [put])
        except Conflict:
            return None
        faultpoints.reach("turn.after_take")
        with self._lock:
            self._live[name] = (mine.id, revision)
            self._left.pop(name, None)
        return _Owned(self, name, mine, revision)

    def note_of(self, name: str) -> bytes | None:
        """See Turns."""
        with self._journal.snapshot() as snapshot:
            row = snapshot.get(owner_key(name))
            if row is None or row.revision == self._left.get(name):
                return None
            record = OwnerRecord.decode(row.value)
            return record.note if snapshot.get(session_key(record.session)) is not None else None

    def is_alive(self, session: bytes) -> bool:
        """Say whether this process still has a session."""
        return self._session.is_alive(session)

    def give_back(self, name: str, session: bytes, revision: int) -> None:
        """End a turn of ours."""
        with self._lock:
            if self._live.get(name) == (session, revision):
                del self._live[name]
                self._left[name] = revision
        self._end(name, revision)

    def _end(self, name: str, revision: int) -> None:
        """Take a row out that nobody has any more; what etcd is not told now, it is told with a later turn."""
        key = owner_key(name)
        try:
            self._journal.commit_sync([Compare(key, revision)], [Delete(key)])
        except Conflict:
            pass  # gone, or another's
        except ShardgitError:
            return
        with self._lock:
            if self._left.get(name) == revision:
                del self._left[name]


class _Owned:
    def __init__(self, owners: Owners, name: str, session: Heard, revision: int) -> None:
        self._owners = owners
        self._name = name
        self._session = session
        self._revision = revision
        self._released = False

    @property
    def held(self) -> bool:
        return not self._released and self._owners.is_alive(self._session.id)

    @contextmanager
    def fence(self) -> Iterator[None]:
        # The session as well: gc waits for it, and for nobody whose session is gone.
        session = Compare(session_key(self._session.id), self._session.revision)
        with fenced(Compare(owner_key(self._name), self._revision), session):
            yield

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._owners.give_back(self._name, self._session.id, self._revision)
