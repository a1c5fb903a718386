"""Restoring a whole store into a fresh one: blocks first, then the journal, then perhaps an earlier moment.

Who puts the pieces together is node.restore_store. Until the end the fresh store's journal holds a row (restoring.py)
for which it is not opened; stopped at any point, the same call goes on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.backup.deleted import deleted_repositories, undelete
from shardgit.backup.restoring import KEY, RestoreState
from shardgit.backup.rewind import check_targets, reached_by, refs_then
from shardgit.buckets.folder import sync_folder
from shardgit.errors import Conflict, RepositoryMissing
from shardgit.faultpoints import reach
from shardgit.graph.shallow import with_lacking
from shardgit.journal.fences import standing
from shardgit.journal.interface import Compare, Delete, Put, Row, end_of
from shardgit.journal.lfs_records import LFS_SOURCES, decode_sources, lfs_owned_key
from shardgit.journal.lmdb import write_journal
from shardgit.journal.mode import MODE_KEY
from shardgit.journal.operations import OPERATIONS, encode_operation
from shardgit.journal.pins import PINS
from shardgit.journal.records import (
    NODES,
    REPOSITORY_NAMES,
    RING_KEY,
    STORE_KEY,
    NameRecord,
    RepositoryRecord,
    repository_key,
)
from shardgit.oid import BlockId, RepositoryId
from shardgit.pool.condemned import CONDEMNED
from shardgit.progress import Progress
from shardgit.refs.log import LogNote
from shardgit.service.repositories import Repositories
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from shardgit.backup.cut import Cut
    from shardgit.backup.source import CutSnapshot
    from shardgit.backup.target import Span, Target
    from shardgit.journal.interface import JournalSnapshot, Operation
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

READERS = 4
AHEAD = 6  # spans of up to 16 MiB that are read or wait to be put
PUT_BYTES = 64 << 20  # blocks put with one fsync a shard
ROUNDS_MAX = 64  # tries against other writers
HAS_BATCH = 4_096
COMMIT_ROWS, COMMIT_BYTES = 100, 512 << 10  # of one commit of restored rows; etcd takes 1.5 MiB
COMMITS_AT_ONCE = 16
# What was going on in the old store, and the nodes that it may have had.
NOT_RESTORED = frozenset({OPERATIONS, PINS, CONDEMNED, NODES, MODE_KEY})
OWN_TABLES = NOT_RESTORED | {RING_KEY, STORE_KEY}  # of a store that nobody has used yet


@dataclass(frozen=True, slots=True)
class StoreRestored:
    """What a restore of a store brought back."""

    path: str
    store: str
    backup: str
    at_ms: int
    repositories: int
    rows: int
    blocks: int
    bytes: int  # of the blocks that this call brought
    seconds: float


def missing_blocks(store: Store, ids: Sequence[BlockId]) -> list[BlockId]:
    """Return the blocks that a store lacks."""
    out: list[BlockId] = []
    for at in range(0, len(ids), HAS_BATCH):
        some = ids[at : at + HAS_BATCH]
        here = store.blocks.has_many_sync(some)
        out += [block for block, is_here in zip(some, here, strict=True) if not is_here]
    return out


def restore_blocks(
    store: Store,
    target: Target,
    ids: Sequence[BlockId],
    *,
    control: Control,
    beat: Callable[[], None] = lambda: None,
) -> int:
    """Put blocks of a backup into a store, each checked on its way; returns their bytes. Errors: BackupCorrupt."""
    total = sum(target.length(block) for block in ids)
    done = 0
    for some in read_ahead(target, ids):
        store.blocks.put_many_sync([(BlockId(block), data) for block, data in some])
        reach("restore.after_blocks")
        size = sum(len(data) for _, data in some)
        done += size
        control.report(Progress("restoring blocks", done, total, "bytes"))
        control.pace(size)
        beat()
    return done


def read_ahead(target: Target, blobs: Sequence[bytes]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Return blobs in batches of about PUT_BYTES, the next ones being read meanwhile."""
    spans = deque(target.spans(blobs))
    flying: deque[Future[list[tuple[bytes, bytes]]]] = deque()
    held: list[tuple[bytes, bytes]] = []
    size = 0
    workers = Workers(READERS)
    try:
        while spans or flying:
            while spans and len(flying) < AHEAD:
                flying.append(workers.submit(target.read, _taken(spans)))
            some = flying.popleft().result()
            held += some
            size += sum(len(data) for _, data in some)
            if size >= PUT_BYTES:
                yield held
                held, size = [], 0
        if held:
            yield held
    finally:
        workers.close()


