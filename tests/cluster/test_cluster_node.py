"""Nodes of a cluster put together: what one takes, the others serve."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from cluster.opening import Cluster
from reference.gits import make_history

from shardgit.cluster.members import membership
from shardgit.errors import Refused
from shardgit.journal.records import STORE_KEY
from shardgit.node import create_store
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from etcds import Etcds


pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster(etcds: Etcds, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, etcds)
    with made.opened:
        yield made


def test_what_one_node_takes_another_serves_at_once(cluster: Cluster) -> None:
    origin = make_history(cluster.folder / "origin", commits=12)
    one, two = cluster.node("one").store, cluster.node("two").store
    import_repository(one, "demo", str(origin))
    two.journal.fresh_sync()
    assert cluster.pack_of(two, "demo") == cluster.pack_of(one, "demo")
    with two.journal.snapshot() as snapshot:
        now = membership(snapshot)
        assert snapshot.get(STORE_KEY) is not None
    assert [(m.record.name, m.processes) for m in now.members] == [("one", 1), ("two", 1)]


def test_an_emptied_node_serves_the_same(cluster: Cluster) -> None:
    origin = make_history(cluster.folder / "origin", commits=12)
    one = cluster.node("one").store
    import_repository(one, "demo", str(origin))
    whole = cluster.pack_of(one, "demo")
    cluster.opened.close()
    shutil.rmtree(cluster.folder / "one")
    again = cluster.node("one").store
    assert cluster.pack_of(again, "demo") == whole
    with again.journal.snapshot() as snapshot:
        assert [m.number for m in membership(snapshot).members] == [0]


def test_a_folder_with_a_store_of_its_own_is_no_node(cluster: Cluster) -> None:
    create_store(cluster.folder / "one")
    with pytest.raises(Refused, match="store of its own"):
        cluster.node("one")


def test_a_cluster_has_no_shards(cluster: Cluster) -> None:
    with pytest.raises(Refused, match="nodes and no shards"):
        _ = cluster.node("one").store.routed
