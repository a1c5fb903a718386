"""A node's copy of the journal's rows in LMDB, which all its processes read.

One of them feeds it (see Feeder). Nothing in it needs to survive: it is made anew from etcd, as a new generation in a
folder of its own, and readers keep the old one until the new one is whole.
"""

from __future__ import annotations

import heapq
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import lmdb

from shardgit import clock, telemetry
from shardgit.errors import DataLoss, JournalCorrupt, ShardgitError, Unavailable
from shardgit.journal.etcd_rows import Reference, decode_value
from shardgit.journal.interface import Row
from shardgit.journal.replica_status import NOTHING, ReplicaStatus
from shardgit.journal.rows import LmdbSnapshot, decode_row, frame_row, typed
from shardgit.lmdbenv import PAGE_BYTES, Environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from shardgit.journal.bundle_cache import BundleCache

OWN = b"\xff"
"""Before all keys of the replica's own rows: no row of the journal starts so."""
_STATE_KEY = OWN + b"state"
_SHOWN = OWN + b"t"
_STATE = struct.Struct("<BxxxxxxxQQQ")
_VERSION = 1
POLL_S = (
    0.0005  # how often a process looks that does not feed the replica itself, while somebody waits
)
OPEN_TRIES = 50
AHEAD_ROWS_MAX = 32  # of half a MiB at most each


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What a replica shows: the journal's revision, up to where etcd was watched, and of which cluster."""

    revision: int
    watched: int
    cluster: int

    def put(self, transaction: lmdb.Transaction) -> None:
        """Write it with the rows that it is about."""
        value = _STATE.pack(_VERSION, self.revision, self.watched, self.cluster)
        transaction.put(_STATE_KEY, frame_row(_STATE_KEY, self.revision, value))
        shown = _shown_key(int(transaction.id()))
        transaction.put(shown, frame_row(shown, self.revision, b""))

    @classmethod
    def get(cls, transaction: lmdb.Transaction) -> ReplicaState:
        """Read it; JournalCorrupt when it is not there or damaged."""
        framed = transaction.get(_STATE_KEY)
        if framed is None:
            raise JournalCorrupt("replica has no state")
        value = decode_row(_STATE_KEY, framed).value
        if len(value) != _STATE.size or value[0] != _VERSION:
            raise JournalCorrupt("state of the replica is off", bytes=len(value))
        return cls(*_STATE.unpack(value)[1:])


def _shown_key(transaction: int) -> bytes:
    return _SHOWN + transaction.to_bytes(8, "big")


def shown_by(transaction: lmdb.Transaction, number: int) -> int:
    """Return the revision that LMDB's transaction ``number`` showed, 0 when that is not known."""
    framed = transaction.get(_shown_key(number))
    return 0 if framed is None else decode_row(_shown_key(number), framed).revision


def forget_shown(transaction: lmdb.Transaction, before: int) -> None:
    """Forget what transactions before ``before`` showed."""
    with transaction.cursor() as cursor:
        found = cursor.set_range(_SHOWN)
        while found and bytes(cursor.key()) < _shown_key(before):
            found = cursor.delete() and bytes(cursor.key()).startswith(_SHOWN)


