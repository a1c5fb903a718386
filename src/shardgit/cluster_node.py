"""The composition root of a node of a cluster: its part of etcd's journal, of the blocks, and of what its peers ask."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from shardgit import clock, faultpoints
from shardgit.backup.choosing import choose_cut
from shardgit.backup.restore import (
    OWN_TABLES,
    StoreRestored,
    missing_blocks,
    put_rows,
    restore_blocks,
    rewind_store,
)
from shardgit.backup.restoring import (
    BLOCKS,
    KEY,
    REWIND,
    RestoreState,
    check_restored,
    check_same,
    restore_state,
)
from shardgit.backup.restoring import KIND as RESTORE
from shardgit.backup.source import CutSnapshot
from shardgit.blocks.clustered import ClusteredBlocks
from shardgit.blocks.layout import FORMAT_FILE
from shardgit.blocks.nodes import Nodes
from shardgit.blocks.object_store import PREFIX as BLOCKS_PREFIX
from shardgit.blocks.object_store import ObjectBlocks, open_blocks_bucket
from shardgit.blocks.tier import Tier
from shardgit.cluster.holders import ClusterHolders
from shardgit.cluster.members import join, membership
from shardgit.cluster.owners import Owners
from shardgit.cluster.records import sessions_of
from shardgit.cluster.session import Session
from shardgit.errors import AlreadyExists, InvalidArgument, JournalCorrupt, NodeMissing, Refused
from shardgit.etcd.access import Access
from shardgit.etcd.client import Etcd
from shardgit.etcdpb import etcd_pb2 as pb
from shardgit.holders import LocalHolders
from shardgit.journal.bucket_bundles import BucketBundles
from shardgit.journal.bundle_garbage import BundleGarbage
from shardgit.journal.etcd import EtcdJournal
from shardgit.journal.interface import END, Compare, Delete, Put
from shardgit.journal.operations import operation_key, put_operation
from shardgit.journal.records import RING_KEY, STORE_KEY, StoreRecord
from shardgit.limits import DEFAULT, MIB, Limits
from shardgit.oid import BlockId
from shardgit.operate.nodes import number_of
from shardgit.operate.operation import running
from shardgit.refs.table import RefTable
from shardgit.ring.nodes import NodeRing
from shardgit.rpc.credentials import CallingCredentials
from shardgit.rpc.peers import GrpcPeers
from shardgit.service.store import Store
from shardgit.tls import TlsFiles
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.backup.target import Target
    from shardgit.buckets.bucket import Bucket
    from shardgit.config import ServeConfig
    from shardgit.journal.interface import Journal, JournalSnapshot, Row
    from shardgit.operate.operation import Control
    from shardgit.sections import ClusterConfig

MARK = "cluster"  # the object that says whose blocks lie there
PROBE = "probe"  # a folder that is not there
FOREIGN_PART = 4  # of a node's copies one in so many is of blocks that the ring gives to others

# Each block is a request to S3. With 1 MiB a cold clone of git.git took 330 of them, with 2 MiB 171 and 0.73 of the
# time; with 4 MiB it was no faster (loopback, three nodes that were all emptied).
IN_CLUSTER = replace(DEFAULT, block_target_bytes=2 * MIB - 16)


@dataclass(frozen=True, slots=True)
class Node:
    """A process of a node: the cluster's store, the node's number, its blocks as peers ask for them.

    ``bundles`` sweeps what no commit names any more. With ``tls`` peers must show certificates.
    """

    store: Store
    number: int
    blocks: ClusteredBlocks
    bundles: BundleGarbage
    tls: TlsFiles | None


@contextmanager
def open_node(
    config: ServeConfig,
    *,
    threads: int | None = None,
    limits: Limits = IN_CLUSTER,
    joining: bool = True,
    restoring: bool = False,
) -> Iterator[Node]:
    """Open the cluster's store as one process of a node; the first node of all makes the cluster.

    ``joining``: a node that is new becomes a member, and what has changed of one that is is taken over; else it is
    Refused, and nothing is.

    What lies in the node's folder may be lost at any time. Errors: Refused for a folder with an embedded store, an
    address that another node has, blocks of another cluster, or unless ``restoring`` a cluster that is not restored to
    its end; Unavailable when etcd does not answer.
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
        tls = peer_tls(config.cluster)
        bucket = open_blocks_bucket(config.blocks.url)
        bundles = BucketBundles(bucket)
        journal = EtcdJournal(
            folder / "journal",
            access_of(config.cluster),
            bundles,
            prefix=f"{config.cluster.name}/".encode(),
        )
        opened.callback(journal.close)
        journal.fresh_sync()  # what a node has of etcd may be from before it was down
        founded = StoreRecord(_identity(journal, bucket))
        number = _join(journal, config, founded) if joining else _member(journal, config)
        session = Session(journal.etcd, journal.keys, number, lease_s=int(config.cluster.lease_s))
        opened.callback(session.close)
        journal.fresh_sync()  # no lease is older than the session
        if not restoring:
            with journal.snapshot() as snapshot:
                check_restored(snapshot)  # who restores looks for sessions behind its own row
        newest = _NewestRing(journal)
        ring = newest.now()
        nodes = Nodes(number, ring)
        blocks = ClusteredBlocks(
            ObjectBlocks(bucket, workers),
            _tier(config),
            GrpcPeers(nodes, credentials=CallingCredentials(tls) if tls is not None else None),
            nodes,
            workers,
            locks=scratch,
            newest=newest,
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
        store.leases.fences = session.fences
        store.holders = ClusterHolders(journal, session, LocalHolders(store.leases, journal))
        garbage = BundleGarbage(journal, bundles, grace_s=limits.orphan_age_s)
        opened.pop_all()  # from here on the store closes them, but for the session
        try:
            yield Node(store, number, blocks, garbage, tls)
        finally:
            store.workers.close()  # what they do still wants the session
            session.close()
            store.close()


def restore_node(
    target: Target,
    config: ServeConfig,
    *,
    backup: str | None = None,
    at_ms: int | None = None,
    prepare: bool = False,
    control: Control,
) -> StoreRestored:
    """Restore a whole store from a backup into a cluster that is empty, or that an earlier call was stopped over.

    The backup is that of the id, the newest one without; with ``at_ms`` the refs are those of that moment. With
    ``prepare`` only its blocks are brought, so that a restore of a later backup is short. Errors: BackupMissing,
    BackupCorrupt, AlreadyExists for a cluster with repositories, Refused while its nodes are served, Stopped.
    """
    begun = clock.monotonic()
    target.load()
    with open_node(config, restoring=True) as node, running(node.store, RESTORE):
        journal = node.store.journal
        with journal.snapshot() as snapshot:
            found = restore_state(snapshot)
            used = next((row for row in _all_rows(snapshot) if row.key[:1] not in OWN_TABLES), None)
        if found is None:
            if used is not None:
                raise AlreadyExists(
                    "cluster is not empty; take another name for it", cluster=config.cluster.name
                )
            cut = choose_cut(target, backup=backup, at_ms=at_ms)
            found = RestoreState(target.bucket.where, cut.facts.id, at_ms or 0)
            if not prepare:
                journal.commit_sync([Compare(KEY, 0)], [put_operation(RESTORE, found)])
        _check_alone(journal)
        check_same(found, backup, at_ms)
        cut = target.cut(found.backup)
        brought = 0
        if found.phase == BLOCKS:
            with target.reading(found.backup):
                ids = missing_blocks(node.store, [BlockId(block) for block in cut.block_ids()])
                brought = restore_blocks(node.store, target, ids, control=control)
                if not prepare:
                    put_rows(node.store, CutSnapshot(target, cut), cut, control=control)
            if not prepare:
                # commit point: before it the cluster is not opened, after it it is restored, but for an earlier moment.
                rest = put_operation(RESTORE, replace(found, phase=REWIND))
                faultpoints.reach("cluster.before_restored")
                journal.commit_sync([], [rest if found.at_ms else Delete(operation_key(RESTORE))])
                faultpoints.reach("cluster.after_restored")
        if found.at_ms and not prepare:
            rewind_store(node.store, found, control=control)
    return StoreRestored(
        path=config.cluster.name,
        store=cut.facts.store,
        backup=cut.facts.id,
        at_ms=found.at_ms or cut.facts.taken_ms,
        repositories=0 if prepare else cut.facts.repositories,
        rows=0 if prepare else cut.facts.rows,
        blocks=cut.facts.blocks,
        bytes=brought,
        seconds=clock.monotonic() - begun,
    )


def check_node(config: ServeConfig) -> None:
    """Look whether a node could be opened: its files, etcd, the object store.

    Errors: InvalidArgument, Refused, Unavailable.
    """
    peer_tls(config.cluster)
    etcd = Etcd(access_of(config.cluster))
    try:
        etcd.range(pb.RangeRequest(key=config.cluster.name.encode()))
    finally:
        etcd.close()
    bucket = open_blocks_bucket(config.blocks.url)
    next(iter(bucket.list(PROBE)), None)  # a missing bucket shows in a list only


def _check_alone(journal: Journal) -> None:
    """Refuse while other processes have the cluster open; those that come later see that it is being restored."""
    journal.fresh_sync()
    with journal.snapshot() as snapshot:
        others = sum(1 for _ in sessions_of(snapshot)) - 1
    if others > 0:
        raise Refused("nodes of the cluster are served; stop them first", processes=others)


def _all_rows(snapshot: JournalSnapshot) -> Iterator[Row]:
    return snapshot.range(b"\0", END)


def _identity(journal: EtcdJournal, bucket: Bucket) -> bytes:
    """Return the cluster's id, which stands beside its blocks, too: gc deletes what its journal does not name.

    Errors: Refused where the blocks are another cluster's.
    """
    with journal.snapshot() as snapshot:
        row = snapshot.get(STORE_KEY)
    marked = bucket.get(MARK)
    if row is None:
        # The first node of all, perhaps once more; or somebody took another etcd, or another name.
        if any(True for _ in bucket.list(BLOCKS_PREFIX)):
            raise Refused(
                "blocks lie there that this cluster's etcd knows nothing of; take another prefix",
                url=bucket.where,
            )
        if marked is None:
            bucket.create(MARK, uuid4().hex.encode())
            marked = bucket.get(MARK)
    try:
        found = bytes.fromhex((marked or b"").decode("ascii"))
    except ValueError:
        found = b""
    if len(found) != 16 or (row is not None and StoreRecord.decode(row.value).id != found):
        raise Refused("blocks there are another cluster's, or none's", url=bucket.where)
    return found


def _join(journal: EtcdJournal, config: ServeConfig, founded: StoreRecord) -> int:
    return join(
        journal,
        config.cluster.node_name,
        config.peer_address,
        zone=config.cluster.zone,
        weight=config.cluster.weight,
        first=(Put(STORE_KEY, founded.encode()),),
    )


def _member(journal: EtcdJournal, config: ServeConfig) -> int:
    """Return the number of a node that has joined."""
    try:
        with journal.snapshot() as snapshot:
            return number_of(membership(snapshot), config.cluster.node_name)
    except NodeMissing as cause:
        raise Refused(
            "node is no member of the cluster; serve it first", node=config.cluster.node_name
        ) from cause


class _NewestRing:
    """Reads the ring of the journal, None while it is the one that was read last."""

    def __init__(self, journal: EtcdJournal) -> None:
        self._journal = journal
        self._revision = 0

    def __call__(self) -> NodeRing | None:
        with self._journal.snapshot() as snapshot:
            row = snapshot.get(RING_KEY)
        if row is None or row.revision == self._revision:
            return None
        self._revision = row.revision
        return NodeRing.decode(row.value)

    def now(self) -> NodeRing:
        """Return the ring at the first look."""
        found = self()
        if found is None:
            raise JournalCorrupt("cluster has no ring")
        return found


def _tier(config: ServeConfig) -> Tier:
    folders = [Path(path) for path in config.blocks.tier_paths] or [config.folder / "tier"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    foreign = config.blocks.tier_bytes // FOREIGN_PART
    owned = config.blocks.tier_bytes - foreign
    return Tier(folders, owned_bytes=owned, foreign_bytes=foreign)


def access_of(cluster: ClusterConfig) -> Access:
    """Return how etcd is reached. Errors: InvalidArgument for files that cannot be read."""
    return Access(
        cluster.etcd,
        user=cluster.user,
        password=_read(cluster.password_file).decode().strip(),
        ca=_read(cluster.ca),
        certificate=_read(cluster.certificate),
        key=_read(cluster.key),
    )


def peer_tls(cluster: ClusterConfig) -> TlsFiles | None:
    """Return what a node shows to the others, and wants to be shown; None without TLS. Errors: Refused."""
    if not cluster.peer_ca:
        return None
    return TlsFiles(cluster.peer_certificate, cluster.peer_key, cluster.peer_ca)


def _read(path: str) -> bytes:
    if not path:
        return b""
    try:
        return Path(path).read_bytes()
    except OSError as cause:
        raise InvalidArgument(
            "file of credentials cannot be read", path=path, cause=cause.strerror
        ) from cause
