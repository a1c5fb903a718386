"""Bringing one repository into a store that lives: from the store itself, or from a backup; as of any moment."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from uuid import UUID

from shardgit import clock
from shardgit.backup.choosing import choose_cut
from shardgit.backup.deleted import find_deleted, undelete
from shardgit.backup.restore import rewind_repository
from shardgit.backup.revive import Revival
from shardgit.backup.rewind import check_targets, reached_by, refs_then
from shardgit.backup.source import CutSnapshot
from shardgit.errors import (
    BackupMissing,
    Conflict,
    DataLoss,
    LogPositionUnknown,
    RepositoryExists,
    RepositoryMissing,
)
from shardgit.faultpoints import reach
from shardgit.graph.shallow import with_lacking
from shardgit.journal.cursor_records import HookCursor, cursor_key, split_cursor_key
from shardgit.journal.interface import Compare, Put, end_of
from shardgit.journal.records import (
    STORE_KEY,
    NameRecord,
    RefsHead,
    RepositoryRecord,
    StoreRecord,
    allocate_repository,
    name_key,
    repository_key,
)
from shardgit.pool.grafts import NO_GRAFTS
from shardgit.refs.change import HEAD, first_steps
from shardgit.refs.log import LogNote
from shardgit.refs.ref import Ref
from shardgit.refs.snapshot import new_snapshot
from shardgit.service.lfs import fork_operations
from shardgit.service.names import check_repository_name
from shardgit.service.settings import unmirrored
from shardgit.service.usages import recount_named

if TYPE_CHECKING:
    from shardgit.backup.cut import Cut
    from shardgit.backup.deleted import Deleted
    from shardgit.backup.target import Target
    from shardgit.journal.interface import JournalSnapshot, Operation
    from shardgit.oid import RepositoryId
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

ROUNDS_MAX = 64


@dataclass(frozen=True, slots=True)
class RepositoryRestored:
    """What a restore of a repository brought back, and from where: "store" or "backup"."""

    repository: str
    id: int
    source: str
    backup: str  # "" from the store
    at_ms: int  # 0: as it was deleted, or as of the backup
    refs: int
    blocks: int
    bytes: int
    seconds: float


def restore_repository(
    store: Store,
    target: Target | None,
    name: str,
    *,
    new_name: str | None = None,
    backup: str | None = None,
    at_ms: int | None = None,
    control: Control,
) -> RepositoryRestored:
    """Bring repository ``name`` back, under ``new_name`` where that is given, as it was at ``at_ms``.

    What the store itself still has is taken first: a deleted repository, or the ref log of one that is there. Else, or
    with ``backup``, it comes from a backup, into a pool of its own. Refs, ref log, settings, LFS objects and locks come
    along; a copy of a mirror follows nobody. Errors: RepositoryExists, RepositoryMissing, BackupMissing, BackupCorrupt,
    LogPositionUnknown, StorageFull.
    """
    begun = clock.monotonic()
    wanted = new_name or name
    check_repository_name(wanted, max_bytes=store.limits.repository_name_max_bytes)
    with store.journal.snapshot() as snapshot:
        if snapshot.get(name_key(wanted)) is not None:
            raise RepositoryExists(
                "repository exists already; give another name with --as", repository=wanted
            )
    done: RepositoryRestored | None = None
    if backup is None:
        try:
            done = _from_store(store, name, wanted, at_ms)
        except (LogPositionUnknown, DataLoss):
            if target is None:
                raise
    if done is None:
        if target is None:
            raise BackupMissing("the store has nothing of that repository", repository=name)
        target.load()
        done = _from_backup(store, target, name, wanted, backup, at_ms, control)
    recount_named(store, wanted)
    return replace(done, seconds=clock.monotonic() - begun)


def _from_store(
    store: Store, name: str, wanted: str, at_ms: int | None
) -> RepositoryRestored | None:
    """Bring it back from the store's own journal; None when that has nothing of it."""
    note = LogNote("", f"restore of {name}{_as_of(at_ms)}", time_ms=clock.now_ms())
    with store.journal.snapshot() as snapshot:
        gone = find_deleted(snapshot, name, at_ms)
        live: RepositoryRecord | None = None
        with suppress(RepositoryMissing):
            live = store.repository(snapshot, name)
        if live is not None and at_ms is not None and live.created_ms <= at_ms:
            pass
        elif gone is not None:
            _check_then(store, snapshot, gone.record, at_ms)
        else:
            return None
    if live is not None and at_ms is not None and live.created_ms <= at_ms:
        record, count = _copied(store, live, wanted, at_ms, note)
        return RepositoryRestored(wanted, record.id, "store", "", at_ms, count, 0, 0, 0.0)
    assert gone is not None
    record = undelete(store, gone, wanted, note)
    if at_ms is not None:
        rewind_repository(store, record, at_ms, note)
    with store.journal.snapshot() as snapshot:
        count = store.refs.head(snapshot, record).count
    return RepositoryRestored(wanted, record.id, "store", "", at_ms or 0, count, 0, 0, 0.0)


def _as_of(at_ms: int | None) -> str:
    if at_ms is None:
        return ""
    from datetime import UTC, datetime

    return f" as of {datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}Z"


def _check_then(
    store: Store, snapshot: JournalSnapshot, record: RepositoryRecord, at_ms: int | None
) -> int:
    """Raise what stands in the way of a moment's refs, before anything is changed; returns how many there are."""
    then = refs_then(store.refs, snapshot, record, at_ms)
    refs = list(then.refs(store.refs, snapshot, record))
    check_targets(store.view(store.pool(snapshot, record.pool)), refs, record.name)
    return len(refs)