class ReplicaSnapshot(LmdbSnapshot):
    """Rows as the replica has them, values fetched from their bundles when they are asked for."""

    def __init__(self, transaction: lmdb.Transaction, replica: Replica, generation: int) -> None:
        super().__init__(transaction, replica.path)
        self._replica = replica
        self._generation = generation
        self.revision = ReplicaState.get(transaction).revision

    def get(self, key: bytes) -> Row | None:
        """See JournalSnapshot."""
        if key >= OWN:
            return None
        with self._reported():
            row = super().get(key)
        return None if row is None else self._whole(row)

    def range(self, low: bytes, high: bytes, *, limit: int | None = None) -> Iterator[Row]:
        """See JournalSnapshot."""
        return self._resolved(super().range(low, min(high, OWN), limit=limit))

    def _resolved(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Return rows with their values; those in bundles are looked for ahead, more and more of them at once."""
        ahead: list[tuple[Row, Reference]] = []
        most = 1
        while True:
            with self._reported():
                row = next(rows, None)
            found = None if row is None else decode_value(row.key, row.value)
            if row is not None and isinstance(found, Reference):
                ahead.append((row, found))
                if len(ahead) < most:
                    continue
                most = min(2 * most, AHEAD_ROWS_MAX)
            yield from self._fetched(ahead)
            ahead = []
            if row is None:
                return
            if isinstance(found, bytes):
                yield Row(row.key, found, row.revision)

    def _fetched(self, ahead: list[tuple[Row, Reference]]) -> Iterator[Row]:
        values = self._replica.cache.read_many([(one, row.key) for row, one in ahead])
        for (row, _), value in zip(ahead, values, strict=True):
            self._open()
            yield Row(row.key, value, row.revision)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except JournalCorrupt:
            self._replica.status.report(self._generation)
            raise

    def _whole(self, row: Row) -> Row:
        found = decode_value(row.key, row.value)
        if isinstance(found, Reference):
            found = self._replica.cache.read(found, row.key)
        return Row(row.key, found, row.revision)

    def condemn(self) -> None:
        """Have the replica made anew: it is not what etcd has."""
        self._replica.status.report(self._generation)

    def stored(self, low: bytes, high: bytes) -> Iterator[Row]:
        """Return rows with their values as etcd has them: see etcd_rows."""
        return super().range(low, min(high, OWN))


class _Opened:
    """A generation that this process has open, and how many read it."""

    def __init__(self, generation: int, environment: Environment) -> None:
        self.generation = generation
        self.environment = environment
        self.readers = 0
        self.is_retired = False


class Replica:
    """The reader's side, in every process. Usable from many threads."""

    def __init__(self, folder: Path, cache: BundleCache) -> None:
        self.path = str(folder)
        self.cache = cache
        self.status = ReplicaStatus(folder)
        self.is_fed_here = False  # this process applies what comes from etcd
        self._opened: dict[int, _Opened] = {}
        self._lock = threading.RLock()
        self._waiting: list[tuple[int, int, float, Callable[[bool], None]]] = []
        self._numbers = count()
        self._changed = threading.Condition()
        self._closed = False
        self._waiter = threading.Thread(target=self._wait, name="journal-replica", daemon=True)
        self._waiter.start()

    def environment(self, generation: int, *, create: bool = False) -> Environment:
        """Return a generation's environment, opened once in this process."""
        with self._lock:
            opened = self._opened.get(generation)
            if opened is None:
                if self._closed:
                    raise Unavailable("journal is closed", path=self.path)
                with typed(self.path):
                    environment = Environment(
                        self.status.folder(generation), create=create, durable=False
                    )
                opened = self._opened[generation] = _Opened(generation, environment)
            return opened.environment

    def _take(self) -> _Opened:
        """Return the newest whole generation, and count as its reader."""
        for _ in range(OPEN_TRIES):
            with self._lock:
                if self._closed:
                    raise Unavailable("journal is closed", path=self.path)
                generation = self.status.generation
                if not generation:
                    raise Unavailable("replica is not there yet", path=self.path)
                opened = self._opened.get(generation)
                if opened is None:
                    try:
                        self.environment(generation)
                    except ShardgitError as error:
                        if self.status.generation != generation:
                            continue  # it was replaced and removed meanwhile
                        if isinstance(error, DataLoss):
                            self.status.report(generation)
                        raise
                    opened = self._opened[generation]
                    self._retire(generation)
                opened.readers += 1
                return opened
        raise Unavailable("replica changes too fast", path=self.path)

    def _retire(self, current: int) -> None:
        """Close the generations before ``current`` once nobody here reads them; the feeder's are its own to close."""
        for one in [one for one in self._opened.values() if one.generation < current]:
            one.is_retired = True
            if not one.readers and not self.is_fed_here:
                self.drop(one.generation)

    def drop(self, generation: int) -> bool:
        """Close a generation unless it is read here; says whether it is closed."""
        with self._lock:
            opened = self._opened.get(generation)
            if opened is not None and opened.readers:
                return False
            if opened is not None:
                del self._opened[generation]
                opened.environment.close()
            return True

    def _give(self, opened: _Opened) -> None:
        with self._lock:
            opened.readers -= 1
            if opened.is_retired and not opened.readers and not self.is_fed_here:
                self.drop(opened.generation)

    @contextmanager
    def snapshot(self) -> Iterator[ReplicaSnapshot]:
        """Open a snapshot of what was applied; never waits."""
        opened = self._take()
        try:
            with opened.environment.read() as transaction:
                snapshot = self._look(transaction, opened.generation)
                try:
                    yield snapshot
                finally:
                    snapshot.end()
        finally:
            self._give(opened)

    def _look(self, transaction: lmdb.Transaction, generation: int) -> ReplicaSnapshot:
        try:
            return ReplicaSnapshot(transaction, self, generation)
        except DataLoss:
            self.status.report(generation)
            raise

    def applied(self) -> int:
        """Return the journal's revision that snapshots show from now on."""
        if self._closed:
            raise Unavailable("journal is closed", path=self.path)
        return self.status.applied

    def sizes(self) -> dict[str, int]:
        """Return the live bytes of the newest generation, and those of its file."""
        opened = self._take()
        try:
            live, total = opened.environment.pages_used()
        finally:
            self._give(opened)
        return {"live": live * PAGE_BYTES, "file": total * PAGE_BYTES}

    def oldest(self) -> int:
        """Return the oldest revision that a snapshot of any process of this node shows; the newest without any."""
        opened = self._take()
        try:
            number = opened.environment.oldest_reader()
            with opened.environment.read() as transaction:
                shown = shown_by(transaction, number)
                revision = ReplicaState.get(transaction).revision
        finally:
            self._give(opened)
        oldest = min(shown, revision)
        retired = self.status.retired
        return oldest if retired == NOTHING else min(oldest, retired)

    def when_applied(
        self, revision: int, answer: Callable[[bool], None], *, timeout_s: float
    ) -> None:
        """Call ``answer``, on any thread, with True once a revision is applied here, with False when it takes too long.

        It must be quick and raise nothing.
        """
        if not self._closed and self.status.applied >= revision:
            answer(True)
            return
        with self._changed:
            if not self._closed:
                end = clock.monotonic() + timeout_s
                heapq.heappush(self._waiting, (revision, next(self._numbers), end, answer))
                self._changed.notify_all()
                return
        answer(False)

    def tell(self) -> None:
        """Look whether what somebody here waits for was applied."""
        due: list[tuple[Callable[[bool], None], bool]] = []
        with self._changed:
            if self._closed:
                return
            applied, now = self.status.applied, clock.monotonic()
            while self._waiting and self._waiting[0][0] <= applied:
                due.append((heapq.heappop(self._waiting)[3], True))
            if any(end <= now for _, _, end, _ in self._waiting):
                due.extend((answer, False) for _, _, end, answer in self._waiting if end <= now)
                self._waiting = [one for one in self._waiting if one[2] > now]
                heapq.heapify(self._waiting)
        for answer, came in due:
            try:
                answer(came)
            except Exception as error:  # the others, and those behind them, are to hear theirs
                telemetry.log().error("replica_told_in_vain", exc_info=error)

    def _wait(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                if not self._waiting:
                    self._changed.wait()
                elif self.is_fed_here:
                    first = min(end for _, _, end, _ in self._waiting)
                    self._changed.wait(max(0.0, min(0.05, first - clock.monotonic())))
                else:
                    self._changed.wait(POLL_S)
            self.tell()

    def close(self) -> None:
        """Close all; who still waits hears False. No snapshot may be open."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        for _, _, _, answer in waiting:
            answer(False)
        self._waiter.join()
        with self._lock:
            for opened in self._opened.values():
                with suppress(lmdb.Error):
                    opened.environment.close()
            self._opened.clear()
        self.status.close()
