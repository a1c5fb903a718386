"""Git LFS locks: one holder a path, changed by compare-and-set. See docs/formats/lfs.md."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints
from shardgit.errors import (
    Conflict,
    InvalidArgument,
    LockExists,
    LockMissing,
    PermissionRefused,
)
from shardgit.journal.interface import Compare, Delete, Put, end_of
from shardgit.journal.lfs_records import (
    LockRecord,
    decode_lock_name,
    encode_lock_name,
    lock_key,
    lock_path_key,
)
from shardgit.service.lfs import lfs_repository
from shardgit.service.writable import writable

if TYPE_CHECKING:
    from shardgit.journal.interface import JournalSnapshot
    from shardgit.oid import RepositoryId
    from shardgit.service.access import Principal
    from shardgit.service.store import Store

ID_BYTES = 16
OWNER_MAX_BYTES = 1_024
ROUNDS_MAX = 16
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class LockPage:
    """Locks by age, and the cursor of those that follow, "" for none."""

    locks: tuple[LockRecord, ...]
    next: str


class Locks:
    """The locks of a store's repositories. Methods run in the calling thread."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def lock(self, name: str, path: str, principal: Principal) -> LockRecord:
        """Lock a path for a principal. Errors: LockExists (fact ``lock``), InvalidArgument."""
        check_path(path, self.store.limits.lfs_lock_path_max_bytes)
        for _ in range(ROUNDS_MAX):
            now_ms = clock.now_ms()
            with self.store.journal.snapshot() as snapshot:
                record = lfs_repository(self.store, snapshot, name)
                held = writable(snapshot, record)
                other = self._at(snapshot, record.id, path)
            if other is not None:
                raise LockExists("already created lock", lock=other)
            lock = now_ms.to_bytes(8, "big") + os.urandom(8)
            made = LockRecord(lock, path, _cut(principal.name), now_ms)
            # commit point: before it the path is free, after it locked.
            faultpoints.reach("lock.before_lock")
            if self.store.try_commit(
                [held.unchanged, Compare(lock_path_key(record.id, path), 0)],
                [
                    Put(lock_path_key(record.id, path), encode_lock_name(lock)),
                    Put(lock_key(record.id, lock), made.encode()),
                ],
            ):
                faultpoints.reach("lock.after_lock")
                return made
        raise Conflict("path is being locked by many at once", path=path)

    def unlock(
        self, name: str, lock: str, principal: Principal, *, force: bool = False
    ) -> LockRecord:
        """Take a lock away; another's only with ``force``. Errors: LockMissing, PermissionRefused."""
        for _ in range(ROUNDS_MAX):
            with self.store.journal.snapshot() as snapshot:
                record = lfs_repository(self.store, snapshot, name)
                held = writable(snapshot, record)
                row = snapshot.get(lock_key(record.id, _raw(lock)))
            if row is None:
                raise LockMissing("lock does not exist", lock=lock[:64])
            found = LockRecord.decode(_raw(lock), row.value)
            if found.owner != _cut(principal.name) and not force:
                raise PermissionRefused("lock is held by somebody else", owner=found.owner)
            # commit point: before it the path is locked, after it free.
            faultpoints.reach("lock.before_unlock")
            if self.store.try_commit(
                [held.unchanged, Compare(row.key, row.revision)],
                [Delete(row.key), Delete(lock_path_key(record.id, found.path))],
            ):
                faultpoints.reach("lock.after_unlock")
                return found
        raise Conflict("lock is being changed by many at once", lock=lock[:64])

    def list(
        self, name: str, *, path: str = "", lock: str = "", cursor: str = "", limit: int = 0
    ) -> LockPage:
        """Return locks by age, from ``cursor`` on, or only those of a path or id."""
        most = self.store.limits.lfs_locks_page_max
        count = min(limit, most) if limit > 0 else most
        with self.store.journal.snapshot() as snapshot:
            record = lfs_repository(self.store, snapshot, name)
            if path or lock:
                return LockPage(self._matching(snapshot, record.id, path, lock), "")
            low = lock_key(record.id)
            start = lock_key(record.id, _raw(cursor)) if cursor else low
            rows = list(snapshot.range(start, end_of(low), limit=count + 1))
        locks = [LockRecord.decode(row.key[len(low) :], row.value) for row in rows]
        after = locks[count].id.hex() if len(locks) > count else ""
        return LockPage(tuple(locks[:count]), after)

    def _matching(
        self, snapshot: JournalSnapshot, repository: RepositoryId, path: str, lock: str
    ) -> tuple[LockRecord, ...]:
        if path:
            found = self._at(snapshot, repository, path)
            return (found,) if found and lock in ("", found.id.hex()) else ()
        raw = bytes.fromhex(lock) if _ID.fullmatch(lock) else b""
        row = snapshot.get(lock_key(repository, raw)) if raw else None
        return (LockRecord.decode(raw, row.value),) if row else ()

    def _at(
        self, snapshot: JournalSnapshot, repository: RepositoryId, path: str
    ) -> LockRecord | None:
        named = snapshot.get(lock_path_key(repository, path))
        if named is None:
            return None
        lock = decode_lock_name(named.value)
        row = snapshot.get(lock_key(repository, lock))
        return LockRecord.decode(lock, row.value) if row else None


def check_path(path: str, most: int) -> None:
    """Raise InvalidArgument for a path that no work tree has."""
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        raise InvalidArgument("path is not UTF-8") from None
    parts = path.split("/")
    if not path or length > most or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise InvalidArgument("path is not that of a file in a work tree", path=path[:200])


def _raw(lock: str) -> bytes:
    if not _ID.fullmatch(lock):
        raise LockMissing("lock does not exist", lock=lock[:64])
    return bytes.fromhex(lock)


def _cut(owner: str) -> str:
    return owner.encode("utf-8", "replace")[:OWNER_MAX_BYTES].decode("utf-8", "ignore")
