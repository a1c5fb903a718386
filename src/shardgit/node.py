"""The composition root: where stores are put together, and nowhere else."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

from shardgit import clock, telemetry
from shardgit.backup.choosing import choose_cut
from shardgit.backup.restore import (
    StoreRestored,
    missing_blocks,
    restore_blocks,
    rewind_store,
    swap_journal,
)
from shardgit.backup.restoring import (
    BLOCKS,
    REWIND,
    RestoreState,
    check_restored,
    check_same,
    restore_state,
)
from shardgit.backup.restoring import KIND as RESTORE
from shardgit.backup.source import CutSnapshot
from shardgit.blocks.block import keep_off
from shardgit.blocks.identity import environment_of
from shardgit.blocks.layout import (
    FORMAT_FILE,
    ShardPlace,
    StoreLayout,
    create_layout,
    initial_ring,
    open_layout,
)
from shardgit.blocks.routed import Held, RoutedStore
from shardgit.blocks.shard import ShardStore
from shardgit.errors import AlreadyExists, JournalCorrupt, Refused, ShardMissing
from shardgit.journal.held import HELD_KEY, decode_held, held_shards
from shardgit.journal.interface import END, Compare, Put
from shardgit.journal.lmdb import LmdbJournal
from shardgit.journal.operations import put_operation
from shardgit.journal.records import RING_KEY, STORE_KEY, StoreRecord
from shardgit.limits import DEFAULT, Limits
from shardgit.lmdbenv import Environment
from shardgit.oid import BlockId
from shardgit.operate.operation import running
from shardgit.refs.table import RefTable
from shardgit.ring.ring import Ring
from shardgit.service.store import Store
from shardgit.version import VERSION
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.backup.cut import Cut
    from shardgit.backup.target import Target
    from shardgit.journal.interface import Journal
    from shardgit.operate.operation import Control
    from shardgit.service.events import Events
    from shardgit.service.hooks import HookPolicy


def create_store(
    folder: Path,
    *,
    shards: int = 1,
    shard_paths: list[Path] | None = None,
    restoring: RestoreState | None = None,
) -> StoreLayout:
    """Make a new embedded store: folders, an empty journal with the first ring, empty shards.

    One that is ``restoring`` is opened only by restore_store until that is done.
    """
    mark = [] if restoring is None else [put_operation(RESTORE, restoring)]

    def fill(layout: StoreLayout) -> None:
        with ExitStack() as opened:
            workers = Workers(1)
            opened.callback(workers.close)
            journal = LmdbJournal(layout.journal, create=True)
            opened.callback(journal.close)
            for place in layout.shards:
                ShardStore(place.path, workers, create=True).close()
            record = StoreRecord(UUID(layout.store_id).bytes)
            journal.commit_sync(
                [Compare(RING_KEY, 0)],
                [
                    Put(STORE_KEY, record.encode()),
                    Put(RING_KEY, initial_ring(layout).encode()),
                    *mark,
                ],
            )

    return create_layout(folder, shards=shards, shard_paths=shard_paths, fill=fill)


@contextmanager
def open_store(
    folder: Path,
    *,
    threads: int | None = None,
    limits: Limits = DEFAULT,
    restoring: bool = False,
    detect_collisions: str = "push",
) -> Iterator[Store]:
    """Open an embedded store; any number of processes may have it open, each of them once.

    One that is not restored to its end is Refused unless ``restoring``. ``detect_collisions`` says where SHA-1
    collision attacks are looked for: in what comes by a ``push``, ``always`` or ``never``.
    """
    layout = open_layout(folder)
    with ExitStack() as opened:
        workers = Workers(threads or os.cpu_count() or 1)
        opened.callback(workers.close)
        journal = LmdbJournal(layout.journal)
        opened.callback(journal.close)
        if not restoring:
            with journal.snapshot() as snapshot:
                check_restored(snapshot)
        _check_journal(journal, layout)
        rings = JournalRings(journal, folder, workers)
        revision, ring = rings.now()
        shards: dict[int, ShardStore] = {}
        for shard in ring.shards:
            shards[shard.number] = rings.open_shard(shard.number)
            opened.callback(shards[shard.number].close)
        blocks = RoutedStore(ring, shards, workers, source=rings, revision=revision)
        opened.callback(keep_off, blocks, None)
        blocks.refresh()
        store = Store(
            journal=journal,
            blocks=blocks,
            refs=RefTable(blocks),
            workers=workers,
            limits=limits,
            scratch=layout.scratch,
            detect_collisions=detect_collisions,
        )
        opened.pop_all()  # from here on the store closes them
        try:
            yield store
        finally:
            store.close()


def restore_store(
    target: Target,
    folder: Path,
    *,
    shards: int = 1,
    shard_paths: list[Path] | None = None,
    backup: str | None = None,
    at_ms: int | None = None,
    control: Control,
) -> StoreRestored:
    """Restore a whole store from a backup into a folder that is new, or that an earlier call was stopped over.

    The backup is that of the id, the newest one without; with ``at_ms`` the refs are those of that moment. Errors:
    BackupMissing, BackupCorrupt, AlreadyExists for a folder with another store, Refused for one that is being restored
    from another backup, StorageFull, Stopped.
    """
    begun = clock.monotonic()
    target.load()
    if not (folder / FORMAT_FILE).exists():
        cut = choose_cut(target, backup=backup, at_ms=at_ms)
        state = RestoreState(target.bucket.where, cut.facts.id, at_ms or 0)
        create_store(folder, shards=shards, shard_paths=shard_paths, restoring=state)
    with open_store(folder, restoring=True) as store:
        with store.journal.snapshot() as snapshot:
            found = restore_state(snapshot)
        if found is None:
            raise AlreadyExists("a store exists there already", path=str(folder))
        check_same(found, backup, at_ms)
    cut = target.cut(found.backup)
    brought, rows = 0, cut.facts.rows
    if found.phase == BLOCKS:
        with target.reading(found.backup):
            brought = _restored_blocks(folder, target, cut, found, control)
    if found.at_ms:
        with open_store(folder, restoring=True) as store, running(store, RESTORE):
            rewind_store(store, found, control=control)
    return StoreRestored(
        path=str(folder),
        store=open_layout(folder).store_id,
        backup=cut.facts.id,
        at_ms=found.at_ms or cut.facts.taken_ms,
        repositories=cut.facts.repositories,
        rows=rows,
        blocks=cut.facts.blocks,
        bytes=brought,
        seconds=clock.monotonic() - begun,
    )


def _restored_blocks(
    folder: Path, target: Target, cut: Cut, state: RestoreState, control: Control
) -> int:
    """Bring the blocks, then the journal, which nobody may have open then; returns the bytes that were brought."""
    with ExitStack() as locked:
        with open_store(folder, restoring=True) as store:
            locked.enter_context(running(store, RESTORE))
            ids = missing_blocks(store, [BlockId(block) for block in cut.block_ids()])
            brought = restore_blocks(store, target, ids, control=control)
            with store.journal.snapshot() as snapshot:
                own = list(snapshot.range(b"\0", END))
        rest = replace(state, phase=REWIND) if state.at_ms else None
        swap_journal(open_layout(folder).journal, CutSnapshot(target, cut), cut, own, rest)
    return brought


def equip_hooks(store: Store, policy: HookPolicy) -> Events:
    """Give a store that is served the hooks of its repositories; returns what tells events."""
    # Not on top: commands that only open a store need neither gRPC nor HTTP.
    from shardgit.http.hooks import HttpCaller
    from shardgit.rpc.hooks import GrpcCaller, QuarantineEndpoint
    from shardgit.service.events import Events
    from shardgit.service.hook_program import ProgramCaller
    from shardgit.service.hooks import Hooks

    store.hooks = Hooks(
        store,
        policy=policy,
        callers={
            "program": ProgramCaller(store.workers),
            "http": HttpCaller(store.workers, store.limits, version=VERSION),
            "grpc": GrpcCaller(store.workers),
        },
        endpoint=QuarantineEndpoint(store),
    )
    store.events = Events(store.hooks)
    return store.events


class JournalRings:
    """The rings of a store's journal, for its blocks; see RingSource."""

    def __init__(self, journal: Journal, folder: Path, workers: Workers) -> None:
        self._journal = journal
        self._folder = folder
        self._workers = workers
        self._looked_at = self._held_looked_at = -1  # the journal's revision at the last look

    def newer(self, known: int) -> tuple[int, Ring] | None:
        """See RingSource."""
        revision = self._journal.revision()
        if revision == self._looked_at:
            return None  # nothing at all was committed
        with self._journal.snapshot() as snapshot:
            row = snapshot.get(RING_KEY)
        if row is None:
            raise JournalCorrupt("journal has no ring")
        if row.revision == known:
            self._looked_at = snapshot.revision  # which may be older: see Journal.revision
            return None
        return row.revision, Ring.decode(row.value)

    def held(self, known: int) -> tuple[int, Held] | None:
        """See RingSource."""
        revision = self._journal.revision()
        if revision == self._held_looked_at:
            return None
        with self._journal.snapshot() as snapshot:
            row = snapshot.get(HELD_KEY)
        if (row.revision if row is not None else 0) == known:
            self._held_looked_at = snapshot.revision
            return None
        if row is None:
            return 0, Held()
        try:
            shards = decode_held(row.value)
        except JournalCorrupt as error:  # reads go on; who would write to a shard meets it
            telemetry.log().error("held_shards_unknown", error=str(error))
            return row.revision, Held()
        closed = frozenset(one.id for one in shards if one.closed)
        return row.revision, Held(frozenset(one.id for one in shards), closed)

    def check_open(self, number: int) -> None:
        """See RingSource."""
        with self._journal.snapshot() as snapshot:
            for one in held_shards(snapshot):
                if one.closed and one.id == number:
                    raise one.refusal()

    def now(self) -> tuple[int, Ring]:
        """Return the ring and its row's revision."""
        found = self.newer(-1)
        assert found is not None
        return found

    def open_shard(self, number: int) -> ShardStore:
        """See RingSource."""
        for place in open_layout(self._folder).shards:
            if place.number == number:
                return ShardStore(place.path, self._workers)
        raise ShardMissing("the ring names a shard that the store has not", shard=number)

    def is_open_shard(self, number: int, shard: ShardStore) -> bool:
        """See RingSource."""
        try:
            places = open_layout(self._folder).shards
        except Refused:  # some shard's disk is away, which is no reason to drop the others
            return True
        return ShardPlace(number, shard.folder) in places


def check_store(layout: StoreLayout) -> None:
    """Look whether a store's journal is its own and of a format that is known; opens no shard.

    Errors: StoreFormatUnknown, Refused, JournalCorrupt.
    """
    journal = LmdbJournal(layout.journal)
    try:
        _check_journal(journal, layout)
    finally:
        journal.close()


def _check_journal(journal: LmdbJournal, layout: StoreLayout) -> None:
    """Look whether the journal is this store's."""
    with journal.snapshot() as snapshot:
        store, ring = snapshot.get(STORE_KEY), snapshot.get(RING_KEY)
    if store is None or ring is None:
        raise JournalCorrupt("journal has no store id or no ring", path=str(layout.journal))
    if StoreRecord.decode(store.value).id != UUID(layout.store_id).bytes:
        raise Refused("journal belongs to another store", path=str(layout.journal))


def check_readers(folder: Path) -> int:
    """Free the LMDB reader slots that dead processes left; returns how many.

    Opens the environments only, so that a damaged store does not hide them.
    """
    layout = open_layout(folder)
    freed = 0
    for path in (layout.journal, *(environment_of(place.path) for place in layout.shards)):
        environment = Environment(path)
        try:
            freed += environment.reader_check()
        finally:
            environment.close()
    return freed