def _copied(
    store: Store, origin: RepositoryRecord, wanted: str, at_ms: int, note: LogNote
) -> tuple[RepositoryRecord, int]:
    """Make a fork of a repository that is there, with its refs of a moment, in one commit."""
    for _ in range(ROUNDS_MAX):
        with store.journal.snapshot() as snapshot:
            then = refs_then(store.refs, snapshot, origin, at_ms)
            refs = list(then.refs(store.refs, snapshot, origin))
            head = then.head(store.refs, snapshot, origin) or Ref(HEAD, symbolic=b"refs/heads/main")
            grafts, unchanged = store.grafts_row(snapshot, origin)
            pool = store.pool(snapshot, origin.pool, grafts)
            own = snapshot.get(repository_key(origin.id))
            number = allocate_repository(snapshot)
            lfs = fork_operations(snapshot, origin, number.id)
            cursors = hook_cursors(snapshot, origin.id, number.id, 1)
        check_targets(store.view(pool), refs, origin.name)
        tips = pool.view.positions([ref.target for ref in refs if ref.target is not None])
        ends = with_lacking(pool.view, tips)
        ended = replace(pool, view=pool.view.with_grafts(ends))
        relied = store.rely(pool, lambda pool=ended, refs=refs: [reached_by(store, pool, refs)])  # type: ignore[misc]
        made = new_snapshot(refs, pool=origin.pool, hash_kind=origin.hash_kind)
        if made.blocks:
            store.blocks.put_many_sync(made.blocks)
        record = replace(
            origin,
            id=number.id,
            name=wanted,
            settings=unmirrored(origin.settings),
            created_ms=clock.now_ms(),
            parent=origin.id,
        )
        first = RefsHead(made.root, made.count, 0, origin.hash_kind if made.root else None)
        reach("revive.before_copy")
        # commit point: before it there is no such repository, and at most blocks that nothing names; after it it is
        # whole.
        if store.try_commit(
            [
                Compare(name_key(wanted), 0),
                number.condition,
                Compare(repository_key(origin.id), own.revision if own else 0),
                unchanged,
                *relied[0],
            ],
            [
                number.operation,
                Put(name_key(wanted), NameRecord(number.id).encode()),
                Put(repository_key(number.id), record.encode()),
                *first_steps(record, head, note, first if made.root else None),
                *store.graft_steps(record, NO_GRAFTS, ends),
                *lfs,
                *cursors,
                *relied[1],
            ],
        ):
            reach("revive.after_copy")
            return record, made.count
        with store.journal.snapshot() as snapshot:
            if snapshot.get(name_key(wanted)) is not None:
                raise RepositoryExists("repository exists already", repository=wanted)
    raise Conflict("repository changes too fast", repository=origin.name)


def hook_cursors(
    snapshot: JournalSnapshot, origin: RepositoryId, number: RepositoryId, sequence: int
) -> list[Operation]:
    """Return cursors for the hooks of a copy: they are told of what follows ``sequence``."""
    low = cursor_key(origin, b"")
    return [
        Put(cursor_key(number, split_cursor_key(row.key)[1]), HookCursor(sequence).encode())
        for row in snapshot.range(low, end_of(low))
    ]


def _from_backup(
    store: Store,
    target: Target,
    name: str,
    wanted: str,
    backup: str | None,
    at_ms: int | None,
    control: Control,
) -> RepositoryRestored:
    with store.journal.snapshot() as rows:
        row = rows.get(STORE_KEY)
    own = str(UUID(bytes=StoreRecord.decode(row.value).id)) if row is not None else ""
    cut, snapshot, record = _found(target, name, backup, at_ms, own)
    revival = Revival(store, target, cut, snapshot, record, control=control)
    with target.reading(cut.facts.id):
        reason = f"restore of {name}{_as_of(at_ms)} from {cut.facts.id}"
        restored = revival.run(wanted, at_ms, reason)
    return RepositoryRestored(
        wanted,
        restored.record.id,
        "backup",
        cut.facts.id,
        at_ms or 0,
        restored.refs,
        restored.blocks,
        restored.bytes,
        0.0,
    )


def _found(
    target: Target, name: str, backup: str | None, at_ms: int | None, own: str
) -> tuple[Cut, CutSnapshot, RepositoryRecord]:
    """Return a backup and the repository in it: the chosen one, or without a moment the newest that has the name.

    ``own`` is the id of the store that it comes into.
    """
    if backup is not None or at_ms is not None:
        cut = choose_cut(target, backup=backup, at_ms=at_ms, store=own)
        snapshot = CutSnapshot(target, cut)
        record = _in_cut(snapshot, name, at_ms)
        if record is None:
            raise RepositoryMissing(
                "backup has no such repository at that moment", repository=name, backup=cut.facts.id
            )
        return cut, snapshot, record
    newest = target.cut_ids()[::-1]
    # Those of the store itself first: others that share the target may have a repository of that name, too.
    for is_own in (True, False):
        for one in newest:
            if (target.facts(one).store == own) is not is_own:
                continue
            cut = target.cut(one)
            snapshot = CutSnapshot(target, cut)
            record = _in_cut(snapshot, name, None)
            if record is not None:
                return cut, snapshot, record
    raise RepositoryMissing("no backup has such a repository", repository=name)


def _in_cut(snapshot: CutSnapshot, name: str, at_ms: int | None) -> RepositoryRecord | None:
    row = snapshot.get(name_key(name))
    if row is not None:
        found = snapshot.get(repository_key(NameRecord.decode(row.value).id))
        record = RepositoryRecord.decode(found.value) if found else None
        if record is not None and (at_ms is None or record.created_ms <= at_ms):
            return record
    gone: Deleted | None = find_deleted(snapshot, name, at_ms)
    return gone.record if gone is not None else None
