"""Quotas: how much a repository, and all of an owner's, may take; what they take is counted by the commits that add.

An owner is the first part of a repository's name. Where neither the repository nor its owner has a quota nothing is
counted, and a commit costs one look at a row that is not there. Else the commit that adds something puts the
repository's count (service/usages.py) with it, by compare-and-set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit import faultpoints
from shardgit.errors import (
    Conflict,
    DataLoss,
    InvalidArgument,
    QuotaExceeded,
    QuotaMissing,
    RepositoryMissing,
)
from shardgit.journal.interface import (
    Compare,
    CompareRange,
    Delete,
    DeleteRange,
    Put,
    end_of,
)
from shardgit.journal.quota_records import (
    QUOTAS,
    QuotaRecord,
    Usage,
    quota_key,
    split_usage_key,
    usage_key,
    usages_prefix,
)
from shardgit.journal.records import (
    NameRecord,
    RepositoryRecord,
    decode_deleted,
    deleted_key,
    name_key,
    repository_key,
)
from shardgit.operate.roots import Members
from shardgit.service.names import check_repository_name
from shardgit.service.settings import settings_of
from shardgit.service.sizes import human_bytes
from shardgit.service.usages import counted, owner_of, recount

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.journal.interface import Condition, JournalSnapshot, Operation
    from shardgit.oid import RepositoryId
    from shardgit.service.store import Store

ROUNDS_MAX = 16
BOUND_MAX = 1 << 62


@dataclass(frozen=True, slots=True)
class OwnerQuota:
    """What an owner may have, 0 for no bound, and what its repositories take."""

    owner: str
    bytes: int
    objects: int
    repositories: int
    used_bytes: int
    used_objects: int
    used_repositories: int
    uncounted: tuple[
        str, ...
    ] = ()  # repositories that could not be counted when it was set: damaged


# ---- commits ----


def grown(
    store: Store, snapshot: JournalSnapshot, record: RepositoryRecord, more: Usage
) -> tuple[list[Condition], list[Operation]]:
    """Return what a commit needs that adds to a repository, as a snapshot shows that one. Errors: QuotaExceeded."""
    owner, own = owner_of(record.name), settings_of(record).quota
    if not more.all_objects and not more.all_bytes:
        return [], []
    quota_row = snapshot.get(quota_key(owner))
    if quota_row is None and not (own.bytes or own.objects):
        return [], []
    key = usage_key(owner, record.id)
    row = snapshot.get(key)
    before = Usage.decode(row.value) if row is not None else counted(store, record)
    after = before.plus(more)
    what = f"repository {record.name}"
    _check(what, "bytes", before.all_bytes, more.all_bytes, own.bytes)
    _check(what, "objects", before.all_objects, more.all_objects, own.objects)
    conditions: list[Condition] = [Compare(key, row.revision if row is not None else 0)]
    if quota_row is not None:
        quota = QuotaRecord.decode(quota_row.value)
        conditions += _owner_steps(snapshot, owner, quota, _others(snapshot, key, before), more)
    return conditions, [Put(key, after.encode())]


def joined(
    store: Store,
    snapshot: JournalSnapshot,
    record: RepositoryRecord,
    usage: Usage | None = None,
) -> tuple[list[Condition], list[Operation]]:
    """Return what a commit needs by which a repository becomes its owner's. Errors: QuotaExceeded.

    ``usage`` is what it takes; None: it is to be counted, if that matters.
    """
    owner, own = owner_of(record.name), settings_of(record).quota
    row = snapshot.get(quota_key(owner))
    if row is None:
        return [], []
    quota = QuotaRecord.decode(row.value)
    conditions: list[Condition] = []
    if quota.repositories_max:
        used = _repositories(snapshot, owner, most=quota.repositories_max)
        _check(f"owner {owner}", "repositories", used, 1, quota.repositories_max)
        # Two that are made at once: one of them looks again. The owner's own name is compared by who makes it.
        low = name_key(owner + "/")
        conditions.append(CompareRange(low, end_of(low), snapshot.revision))
        conditions.append(Compare(quota_key(owner), row.revision))
    found = usage if usage is not None else counted(store, record)
    key = usage_key(owner, record.id)
    others = _others(snapshot, key, Usage())
    conditions += _owner_steps(snapshot, owner, quota, others, found)
    _check(f"repository {record.name}", "bytes", 0, found.all_bytes, own.bytes)
    return conditions, [Put(key, found.encode())]


def left(record: RepositoryRecord) -> Operation:
    """Return what a commit needs by which a repository is no longer its owner's."""
    return Delete(usage_key(owner_of(record.name), record.id))


def gone(
    snapshot: JournalSnapshot, record: RepositoryRecord
) -> tuple[list[Condition], list[Operation]]:
    """Return what a commit needs that deletes a repository: its room is free again.

    But for one with forks of the same owner's: they count nothing that it reaches, so that it goes on counting until gc
    drops it, and they all that they reach from then on.
    """
    owner = owner_of(record.name)
    row = snapshot.get(usage_key(owner, record.id))
    if row is None:
        return [], []
    conditions: list[Condition] = [Compare(row.key, row.revision)]  # who forks it puts it anew
    return conditions, ([] if _has_forks(snapshot, owner, record.id) else [left(record)])


