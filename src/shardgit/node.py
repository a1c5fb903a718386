"""The composition root: where stores are put together, and nowhere else."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shardgit.blocks.layout import StoreLayout, create_layout, open_layout
from shardgit.blocks.routed import RoutedStore
from shardgit.blocks.shard import ShardStore
from shardgit.errors import JournalCorrupt
from shardgit.journal.interface import Compare, Put
from shardgit.journal.lmdb import LmdbJournal
from shardgit.journal.records import RING_KEY
from shardgit.limits import DEFAULT, Limits
from shardgit.refs.table import RefTable
from shardgit.ring.builder import build
from shardgit.ring.ring import Ring, RingShard
from shardgit.service.store import Store
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def create_store(folder: Path, *, shards: int = 1, shard_paths: list[Path] | None = None) -> StoreLayout:
    """Make a new embedded store: folders, an empty journal with the first ring, empty shards."""

    def fill(layout: StoreLayout) -> None:
        workers = Workers(1)
        journal = LmdbJournal(layout.journal, create=True)
        try:
            for place in layout.shards:
                ShardStore(place.path, workers, create=True).close()
            ring = build([RingShard(place.number) for place in layout.shards])
            journal.commit_sync([Compare(RING_KEY, 0)], [Put(RING_KEY, ring.encode())])
        finally:
            journal.close()
            workers.close()

    return create_layout(folder, shards=shards, shard_paths=shard_paths, fill=fill)


@contextmanager
def open_store(folder: Path, *, threads: int | None = None, limits: Limits = DEFAULT) -> Iterator[Store]:
    """Open an embedded store; any number of processes may have it open."""
    layout = open_layout(folder)
    workers = Workers(threads or os.cpu_count() or 1)
    journal = LmdbJournal(layout.journal)
    with journal.snapshot() as snapshot:
        row = snapshot.get(RING_KEY)
    if row is None:
        journal.close()
        raise JournalCorrupt("journal has no ring", path=str(folder))
    shards = {place.number: ShardStore(place.path, workers) for place in layout.shards}
    blocks = RoutedStore(Ring.decode(row.value), shards, workers)
    store = Store(
        journal=journal,
        blocks=blocks,
        refs=RefTable(blocks),
        workers=workers,
        limits=limits,
        scratch=layout.scratch,
    )
    try:
        yield store
    finally:
        store.close()


def check_readers(folder: Path) -> int:
    """Free the LMDB reader slots that dead processes left; returns how many."""
    with open_store(folder, threads=1) as store:
        return store.journal.reader_check() + sum(shard.reader_check() for shard in store.blocks.shards.values())
