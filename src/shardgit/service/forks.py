"""Forks: a new repository that begins with the refs of another, in one commit of one size.

The fork shares its source's pool and ref snapshot, so that nothing is copied. From then on each has
its own refs, log and settings, and grafts where the source is shallow; what only one of them reaches
is never served through the other. It begins with HEAD and every ref of the source, hidden ones too,
and therefore with the source's ``hidden_refs``: what the source hides, its forks hide until an
administrator of theirs decides otherwise. All other settings begin at their defaults: protection,
hooks, limits and keys are the source's own business.

A sibling is a repository of the same pool that begins with nothing: what an import fills of which the pool has much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit import clock, faultpoints
from shardgit.errors import Conflict, RepositoryExists
from shardgit.journal.interface import Compare, Put
from shardgit.journal.mode import check_mode
from shardgit.journal.quota_records import Usage, quota_key
from shardgit.journal.records import (
    NameRecord,
    RepositoryRecord,
    allocate_repository,
    name_key,
    repository_key,
)
from shardgit.pool.grafts import NO_GRAFTS
from shardgit.refs.change import HEAD, first_steps
from shardgit.refs.log import LogNote
from shardgit.refs.ref import Ref
from shardgit.service.lfs import fork_operations
from shardgit.service.names import check_repository_name
from shardgit.service.quotas import joined, leaned_on
from shardgit.service.settings import (
    FetchSettings,
    ReceiveSettings,
    RepositorySettings,
    TransferSettings,
    encode_settings,
    settings_of,
)
from shardgit.service.usages import inherited, owner_of

if TYPE_CHECKING:
    from shardgit.oid import RepositoryId
    from shardgit.service.store import Store

_UNBORN = Ref(HEAD, symbolic=b"refs/heads/main")
ROUNDS_MAX = 256  # each round one of the forks that are made side by side wins the next number


def fork(store: Store, source: str, target: str, note: LogNote | None = None) -> RepositoryRecord:
    """Make the repository ``target`` a fork of ``source``; returns its record.

    Errors: RepositoryMissing, RepositoryExists, InvalidRepositoryName, QuotaExceeded, ReadOnly, Conflict when others
    change the source all the time.
    """
    check_repository_name(target, max_bytes=store.limits.repository_name_max_bytes)
    with store.lease():  # on the block that is put before the commit
        return _fork(store, source, target, note)


def sibling(
    store: Store, source: str, target: str, note: LogNote | None = None
) -> RepositoryRecord:
    """Make the repository ``target``, empty, in the pool of ``source`` and forked from it; returns its record.

    Neither its refs, its log nor its Git LFS objects have anything of the source's. Errors: as ``fork``.
    """
    check_repository_name(target, max_bytes=store.limits.repository_name_max_bytes)
    for _ in range(ROUNDS_MAX):
        with store.journal.snapshot() as snapshot:
            check_mode(snapshot)
            origin = store.repository(snapshot, source)
            stands = snapshot.get(repository_key(origin.id))
            if snapshot.get(name_key(target)) is not None:
                raise RepositoryExists("repository exists already", repository=target)
            number = allocate_repository(snapshot)
            record = _record_of(number.id, target, origin)
            owned = joined(store, snapshot, record, Usage())
            lean = leaned_on(snapshot, origin, owner_of(target))
        # commit point: before it there is nothing, after it the repository is there, empty.
        faultpoints.reach("fork.before_commit")
        done = store.try_commit(
            [
                Compare(name_key(target), 0),
                Compare(repository_key(origin.id), stands.revision if stands else 0),
                number.condition,
                *owned[0],
                *lean[0],
            ],
            [
                number.operation,
                Put(name_key(target), NameRecord(number.id).encode()),
                Put(repository_key(number.id), record.encode()),
                *owned[1],
                *lean[1],
                *first_steps(record, _UNBORN, note or LogNote("", f"fork of {source}")),
            ],
        )
        if done:
            faultpoints.reach("fork.after_commit")
            return record
    raise Conflict("source changes too fast to be forked", repository=source)


def _record_of(number: RepositoryId, name: str, origin: RepositoryRecord) -> RepositoryRecord:
    return RepositoryRecord(
        number,
        name,
        origin.pool,
        origin.hash_kind,
        clock.now_ms(),
        _inherited(origin),
        parent=origin.id,
    )


def _fork(store: Store, source: str, target: str, note: LogNote | None) -> RepositoryRecord:
    for _ in range(ROUNDS_MAX):
        with store.journal.snapshot() as snapshot:
            check_mode(snapshot)
            origin = store.repository(snapshot, source)
            if snapshot.get(name_key(target)) is not None:
                raise RepositoryExists("repository exists already", repository=target)
            shared = store.refs.share(snapshot, origin)
            head = store.refs.get(snapshot, origin, HEAD)
            number = allocate_repository(snapshot)
            lfs = fork_operations(snapshot, origin, number.id)
            grafts, unchanged = store.grafts_row(snapshot, origin)
            record = _record_of(number.id, target, origin)
            owner = owner_of(target)
            counts = snapshot.get(quota_key(owner)) is not None
            begins = inherited(store, origin, owner) if counts else Usage()
            owned = joined(store, snapshot, record, begins)
            lean = leaned_on(snapshot, origin, owner)
        said = note or LogNote("", f"fork of {source}")
        # commit point: before it there is no fork, and at most a block that nothing names; after it
        # the fork is whole.
        faultpoints.reach("fork.before_commit")
        done = store.try_commit(
            [
                Compare(name_key(target), 0),
                number.condition,
                unchanged,
                *shared.change.conditions,
                *owned[0],
                *lean[0],
            ],
            [
                number.operation,
                Put(name_key(target), NameRecord(number.id).encode()),
                Put(repository_key(number.id), record.encode()),
                *shared.change.operations,
                *lfs,
                *owned[1],
                *lean[1],
                *store.graft_steps(record, NO_GRAFTS, grafts),
                *first_steps(record, head or _UNBORN, said, shared.head),
            ],
        )
        if done:
            faultpoints.reach("fork.after_commit")
            return record
    raise Conflict("source changes too fast to be forked", repository=source)


def _inherited(origin: RepositoryRecord) -> bytes:
    of = settings_of(origin)
    return encode_settings(
        RepositorySettings(
            transfer=TransferSettings(hidden_refs=of.transfer.hidden_refs),
            fetch=FetchSettings(hidden_refs=of.fetch.hidden_refs),
            receive=ReceiveSettings(hidden_refs=of.receive.hidden_refs),
        )
    )
