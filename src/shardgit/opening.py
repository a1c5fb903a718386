"""What a folder or a configuration leads to: a store of one machine, or a node of a cluster."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from shardgit.blocks.layout import FORMAT_FILE, NODE_FILE, open_layout
from shardgit.config import ServeConfig
from shardgit.door import check_door
from shardgit.errors import InvalidArgument, JournalCorrupt, Refused
from shardgit.extras import has_extra, lacking
from shardgit.node import check_store, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.cluster_node import Node
    from shardgit.service.store import Store


@dataclass(frozen=True, slots=True)
class Opened:
    """An open store, and the node of a cluster that it is, if it is one."""

    store: Store
    node: Node | None = None


@contextmanager
def open_served(config: ServeConfig) -> Iterator[Opened]:
    """Open what a configuration names, to be served: a node joins its cluster. Errors: as open_store, as open_node."""
    if not config.in_cluster:
        with open_store(config.folder, detect_collisions=config.detect_collisions) as store:
            yield Opened(store)
        return
    # Not on top: commands on a store of one machine need neither etcd's client nor an object store's.
    from shardgit.cluster_node import open_node

    with open_node(config) as node:
        yield Opened(node.store, node)


@contextmanager
def open_member(config: ServeConfig) -> Iterator[Opened]:
    """Open a node that has joined its cluster, for a command. Errors: as open_node, Refused for one that has not."""
    from shardgit.cluster_node import open_node

    with open_node(config, joining=False) as node:
        yield Opened(node.store, node)


@contextmanager
def open_folder(folder: Path, *, detect_collisions: str = "push") -> Iterator[Opened]:
    """Open the store in a folder, or the node whose folder it is. Errors: as open_served."""
    if (folder / FORMAT_FILE).exists() or not (folder / NODE_FILE).exists():
        with open_store(folder, detect_collisions=detect_collisions) as store:
            yield Opened(store)
        return
    config = msgspec.structs.replace(kept_config(folder), detect_collisions=detect_collisions)
    with open_member(config) as opened:
        yield opened


def is_store(folder: Path) -> bool:
    """Say whether a folder has a store, or is a node's."""
    return (folder / FORMAT_FILE).exists() or (folder / NODE_FILE).exists()


def keep_config(config: ServeConfig) -> None:
    """Leave in a node's folder where its cluster is, for commands on it. Errors: Refused for another node's."""
    path = config.folder / NODE_FILE
    if path.exists():
        before = kept_config(config.folder).cluster
        if (before.name, before.node_name) != (config.cluster.name, config.cluster.node_name):
            raise Refused(
                "folder is another node's", path=str(config.folder), node=before.node_name
            )
    config.folder.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{NODE_FILE}.{os.getpid()}.new")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")
    fresh.replace(path)


def kept_config(folder: Path) -> ServeConfig:
    """Return the configuration that a node was served with last. Errors: JournalCorrupt."""
    path = folder / NODE_FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=ServeConfig)
    except (msgspec.DecodeError, InvalidArgument) as cause:
        raise JournalCorrupt(
            "node's configuration does not parse; serve writes it anew", path=str(path)
        ) from cause
    return msgspec.structs.replace(found, data=str(folder))


def check(config: ServeConfig) -> str:
    """Look whether what a configuration names can be opened, and open no shard; returns what it is, in words.

    Errors: NotAStore, StoreFormatUnknown, Refused, JournalCorrupt; Unavailable when etcd or the object store does not
    answer.
    """
    check_door(config)
    if "ssh" in config.listens and not has_extra("ssh"):
        raise lacking("ssh", "serving over SSH", instead="serve with --ssh off")
    if config.in_cluster:
        if (config.folder / FORMAT_FILE).exists():
            raise Refused("folder has a store of its own; a node wants another", path=config.data)
        from shardgit.cluster_node import check_node

        check_node(config)
        return f"cluster {config.cluster.name}"
    layout = open_layout(config.folder)
    for path in (layout.journal, *(place.path for place in layout.shards)):
        if not os.access(path, os.W_OK):
            raise Refused("store cannot be written to", path=str(path))
    check_store(layout)  # else each worker would say it, in the log
    return f"store {layout.store_id}"
