"""Nodes that are opened in the test's own process, over one etcd and one folder of blocks."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from etcds import free_ports

from shardgit.cluster.records import sessions_of
from shardgit.cluster_node import Node, open_node
from shardgit.config import ServeConfig
from shardgit.journal.etcd import EtcdJournal
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.sections import BlocksConfig, ClusterConfig
from shardgit.service.look import Look

if TYPE_CHECKING:
    from pathlib import Path

    from etcds import Etcds

    from shardgit.service.store import Store


class Cluster:
    """Opens nodes."""

    def __init__(self, folder: Path, etcds: Etcds) -> None:
        self.folder, self.endpoints = folder, etcds.endpoints
        self.name = f"test-{os.urandom(6).hex()}"
        self.opened = ExitStack()
        self.nodes: dict[str, Node] = {}

    def config(self, node: str) -> ServeConfig:
        (port,) = free_ports(1)
        return ServeConfig(
            data=str(self.folder / node),
            cluster=ClusterConfig(
                etcd=self.endpoints, name=self.name, node=node, listen=f"127.0.0.1:{port}"
            ),
            blocks=BlocksConfig(url=f"file://{self.folder}/blocks", tier_bytes=64 << 20),
        )

    def node(self, node: str) -> Node:
        made = self.nodes[node] = self.opened.enter_context(open_node(self.config(node)))
        return made

    def journal(self, node: Node) -> EtcdJournal:
        assert isinstance(node.store.journal, EtcdJournal)
        return node.store.journal

    def pack_of(self, store: Store, name: str) -> bytes:
        """Return the pack of a full clone."""
        store.journal.fresh_sync()
        look = Look(store, name)
        transfer = Transfer(look.state.pool.view, look.reachable, options=TransferOptions())
        return b"".join(transfer.chunks())

    def await_session(self, node: Node) -> None:
        """Wait until a node is heard of again."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            node.store.journal.fresh_sync()
            with node.store.journal.snapshot() as snapshot:
                if any(record.node == node.number for _, record in sessions_of(snapshot)):
                    return
            time.sleep(0.1)
        raise AssertionError("node is not heard of")
