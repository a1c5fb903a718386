"""The composition root: where stores are put together, and nowhere else."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from shardgit.blocks.layout import StoreLayout, create_layout, initial_ring, open_layout
from shardgit.blocks.routed import RoutedStore
from shardgit.blocks.shard import ShardStore
from shardgit.errors import JournalCorrupt, Refused
from shardgit.journal.interface import Compare, Put
from shardgit.journal.lmdb import LmdbJournal
from shardgit.journal.records import RING_KEY, STORE_KEY, StoreRecord
from shardgit.limits import DEFAULT, Limits
from shardgit.lmdbenv import Environment
from shardgit.refs.table import RefTable
from shardgit.ring.ring import Ring
from shardgit.service.store import Store
from shardgit.version import VERSION
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.events import Events
    from shardgit.service.hooks import HookPolicy


def create_store(
    folder: Path, *, shards: int = 1, shard_paths: list[Path] | None = None
) -> StoreLayout:
    """Make a new embedded store: folders, an empty journal with the first ring, empty shards."""

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
                [Put(STORE_KEY, record.encode()), Put(RING_KEY, initial_ring(layout).encode())],
            )

    return create_layout(folder, shards=shards, shard_paths=shard_paths, fill=fill)


@contextmanager
def open_store(
    folder: Path, *, threads: int | None = None, limits: Limits = DEFAULT
) -> Iterator[Store]:
    """Open an embedded store; any number of processes may have it open, each of them once."""
    layout = open_layout(folder)
    with ExitStack() as opened:
        workers = Workers(threads or os.cpu_count() or 1)
        opened.callback(workers.close)
        journal = LmdbJournal(layout.journal)
        opened.callback(journal.close)
        ring = _ring(journal, layout)
        shards: dict[int, ShardStore] = {}
        for place in layout.shards:
            shards[place.number] = ShardStore(place.path, workers)
            opened.callback(shards[place.number].close)
        blocks = RoutedStore(ring, shards, workers)
        store = Store(
            journal=journal,
            blocks=blocks,
            refs=RefTable(blocks),
            workers=workers,
            limits=limits,
            scratch=layout.scratch,
        )
        opened.pop_all()  # from here on the store closes them
        try:
            yield store
        finally:
            store.close()


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


def _ring(journal: LmdbJournal, layout: StoreLayout) -> Ring:
    """Return the ring, after a look whether the journal is this store's."""
    with journal.snapshot() as snapshot:
        store, ring = snapshot.get(STORE_KEY), snapshot.get(RING_KEY)
    if store is None or ring is None:
        raise JournalCorrupt("journal has no store id or no ring", path=str(layout.journal))
    if StoreRecord.decode(store.value).id != UUID(layout.store_id).bytes:
        raise Refused("journal belongs to another store", path=str(layout.journal))
    return Ring.decode(ring.value)


def check_readers(folder: Path) -> int:
    """Free the LMDB reader slots that dead processes left; returns how many.

    Opens the environments only, so that a damaged store does not hide them.
    """
    layout = open_layout(folder)
    freed = 0
    for path in (layout.journal, *(place.path for place in layout.shards)):
        environment = Environment(path)
        try:
            freed += environment.reader_check()
        finally:
            environment.close()
    return freed