def leaned_on(
    snapshot: JournalSnapshot, origin: RepositoryRecord, owner: str
) -> tuple[list[Condition], list[Operation]]:
    """Return what the commit of a fork needs so that its source is not deleted and its count with it at that moment."""
    row = snapshot.get(usage_key(owner, origin.id))
    return ([Compare(row.key, row.revision)], [Put(row.key, row.value)]) if row else ([], [])


def _has_forks(snapshot: JournalSnapshot, owner: str, repository: RepositoryId) -> bool:
    """Say whether one of an owner's repositories, deleted ones that count among them, is a fork of one."""
    usages, names = usages_prefix(owner), name_key(owner + "/")
    found = {split_usage_key(row.key)[1] for row in snapshot.range(usages, end_of(usages))}
    rows = [snapshot.get(name_key(owner)), *snapshot.range(names, end_of(names))]
    found.update(NameRecord.decode(row.value).id for row in rows if row is not None)
    return any(_parent(snapshot, number) == repository for number in found)


def _parent(snapshot: JournalSnapshot, repository: RepositoryId) -> int:
    row = snapshot.get(repository_key(repository))
    if row is not None:
        return RepositoryRecord.decode(row.value).parent
    deleted = snapshot.get(deleted_key(repository))
    return RepositoryRecord.decode(decode_deleted(deleted.value)[1]).parent if deleted else 0


def moved(
    store: Store, snapshot: JournalSnapshot, before: RepositoryRecord, after: RepositoryRecord
) -> tuple[list[Condition], list[Operation]]:
    """Return what a commit needs that gives a repository another name. Errors: QuotaExceeded."""
    if owner_of(before.name) == owner_of(after.name):
        return [], []
    row = snapshot.get(usage_key(owner_of(before.name), before.id))
    # What a fork counts depends on whose the one is that it was forked from.
    usage = Usage.decode(row.value) if row is not None and not before.parent else None
    conditions, operations = joined(store, snapshot, after, usage)
    if row is not None:
        conditions.append(Compare(row.key, row.revision))
        operations.append(left(before))
    return conditions, operations


def settings_steps(
    snapshot: JournalSnapshot, before: RepositoryRecord, after: RepositoryRecord
) -> list[Operation]:
    """Return what a commit needs that changes a repository's settings: what was not kept counted is counted anew."""
    if settings_of(before).quota == settings_of(after).quota:
        return []
    owner = owner_of(after.name)
    return [] if snapshot.get(quota_key(owner)) is not None else [left(after)]


def _owner_steps(
    snapshot: JournalSnapshot, owner: str, quota: QuotaRecord, used: Usage, more: Usage
) -> list[Condition]:
    _check(f"owner {owner}", "bytes", used.all_bytes, more.all_bytes, quota.bytes_max)
    _check(f"owner {owner}", "objects", used.all_objects, more.all_objects, quota.objects_max)
    after = used.plus(more)
    near = (quota.bytes_max and 2 * after.all_bytes > quota.bytes_max) or (
        quota.objects_max and 2 * after.all_objects > quota.objects_max
    )
    if not near:
        return []
    # Near the bound two commits to two repositories must not both count on the same room: one looks again. Elsewhere
    # an owner's pushes would stand in each other's way for nothing.
    low = usages_prefix(owner)
    return [CompareRange(low, end_of(low), snapshot.revision)]


def _others(snapshot: JournalSnapshot, own: bytes, usage: Usage) -> Usage:
    """Return what all of an owner's repositories take, ``usage`` that of the row ``own``."""
    low = own[:-8]
    total = usage
    for row in snapshot.range(low, end_of(low)):
        if row.key != own:
            total = total.plus(Usage.decode(row.value))
    return total


def _repositories(snapshot: JournalSnapshot, owner: str, *, most: int = 0) -> int:
    """Count an owner's repositories, up to ``most``, where that is no 0."""
    low = name_key(owner + "/")
    rows = snapshot.range(low, end_of(low), limit=most or None)
    return sum(1 for _ in rows) + (snapshot.get(name_key(owner)) is not None)


def _check(what: str, unit: str, used: int, more: int, allowed: int) -> None:
    if allowed and used + more > allowed:
        raise QuotaExceeded(
            f"quota is used up: {unit}",
            of=what,
            used=used,
            more=more,
            allowed=allowed,
        )


def words_of(error: QuotaExceeded) -> str:
    """Return what a user is told who is over a quota."""
    facts = error.facts
    of, used, more, allowed = (facts.get(key) for key in ("of", "used", "more", "allowed"))
    if not (isinstance(used, int) and isinstance(more, int) and isinstance(allowed, int)):
        return error.message
    unit = error.message.rpartition(": ")[2]
    say: Callable[[int], str] = human_bytes if unit == "bytes" else lambda n: f"{n:,} {unit}"
    return (
        f"quota of {of}: {say(used)} of {say(allowed)} used, {say(more)} more does not fit;"
        " delete what is not needed, or ask an administrator"
    )