def _taken(spans: deque[Span]) -> Span:
    return spans.popleft()


def rows_of(
    source: CutSnapshot, cut: Cut, own: Sequence[Row], state: RestoreState | None
) -> Iterator[Row]:
    """Return the rows of the restored journal: the fresh store's own, and all of the backup's other tables.

    A store's id and ring are its own, and so are operations under way; pins and operations of the old store are gone.
    """
    tables = {row.key[:1] for row in own} | NOT_RESTORED
    mine = {row.key: row for row in own if row.key != KEY}
    if state is not None:
        mine[KEY] = Row(KEY, encode_operation(state), cut.facts.revision)
    waiting = deque(sorted(mine.values(), key=lambda row: row.key))
    for number in range(len(cut.chunks)):
        for row in source.rows(number):
            while waiting and waiting[0].key < row.key:
                yield waiting.popleft()
            if row.key[:1] not in tables:
                yield row
    yield from waiting


def put_rows(store: Store, source: CutSnapshot, cut: Cut, *, control: Control) -> int:
    """Put a backup's rows into the journal of a store that nobody serves; returns how many. Safe to repeat.

    Its id, ring and nodes are its own. As long as the row stands that says that it is being restored; who lost the
    turn to do so puts nothing more. Errors: Conflict.
    """
    left_out = OWN_TABLES
    workers = Workers(COMMITS_AT_ONCE)
    done = 0
    with store.journal.snapshot() as snapshot:
        row = snapshot.get(KEY)
    # Those of the turn are this thread's.
    conditions = (*standing(), Compare(KEY, row.revision if row is not None else -1))

    def commit(rows: Sequence[Row]) -> int:
        store.journal.commit_sync(conditions, [Put(row.key, row.value) for row in rows])
        reach("cluster.after_rows")
        return len(rows)

    try:
        done += sum(workers.map(commit, list(_in_commits(list(_lfs_of_forks(source))))))
        for number in range(len(cut.chunks)):
            rows = [
                row
                for row in source.rows(number)
                if row.key[:1] not in left_out and not row.key.startswith(LFS_SOURCES)
            ]
            done += sum(workers.map(commit, list(_in_commits(rows))))
            control.report(Progress("restoring rows", done, max(cut.facts.rows, done), "objects"))
            control.check()
    finally:
        workers.close()
    return done


def _lfs_of_forks(source: CutSnapshot) -> Iterator[Row]:
    """Return what forks see of their sources' LFS objects as rows of their own.

    Which objects a source had when it was forked is told by rows' revisions, and these are new in another journal.
    """
    for row in source.range(LFS_SOURCES, end_of(LFS_SOURCES)):
        fork = RepositoryId(int.from_bytes(row.key[len(LFS_SOURCES) :], "big"))
        own = lfs_owned_key(fork)
        seen = {one.key for one in source.range(own, end_of(own))}
        for one in decode_sources(row.value):
            low = lfs_owned_key(one.repository)
            for owned in source.range(low, end_of(low)):
                key = own + owned.key[len(low) :]
                if owned.revision <= one.revision and key not in seen:
                    seen.add(key)
                    yield Row(key, owned.value, 0)


def _in_commits(rows: Sequence[Row]) -> Iterator[list[Row]]:
    some: list[Row] = []
    size = 0
    for row in rows:
        length = len(row.key) + len(row.value)
        if some and (len(some) == COMMIT_ROWS or size + length > COMMIT_BYTES):
            yield some
            some, size = [], 0
        some.append(row)
        size += length
    if some:
        yield some


