"""The composition root of a node of a cluster: its part of etcd's journal, of the blocks, and of what its peers ask."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

from shardgit.blocks.clustered import ClusteredBlocks
from shardgit.blocks.layout import FORMAT_FILE
from shardgit.blocks.nodes import Nodes
from shardgit.blocks.object_store import ObjectBlocks
from shardgit.blocks.tier import Tier
from shardgit.buckets.cloud import CloudBucket
from shardgit.buckets.folder import FolderBucket
from shardgit.cluster.members import join, read_ring
from shardgit.cluster.owners import Owners
from shardgit.cluster.session import Session
from shardgit.errors import InvalidArgument, JournalCorrupt, Refused
from shardgit.etcd.access import Access
from shardgit.journal.bucket_bundles import BucketBundles
from shardgit.journal.etcd import EtcdJournal
from shardgit.journal.interface import Put
from shardgit.journal.records import STORE_KEY, StoreRecord
from shardgit.limits import DEFAULT, Limits
from shardgit.refs.table import RefTable
from shardgit.rpc.peers import GrpcPeers
from shardgit.service.store import Store
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.buckets.bucket import Bucket
    from shardgit.config import ServeConfig
    from shardgit.ring.nodes import NodeRing
    from shardgit.sections import ClusterConfig

FOREIGN_PART = 4  # of a node's copies one in so many is of blocks that the ring gives to others


@contextmanager
def open_node(
    config: ServeConfig, *, threads: int | None = None, limits: Limits = DEFAULT
) -> Iterator[Store]:
    """Open the cluster's store as one process of a node; the first node of all makes the cluster.

    What lies in the node's folder may be lost at any time. Errors: Refused for a folder with an embedded store, or an
    address that another node has; Unavailable when etcd does not answer.
    """
    folder = config.folder
    if (folder / FORMAT_FILE).exists():
        raise Refused(
            "folder has a store of its own; a node of a cluster wants another", path=str(folder)
        )
    scratch = folder / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        workers = Workers(threads or os.cpu_count() or 1)
        opened.callback(workers.close)
        bucket = bucket_of(config.blocks.url)
        journal = EtcdJournal(
            folder / "journal",
            access_of(config.cluster),
            BucketBundles(bucket),
            prefix=f"{config.cluster.name}/".encode(),
        )
        opened.callback(journal.close)
        number = join(
            journal,
            config.cluster.node_name,
            config.peer_address,
            zone=config.cluster.zone,
            weight=config.cluster.weight,
            first=(Put(STORE_KEY, StoreRecord(uuid4().bytes).encode()),),
        )
        ring = _ring(journal)
        session = Session(journal.etcd, journal.keys, number, lease_s=int(config.cluster.lease_s))
        opened.callback(session.close)
        nodes = Nodes(number, ring)
        blocks = ClusteredBlocks(
            ObjectBlocks(bucket, workers),
            _tier(config, workers),
            GrpcPeers(nodes),
            nodes,
            workers,
            locks=scratch,
            newest=partial(_ring, journal),
        )
        store = Store(
            journal=journal,
            blocks=blocks,
            refs=RefTable(blocks),
            workers=workers,
            limits=limits,
            scratch=scratch,
            turns=Owners(journal, session),
            detect_collisions=config.detect_collisions,
        )
        opened.pop_all()  # from here on the store closes them, but for the session
        try:
            yield store
        finally:
            session.close()
            store.close()


def _ring(journal: EtcdJournal) -> NodeRing:
    with journal.snapshot() as snapshot:
        found = read_ring(snapshot)
    if found is None:
        raise JournalCorrupt("cluster has no ring")
    return found[0]


def _tier(config: ServeConfig, workers: Workers) -> Tier:
    folders = [Path(path) for path in config.blocks.tier_paths] or [config.folder / "tier"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    foreign = config.blocks.tier_bytes // FOREIGN_PART
    owned = config.blocks.tier_bytes - foreign
    return Tier(folders, workers, owned_bytes=owned, foreign_bytes=foreign)


def bucket_of(url: str) -> Bucket:
    """Return where blocks are kept. Errors: InvalidArgument."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        return CloudBucket(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise InvalidArgument("not a folder of this machine; write file:///PATH", url=url[:200])
    folder = Path(parts.path)
    folder.mkdir(parents=True, exist_ok=True)
    return FolderBucket(folder)


def access_of(cluster: ClusterConfig) -> Access:
    """Return how etcd is reached. Errors: InvalidArgument for files that cannot be read."""

    def read(path: str) -> bytes:
        if not path:
            return b""
        try:
            return Path(path).read_bytes()
        except OSError as cause:
            raise InvalidArgument(
                "file of etcd's credentials cannot be read", path=path, cause=cause.strerror
            ) from cause

    return Access(
        cluster.etcd,
        user=cluster.user,
        password=read(cluster.password_file).decode().strip(),
        ca=read(cluster.ca),
        certificate=read(cluster.certificate),
        key=read(cluster.key),
    )
