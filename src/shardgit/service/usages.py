"""What repositories take, where somebody has a quota; a count that is missing is made from the pool, all are after gc.

What counts: objects as they were stored, deltas and all, until gc drops them, and Git LFS objects that were uploaded to
the repository. Of a pool with forks each repository counts what its refs and uploads reach. A fork counts nothing that
the one reaches which it was forked from, as long as that one counts for the same owner: it is there, or it was deleted
and gc has not dropped it. A fork of another owner's repository counts all that it reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import faultpoints
from shardgit.errors import DataLoss, RepositoryMissing
from shardgit.journal.interface import Compare, Delete, Put, end_of
from shardgit.journal.lfs_records import (
    LfsOwned,
    LfsSource,
    decode_sources,
    lfs_owned_key,
    lfs_sources_key,
)
from shardgit.journal.quota_records import (
    QUOTAS,
    USAGES,
    Usage,
    quota_key,
    split_usage_key,
    usage_key,
)
from shardgit.journal.records import RepositoryRecord, deleted_key, repository_key
from shardgit.operate.roots import Members
from shardgit.pool.manifest import ALONE
from shardgit.service.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shardgit.journal.interface import JournalSnapshot, Row
    from shardgit.oid import PoolId, RepositoryId
    from shardgit.pool.view import PoolView
    from shardgit.service.store import Store

ROUNDS_MAX = 16
REPOSITORIES = b"I"
_NOW = 1 << 63  # behind all revisions


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
    owner = owner_of(record.name)
    with store.journal.snapshot() as snapshot:
        sharers = list(known.of(snapshot, record.pool))
        pool = store.pool(snapshot, record.pool)
        lfs = _lfs(snapshot, owner, [LfsSource(record.id, _NOW), *_sources(snapshot, record)])
        parent = next((one for one in sharers if one.id == record.parent), None)
        mine = _Reached(store, snapshot, record)
        above = None
        if parent is not None and charged(snapshot, owner, parent.id):
            above = _Reached(store, snapshot, parent)
    view = pool.view
    if len(sharers) < 2:
        return Usage(view.objects, stored_bytes(view), *lfs)
    bits = mine.bits() & ~above.bits() if above is not None else mine.bits()
    return Usage(bits.bit_count(), bytes_in(view, bits), *lfs)


def inherited(store: Store, origin: RepositoryRecord, owner: str) -> Usage:
    """Count what a fork of a repository begins with that is made for an owner."""
    if owner_of(origin.name) == owner:
        return Usage()
    with store.journal.snapshot() as snapshot:
        state = store.state_of(snapshot, origin)
        reach = store.reach_of(snapshot, state)
        lfs = _lfs(snapshot, owner, [LfsSource(origin.id, _NOW), *_sources(snapshot, origin)])
    bits = int.from_bytes(reach.bits(), "little")
    return Usage(bits.bit_count(), bytes_in(state.pool.view, bits), *lfs)


def charged(snapshot: JournalSnapshot, owner: str, repository: RepositoryId) -> bool:
    """Say whether a repository counts for an owner: one that was deleted does while its row is kept (quotas.gone)."""
    row = snapshot.get(repository_key(repository))
    if row is not None:
        return owner_of(RepositoryRecord.decode(row.value).name) == owner
    gone = snapshot.get(deleted_key(repository))
    return gone is not None and snapshot.get(usage_key(owner, repository)) is not None


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


def _sources(snapshot: JournalSnapshot, record: RepositoryRecord) -> tuple[LfsSource, ...]:
    row = snapshot.get(lfs_sources_key(record.id))
    return decode_sources(row.value) if row is not None else ()


def _lfs(snapshot: JournalSnapshot, owner: str, seen: Sequence[LfsSource]) -> tuple[int, int]:
    """Count the LFS objects of a repository, the first, and of those of its sources that do not count for the owner."""
    sizes: dict[bytes, int] = {}
    for number, source in enumerate(seen):
        if number and charged(snapshot, owner, source.repository):
            continue
        low = lfs_owned_key(source.repository)
        for row in snapshot.range(low, end_of(low)):
            if row.revision <= source.revision:
                sizes[row.key[len(low) :]] = LfsOwned.decode(row.value).size
    return len(sizes), sum(sizes.values())


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


@dataclass(frozen=True, slots=True)
class Recounted:
    """How many counts changed, and by pool why repositories of it were not counted."""

    changed: int
    damaged: dict[str, str]


def recount_all(
    store: Store, pool: PoolId | None = None, *, pace: Callable[[], None] | None = None
) -> Recounted:
    """Count all that has a quota or whose owner has one, or what of it is in a pool, and drop counts of what is gone.

    That nobody counted it yet is no matter: who set a quota may have died before it had counted all.
    """
    members, changed, damaged = Members(), 0, dict[str, str]()
    for record in _bounded(store):
        if pool not in (None, record.pool):
            continue
        if pace is not None:
            pace()
        try:
            changed += recount(store, record, members)
        except RepositoryMissing:
            continue  # the pool went with it
        except DataLoss as error:
            damaged[record.pool.hex()] = str(error)
    for key in _keys(store):
        _drop_gone(store, key)
    return Recounted(changed, damaged)


def _bounded(store: Store) -> Iterator[RepositoryRecord]:
    """Yield the repositories that are to be counted."""
    low = QUOTAS
    with store.journal.snapshot() as snapshot:
        owners = {row.key[len(low) :].decode() for row in snapshot.range(low, end_of(low))}
    for row in _rows(store, REPOSITORIES):
        record = RepositoryRecord.decode(row.value)
        own = settings_of(record).quota
        if own.bytes or own.objects or owner_of(record.name) in owners:
            yield record


def _drop_gone(store: Store, key: bytes) -> None:
    """Drop the count of a repository that is another's, or that gc has dropped."""
    owner, number = split_usage_key(key)
    with store.journal.snapshot() as snapshot:
        row = snapshot.get(key)
        if row is None or charged(snapshot, owner, number):
            return
    # commit point: before it the owner pays for what is gone, after it no longer; forks of it are counted by now.
    faultpoints.reach("quota.before_count")
    store.try_commit([Compare(key, row.revision)], [Delete(key)])
    faultpoints.reach("quota.after_count")


def _keys(store: Store) -> Iterator[bytes]:
    return (row.key for row in _rows(store, USAGES))


def _rows(store: Store, prefix: bytes) -> Iterator[Row]:
    """Yield the rows under a prefix; no snapshot stays open meanwhile."""
    low = prefix
    while True:
        with store.journal.snapshot() as snapshot:
            rows = list(snapshot.range(low, end_of(prefix), limit=1_000))
        yield from rows
        if not rows:
            return
        low = rows[-1].key + b"\0"