def swap_journal(
    folder: Path, source: CutSnapshot, cut: Cut, own: Sequence[Row], state: RestoreState | None
) -> int:
    """Write the restored journal beside a store's own, which nobody has open, and put it into its place."""
    fresh = folder / "restored"
    for left in fresh.glob("*"):
        left.unlink()
    revision = max(cut.facts.revision, *(row.revision for row in own))
    count = write_journal(fresh, rows_of(source, cut, own, state), revision=revision)
    # Who looks at the store meanwhile keeps the old files; a lock file serves one database only.
    (folder / "lock.mdb").unlink(missing_ok=True)
    reach("restore.before_journal")
    # commit point: before it the store is not restored and says so, after it it has the backup's journal, whole.
    (fresh / "data.mdb").replace(folder / "data.mdb")
    sync_folder(folder)
    reach("restore.after_journal")
    for left in fresh.glob("*"):
        left.unlink()
    fresh.rmdir()
    return count


def repositories_of(snapshot: JournalSnapshot) -> Iterator[RepositoryRecord]:
    """Return the repositories by rising name; lazy."""
    for row in snapshot.range(REPOSITORY_NAMES, end_of(REPOSITORY_NAMES)):
        found = snapshot.get(repository_key(NameRecord.decode(row.value).id))
        if found is not None:
            yield RepositoryRecord.decode(found.value)


def rewind_store(store: Store, state: RestoreState, *, control: Control) -> None:
    """Give every repository of a restored store the refs of a moment; safe to repeat.

    What was made later is deleted, what was deleted later is there again. Names and settings stay the backup's.
    """
    note = LogNote("", f"restore of backup {state.backup}", time_ms=clock.now_ms())
    with store.journal.snapshot() as snapshot:
        records = list(repositories_of(snapshot))
    for number, record in enumerate(records):
        control.report(Progress("rewinding refs", number, len(records), "objects"))
        control.check()
        try:
            rewind_repository(store, record, state.at_ms, note)
        except RepositoryMissing:
            Repositories(store).delete(record.name, note=note)
    with store.journal.snapshot() as snapshot:
        back = [one for one in deleted_repositories(snapshot) if one.there_at(state.at_ms)]
    for gone in back:
        undelete(store, gone, gone.record.name, note)
        try:
            rewind_repository(store, gone.record, state.at_ms, note)
        except RepositoryMissing:
            Repositories(store).delete(gone.record.name, note=note)
    reach("restore.before_end")
    # commit point: before it the store is not opened, after it it is the restored one.
    store.journal.commit_sync([], [Delete(KEY)])
    reach("restore.after_end")


def rewind_repository(store: Store, record: RepositoryRecord, at_ms: int, note: LogNote) -> int:
    """Give a repository the refs that it had at a time; returns how many. One commit.

    Where these reach commits of which the pool lacks parents, its history ends there, by a commit before.

    Errors: RepositoryMissing when it did not exist yet, LogPositionUnknown, DataLoss when objects of then are gone.
    """
    for _ in range(ROUNDS_MAX):
        with store.journal.snapshot() as snapshot:
            then = refs_then(store.refs, snapshot, record, at_ms)
            refs = list(then.refs(store.refs, snapshot, record))
            head = then.head(store.refs, snapshot, record)
            grafts, unchanged = store.grafts_row(snapshot, record)
            pool = store.pool(snapshot, record.pool, grafts)
            change = store.refs.replace_all(snapshot, record, refs, head, note)
        view = store.view(pool)
        check_targets(view, refs, record.name)
        steps: Sequence[Operation] = ()
        ended = pool
        if view is not None:
            tips = view.positions([ref.target for ref in refs if ref.target is not None])
            ends = with_lacking(view, tips)
            steps = store.graft_steps(record, grafts, ends)
            ended = replace(pool, view=view.with_grafts(ends))
        relied = store.rely(pool, lambda pool=ended, refs=refs: [reached_by(store, pool, refs)])  # type: ignore[misc]
        reach("rewind.before_commit")
        # commit point: before it the refs are as they were, after it as they had been, and history ends where it did.
        if store.try_commit(
            [*change.conditions, unchanged, *relied[0]],
            [*change.operations, *steps, *relied[1]],
        ):
            reach("rewind.after_commit")
            return len(refs)
    raise Conflict("repository changes too fast", repository=record.name)