# ---- owners ----


class Quotas:
    """The quotas of a store's owners. Methods run in the calling thread."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def set(
        self,
        owner: str,
        *,
        bytes_max: int | None = None,
        objects_max: int | None = None,
        repositories_max: int | None = None,
    ) -> OwnerQuota:
        """Set bounds of an owner, 0 for none; those that are None stay. Its repositories are counted anew.

        Errors: InvalidRepositoryName, InvalidArgument, Conflict.
        """
        check_owner(owner, self.store.limits.repository_name_max_bytes)
        for each in (bytes_max, objects_max, repositories_max):
            if each is not None and not 0 <= each <= BOUND_MAX:
                raise InvalidArgument("quota is out of range", value=each, most=BOUND_MAX)
        for _ in range(ROUNDS_MAX):
            with self.store.journal.snapshot() as snapshot:
                row = snapshot.get(quota_key(owner))
            old = QuotaRecord.decode(row.value) if row is not None else QuotaRecord()
            new = QuotaRecord(
                old.bytes_max if bytes_max is None else bytes_max,
                old.objects_max if objects_max is None else objects_max,
                old.repositories_max if repositories_max is None else repositories_max,
            )
            # commit point: before it the old bounds stand; behind it the owner's commits count, and what there was is
            # counted below, or by them.
            faultpoints.reach("quota.before_set")
            if self.store.try_commit(
                [Compare(quota_key(owner), row.revision if row is not None else 0)],
                [Put(quota_key(owner), new.encode())],
            ):
                faultpoints.reach("quota.after_set")
                uncounted = self.recount(owner)
                return replace(self.get(owner), uncounted=uncounted)
        raise Conflict("quota is being changed by many at once", owner=owner)

    def recount(self, owner: str) -> tuple[str, ...]:
        """Count an owner's repositories anew; returns those that are too damaged for it."""
        members, damaged = Members(), list[str]()
        for record in self._records(owner):
            try:
                recount(self.store, record, members)
            except DataLoss:
                damaged.append(record.name)
            except RepositoryMissing:
                continue  # deleted meanwhile
        return tuple(damaged)

    def _records(self, owner: str) -> list[RepositoryRecord]:
        low = name_key(owner + "/")
        with self.store.journal.snapshot() as snapshot:
            rows = [snapshot.get(name_key(owner)), *snapshot.range(low, end_of(low))]
            ids = [NameRecord.decode(row.value).id for row in rows if row is not None]
            found = [snapshot.get(repository_key(number)) for number in ids]
        return [RepositoryRecord.decode(row.value) for row in found if row is not None]

    def get(self, owner: str) -> OwnerQuota:
        """Return an owner's quota. Errors: QuotaMissing."""
        with self.store.journal.snapshot() as snapshot:
            row = snapshot.get(quota_key(owner))
            if row is None:
                raise QuotaMissing("owner has no quota", owner=owner)
            return self._state(snapshot, owner, QuotaRecord.decode(row.value))

    def list(self) -> list[OwnerQuota]:
        """Return all quotas by owner."""
        with self.store.journal.snapshot() as snapshot:
            return [
                self._state(
                    snapshot, row.key[len(QUOTAS) :].decode(), QuotaRecord.decode(row.value)
                )
                for row in snapshot.range(QUOTAS, end_of(QUOTAS))
            ]

    def remove(self, owner: str) -> None:
        """Take an owner's quota away. Errors: QuotaMissing."""
        with self.store.journal.snapshot() as snapshot:
            row = snapshot.get(quota_key(owner))
        if row is None:
            raise QuotaMissing("owner has no quota", owner=owner)
        low = usages_prefix(owner)
        # commit point: before it the quota stands, after it nobody counts; repositories with one of their own are
        # counted anew.
        faultpoints.reach("quota.before_remove")
        done = self.store.try_commit(
            [Compare(row.key, row.revision)], [Delete(row.key), DeleteRange(low, end_of(low))]
        )
        faultpoints.reach("quota.after_remove")
        if not done:
            raise Conflict("quota changed meanwhile; look again", owner=owner)

    def _state(self, snapshot: JournalSnapshot, owner: str, quota: QuotaRecord) -> OwnerQuota:
        total = Usage()
        low = usages_prefix(owner)
        for row in snapshot.range(low, end_of(low)):
            total = total.plus(Usage.decode(row.value))
        return OwnerQuota(
            owner=owner,
            bytes=quota.bytes_max,
            objects=quota.objects_max,
            repositories=quota.repositories_max,
            used_bytes=total.all_bytes,
            used_objects=total.all_objects,
            used_repositories=_repositories(snapshot, owner),
        )


def check_owner(owner: str, most_bytes: int) -> None:
    """Raise InvalidRepositoryName for what is no first part of a name."""
    check_repository_name(owner, max_bytes=most_bytes)
    if "/" in owner:
        raise InvalidArgument("an owner is the first part of a name", owner=owner[:200])
