"""What repositories take, where somebody has a quota; a count that is missing is made from the pool, all are after gc.

What counts: objects as they were stored, deltas and all, until gc drops them, and Git LFS objects that were uploaded to
the repository. Of a pool with forks each repository counts what its refs and uploads reach, and a fork nothing that
the one reaches which it was forked from, as long as that is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import faultpoints
from shardgit.journal.interface import Compare, Put, end_of
from shardgit.journal.lfs_records import LfsOwned, lfs_owned_key
from shardgit.journal.quota_records import USAGES, Usage, quota_key, split_usage_key, usage_key
from shardgit.journal.records import RepositoryRecord, repository_key
from shardgit.operate.roots import Members
from shardgit.pool.manifest import ALONE
from shardgit.service.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.oid import PoolId
    from shardgit.pool.view import PoolView
    from shardgit.service.store import Store

ROUNDS_MAX = 16


@dataclass(frozen=True, slots=True)
class Used:
    """What a repository takes and may, 0 for no bound; all 0 where nothing is counted."""

    bytes: int = 0
    objects: int = 0
    bytes_max: int = 0
    objects_max: int = 0


NOT_COUNTED = Used()


def owner_of(name: str) -> str:
    """Return whose a repository is."""
    return name.partition("/")[0]


def counted(store: Store, record: RepositoryRecord, members: Members | None = None) -> Usage:
    """Count what a repository takes, from its pool. ``members`` spares a look at all repositories."""
    known = Members() if members is None else members
    with store.journal.snapshot() as snapshot:
        sharers = list(known.of(snapshot, record.pool))
        pool = store.pool(snapshot, record.pool)
        lfs_objects, lfs_bytes = _lfs(snapshot, record)
        parent = next((one for one in sharers if one.id == record.parent), None)
        mine = _Reached(store, snapshot, record)
        above = _Reached(store, snapshot, parent) if parent is not None else None
    view = pool.view
    if len(sharers) < 2:
        objects, size = view.objects, stored_bytes(view)
    else:
        bits = mine.bits() & ~above.bits() if above is not None else mine.bits()
        objects, size = bits.bit_count(), bytes_in(view, bits)
    return Usage(objects, size, lfs_objects, lfs_bytes)


class _Reached:
    """What a repository's refs and uploads reach, walked once its snapshot is closed."""

    def __init__(self, store: Store, snapshot: JournalSnapshot, record: RepositoryRecord) -> None:
        state = store.state_of(snapshot, record)
        self._reach = store.reach_of(snapshot, state)
        self._uploaded = store.uploads.of(snapshot, record, store.view(state.pool))
        self._pool = state.pool  # and its lease

    def bits(self) -> int:
        """Return it as the bits of a number, by position."""
        reached = int.from_bytes(self._reach.bits(), "little")
        return reached | int.from_bytes(self._uploaded.bits(), "little")


def stored_bytes(view: PoolView) -> int:
    """Return the bytes of all blocks that a pool's view names."""
    stored = sum(ref.length for ref in view.manifest.blocks()) + view.recents_bytes
    entries = (segment.entry for segment in view.segments)
    return stored + sum(entry.entry_bytes for entry in entries if entry.flags & ALONE)


def bytes_in(view: PoolView, bits: int) -> int:
    """Return how many bytes the objects in a bitset take: of a segment that is not all in it, its even share."""
    data = bits.to_bytes((view.objects + 7) // 8 + 1, "little")
    size = 0
    for segment in view.segments:
        count, base = segment.entry.objects, segment.base
        piece = int.from_bytes(data[base // 8 : (base + count) // 8 + 1], "little")
        mine = (piece >> base % 8 & (1 << count) - 1).bit_count()
        size += segment.entry.entry_bytes * mine // count if count else 0
    return size


def _lfs(snapshot: JournalSnapshot, record: RepositoryRecord) -> tuple[int, int]:
    low = lfs_owned_key(record.id)
    sizes = [LfsOwned.decode(row.value).size for row in snapshot.range(low, end_of(low))]
    return len(sizes), sum(sizes)


def used(store: Store, name: str) -> Used:
    """Return what a repository takes and may. Errors: RepositoryMissing."""
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
        own = settings_of(record).quota
        row = snapshot.get(usage_key(owner_of(name), record.id))
        is_counted = row is not None or snapshot.get(quota_key(owner_of(name))) is not None
    if not (is_counted or own.bytes or own.objects):
        return NOT_COUNTED
    usage = Usage.decode(row.value) if row is not None else counted(store, record)
    return Used(usage.all_bytes, usage.all_objects, own.bytes, own.objects)


def recount(store: Store, record: RepositoryRecord, members: Members | None = None) -> bool:
    """Count a repository anew where it is counted at all; says whether that changed anything."""
    for _ in range(ROUNDS_MAX):
        with store.journal.snapshot() as snapshot:
            row = snapshot.get(repository_key(record.id))
            if row is None:
                return False
            now = RepositoryRecord.decode(row.value)
            owner, own = owner_of(now.name), settings_of(now).quota
            key = usage_key(owner, now.id)
            before = snapshot.get(key)
            if not (own.bytes or own.objects) and snapshot.get(quota_key(owner)) is None:
                return False
        usage = counted(store, now, members)
        if before is not None and Usage.decode(before.value) == usage:
            return False
        conditions = [
            Compare(row.key, row.revision),
            Compare(key, before.revision if before is not None else 0),
        ]
        # commit point: before it the old count stands, after it the new one; both are counts only.
        faultpoints.reach("quota.before_count")
        if store.try_commit(conditions, [Put(key, usage.encode())]):
            faultpoints.reach("quota.after_count")
            return True
    return False  # whoever changes it all the time counts, too


def recount_named(store: Store, name: str) -> None:
    """Count a repository that was brought back, where it is counted at all."""
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
    recount(store, record)


def recount_all(
    store: Store, pool: PoolId | None = None, *, pace: Callable[[], None] | None = None
) -> int:
    """Count all that is counted anew, or what has to do with a pool; returns how many counts changed."""
    members, changed = Members(), 0
    for key in list(_keys(store)):
        if pace is not None:
            pace()
        with store.journal.snapshot() as snapshot:
            row = snapshot.get(repository_key(split_usage_key(key)[1]))
        record = RepositoryRecord.decode(row.value) if row is not None else None
        if record is not None and pool in (None, record.pool):
            changed += recount(store, record, members)
    return changed


def _keys(store: Store) -> Iterator[bytes]:
    low = USAGES
    while True:
        with store.journal.snapshot() as snapshot:
            keys = [row.key for row in snapshot.range(low, end_of(USAGES), limit=1_000)]
        yield from keys
        if not keys:
            return
        low = keys[-1] + b"\0"
