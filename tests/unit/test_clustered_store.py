"""A store whose blocks are those of a cluster: what one node imports, the others give, also once they are emptied."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

from clustering import Cluster, CountedBucket, Node, take_away
from reference.gits import make_history

from shardgit.buckets.memory import MemoryBucket
from shardgit.journal.lmdb import LmdbJournal
from shardgit.limits import DEFAULT
from shardgit.node import create_store
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.refs.table import RefTable
from shardgit.service.importing import import_repository
from shardgit.service.reading import Reading
from shardgit.service.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.blocks.routed import RoutedStore


def store_on(node: Node, journal: LmdbJournal) -> Store:
    scratch = node.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return Store(
        journal=journal,
        # What Store does with them here is what every BlockStore does.
        blocks=cast("RoutedStore", node.blocks),
        refs=RefTable(node.blocks),
        workers=node.workers,
        limits=DEFAULT,
        scratch=scratch,
    )


def clone(store: Store) -> bytes:
    reading = Reading(store, "demo")
    assert reading.view is not None
    return b"".join(Transfer(reading.view, reading.reachable, options=TransferOptions()).chunks())


def test_what_one_node_imports_the_others_give_also_when_they_are_emptied(tmp_path: Path) -> None:
    source = make_history(tmp_path / "work", commits=12)
    bucket = CountedBucket(MemoryBucket())
    with ExitStack() as opened:
        cluster = Cluster(tmp_path, bucket, timeout_s=60.0)
        opened.callback(cluster.close)
        create_store(tmp_path / "data")  # for its journal
        journal = LmdbJournal(tmp_path / "data" / "journal")
        opened.callback(journal.close)
        stores = [store_on(node, journal) for node in cluster.nodes]
        for store in stores:
            opened.callback(store.leases.close)
        import_repository(stores[0], "demo", str(source))
        packs = {clone(store) for store in stores}
        assert len(packs) == 1
        (pack,) = packs
        assert pack.startswith(b"PACK")
        for node in cluster.nodes:
            for part in ("owned", "foreign"):
                take_away(node.folder / "tier" / part)
            node.tier.look_around()  # it sees that its disk is another one
        before = bucket.calls["get"]
        fresh = [store_on(node, journal) for node in cluster.nodes]
        for store in fresh:
            opened.callback(store.leases.close)
        assert {clone(store) for store in fresh} == packs
        assert 0 < bucket.calls["get"] - before <= len(cast("MemoryBucket", bucket.bucket).objects)
