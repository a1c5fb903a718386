"""Nodes of a cluster put together: what one takes, the others serve."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from cluster.etcds import free_ports
from reference.gits import make_history

from shardgit.cluster.members import membership
from shardgit.cluster_node import open_node
from shardgit.config import ServeConfig
from shardgit.errors import Refused
from shardgit.journal.records import STORE_KEY
from shardgit.node import create_store
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.sections import BlocksConfig, ClusterConfig
from shardgit.service.importing import import_repository
from shardgit.service.look import Look

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster.etcds import Etcds

    from shardgit.service.store import Store

pytestmark = pytest.mark.cluster


class Cluster:
    """Opens nodes over one etcd and one folder of blocks."""

    def __init__(self, folder: Path, etcds: Etcds) -> None:
        self.folder, self.endpoints = folder, etcds.endpoints
        self.name = f"test-{os.urandom(6).hex()}"
        self.opened = ExitStack()

    def config(self, node: str) -> ServeConfig:
        (port,) = free_ports(1)
        return ServeConfig(
            data=str(self.folder / node),
            cluster=ClusterConfig(
                etcd=self.endpoints, name=self.name, node=node, listen=f"127.0.0.1:{port}"
            ),
            blocks=BlocksConfig(url=f"file://{self.folder}/blocks", tier_bytes=64 << 20),
        )

    def node(self, node: str) -> Store:
        return self.opened.enter_context(open_node(self.config(node)))


@pytest.fixture
def cluster(etcds: Etcds, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, etcds)
    with made.opened:
        yield made


def pack_of(store: Store, name: str) -> bytes:
    look = Look(store, name)
    transfer = Transfer(look.state.pool.view, look.reachable, options=TransferOptions())
    return b"".join(transfer.chunks())


def test_what_one_node_takes_another_serves_at_once(cluster: Cluster) -> None:
    origin = make_history(cluster.folder / "origin", commits=12)
    one, two = cluster.node("one"), cluster.node("two")
    import_repository(one, "demo", str(origin))
    two.journal.fresh_sync()
    assert pack_of(two, "demo") == pack_of(one, "demo")
    with two.journal.snapshot() as snapshot:
        now = membership(snapshot)
        assert snapshot.get(STORE_KEY) is not None
    assert [(m.record.name, m.processes) for m in now.members] == [("one", 1), ("two", 1)]


def test_an_emptied_node_serves_the_same(cluster: Cluster) -> None:
    origin = make_history(cluster.folder / "origin", commits=12)
    one = cluster.node("one")
    import_repository(one, "demo", str(origin))
    whole = pack_of(one, "demo")
    cluster.opened.close()
    shutil.rmtree(cluster.folder / "one")
    again = cluster.node("one")
    assert pack_of(again, "demo") == whole
    with again.journal.snapshot() as snapshot:
        assert [m.number for m in membership(snapshot).members] == [0]


def test_a_folder_with_a_store_of_its_own_is_no_node(cluster: Cluster) -> None:
    create_store(cluster.folder / "one")
    with pytest.raises(Refused, match="store of its own"):
        cluster.node("one")


def test_a_cluster_has_no_shards(cluster: Cluster) -> None:
    with pytest.raises(Refused, match="nodes and no shards"):
        _ = cluster.node("one").routed
