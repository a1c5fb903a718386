"""The nodes of a cluster and their ring: who joined, under which number, and who leaves.

A node that joins is a shard of the ring without a partition; a rebalance gives it some. One that is removed loses its
partitions at once: its blocks are in the object store, and the others fill themselves as they are asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from shardgit import clock, faultpoints
from shardgit.cluster.records import sessions_of
from shardgit.errors import (
    Conflict,
    InvalidArgument,
    JournalCorrupt,
    NodeMissing,
    Refused,
)
from shardgit.formats import check_row
from shardgit.journal.interface import Compare, Delete, Put, end_of
from shardgit.journal.records import RING_KEY
from shardgit.ring.builder import build
from shardgit.ring.nodes import NodeRing, is_address
from shardgit.ring.ring import SHARDS_MAX, WEIGHT_MAX, ZONE_MAX, Phase, RingShard

if TYPE_CHECKING:
    from shardgit.journal.interface import Condition, Journal, JournalSnapshot, Operation

VERSION = 1
NAME_MAX = 128
ROUNDS_MAX = 64  # against nodes that join at the same moment
_NODES, _NAMES = b"Yn", b"Yi"


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the journal knows it. Nodes of one zone fail together; ``weight`` is its share of the blocks."""

    name: str
    address: str
    zone: str = ""
    zone_number: int = 0  # as the ring has it
    weight: float = 1.0
    joined_ms: int = 0

    def encode(self) -> bytes:
        """Return the row's value."""
        return bytes([VERSION]) + msgspec.json.encode(self)

    @classmethod
    def decode(cls, value: bytes) -> NodeRecord:
        """Return what a row holds. Errors: JournalCorrupt, StoreFormatUnknown."""
        check_row("record of a node", value, VERSION)
        if value[:1] != bytes([VERSION]):
            raise JournalCorrupt("node's record is of no known version", version=value[:1].hex())
        try:
            return msgspec.json.decode(value[1:], type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as cause:
            raise JournalCorrupt("node's record does not parse", cause=str(cause)) from cause


@dataclass(frozen=True, slots=True)
class Member:
    """A node, whether it is heard of, and its part of the ring."""

    number: int
    record: NodeRecord
    processes: int  # that have a session
    partitions: int


@dataclass(frozen=True, slots=True)
class Membership:
    """The ring of a cluster with the revision of its row, and its nodes by rising number."""

    ring: NodeRing
    revision: int
    members: tuple[Member, ...]


def node_key(number: int) -> bytes:
    """Return the key of a node's record."""
    return _NODES + number.to_bytes(2, "big")


def read_ring(snapshot: JournalSnapshot) -> tuple[NodeRing, int] | None:
    """Return the ring of nodes and its row's revision, None before the first node has joined."""
    row = snapshot.get(RING_KEY)
    return (NodeRing.decode(row.value), row.revision) if row is not None else None


def join(
    journal: Journal,
    name: str,
    address: str,
    *,
    zone: str = "",
    weight: float = 1.0,
    first: tuple[Operation, ...] = (),
) -> int:
    """Make a node a member, or take over what has changed of one that is; returns its number.

    ``address`` is where its peers reach it. ``first`` is put with the ring of the first node. Errors: InvalidArgument,
    Refused when there are too many nodes or zones.
    """
    if not 1 <= len(name) <= NAME_MAX or not is_address(address):
        raise InvalidArgument(
            "node has no name or no address", node=name[:NAME_MAX], address=address
        )
    if not math.isfinite(weight) or not 0 < weight <= WEIGHT_MAX:
        raise InvalidArgument("weight is out of range", weight=weight, most=WEIGHT_MAX)
    for _ in range(ROUNDS_MAX):
        with journal.snapshot() as snapshot:
            joining = _Joining(snapshot, name)
        record = joining.record(name, address, zone, weight)
        if record == joining.before:
            return joining.number
        conditions, operations = joining.steps(record, first)
        try:
            # commit point: before it the node is no member, or as it was; after it the ring names it.
            faultpoints.reach("cluster.before_join")
            journal.commit_sync(conditions, operations)
            faultpoints.reach("cluster.after_join")
        except Conflict:
            continue
        return joining.number
    raise Conflict("nodes join too fast", node=name)


class _Joining:
    """What a snapshot says of a node that joins."""

    def __init__(self, snapshot: JournalSnapshot, name: str) -> None:
        self.nodes = dict(_records(snapshot))
        self.found = read_ring(snapshot)
        row = snapshot.get(_NAMES + name.encode())
        self.known = row is not None
        self.before: NodeRecord | None = None
        self._revision = 0
        if row is not None:
            self.number = int.from_bytes(row.value, "big")
            self.before = self.nodes.get(self.number)
            there = snapshot.get(node_key(self.number))
            if self.before is None or there is None:
                raise JournalCorrupt("node's name leads to no node", node=name)
            self._revision = there.revision
        else:
            # A node that was taken out and runs on has its number still.
            heard = {record.node for _, record in sessions_of(snapshot)}
            taken = heard | set(self.nodes)
            self.number = next((one for one in range(SHARDS_MAX) if one not in taken), -1)
            if self.number < 0:
                raise Refused("cluster has all the nodes that a ring can name", nodes=SHARDS_MAX)

    def record(self, name: str, address: str, zone: str, weight: float) -> NodeRecord:
        """Return the record that the node is to have."""
        others = [one for number, one in self.nodes.items() if number != self.number]
        taken = {other.address: other.name for other in others}
        if address in taken:
            raise Refused("another node has that address", address=address, node=taken[address])
        return NodeRecord(
            name=name,
            address=address,
            zone=zone,
            zone_number=_zone_number(zone, others, self.before),
            weight=weight,
            joined_ms=self.before.joined_ms if self.before else clock.now_ms(),
        )

    def steps(
        self, record: NodeRecord, first: tuple[Operation, ...]
    ) -> tuple[list[Condition], list[Operation]]:
        """Return the commit that makes it so."""
        name = _NAMES + record.name.encode()
        conditions: list[Condition] = [Compare(node_key(self.number), self._revision)]
        operations: list[Operation] = [Put(node_key(self.number), record.encode())]
        if not self.known:
            conditions.append(Compare(name, 0))
            operations.append(Put(name, self.number.to_bytes(2, "big")))
        shard = RingShard(self.number, record.zone_number, self._weight(record))
        if self.found is None:
            conditions.append(Compare(RING_KEY, 0))
            made = NodeRing(build([shard]), {self.number: record.address})
            return conditions, [*operations, Put(RING_KEY, made.encode()), *first]
        ring, revision = self.found
        conditions.append(Compare(RING_KEY, revision))
        operations.append(Put(RING_KEY, _with(ring, shard, record.address).encode()))
        return conditions, operations

    def _weight(self, record: NodeRecord) -> float:
        """Return the weight that the ring is to have: as it is, unless the node's own has changed."""
        if self.found is None or self.before is None or self.before.weight != record.weight:
            return record.weight
        shards = self.found[0].ring.shards
        return next((one.weight for one in shards if one.number == self.number), record.weight)


def _with(nodes: NodeRing, shard: RingShard, address: str) -> NodeRing:
    """Return the ring of the next epoch with one shard as given; no partition moves."""
    others = [one for one in nodes.ring.shards if one.number != shard.number]
    shards = tuple(sorted((*others, shard), key=lambda one: one.number))
    ring = replace(nodes.ring, epoch=nodes.epoch + 1, shards=shards)
    return NodeRing(ring, {**nodes.addresses, shard.number: address})


def _zone_number(zone: str, others: list[NodeRecord], before: NodeRecord | None) -> int:
    """Return a zone's number: 0 for none, that of a node in the same zone, else a free one."""
    if not zone:
        return 0
    known = {one.zone: one.zone_number for one in others if one.zone}
    if before is not None and before.zone == zone:
        known.setdefault(zone, before.zone_number)
    if zone in known:
        return known[zone]
    used = set(known.values())
    free = next((number for number in range(1, ZONE_MAX + 1) if number not in used), -1)
    if free < 0:
        raise Refused("cluster has all the zones that a ring can name", zones=ZONE_MAX)
    return free


def _records(snapshot: JournalSnapshot) -> list[tuple[int, NodeRecord]]:
    return [
        (int.from_bytes(row.key[len(_NODES) :], "big"), NodeRecord.decode(row.value))
        for row in snapshot.range(_NODES, end_of(_NODES))
    ]


def membership(snapshot: JournalSnapshot) -> Membership:
    """Return the cluster's nodes and ring. Errors: NodeMissing before the first has joined."""
    found = read_ring(snapshot)
    if found is None:
        raise NodeMissing("cluster has no node yet")
    nodes, revision = found
    processes: dict[int, int] = {}
    for _, session in sessions_of(snapshot):
        processes[session.node] = processes.get(session.node, 0) + 1
    members = tuple(
        Member(number, record, processes.get(number, 0), nodes.ring.partitions_of(number))
        for number, record in _records(snapshot)
    )
    return Membership(nodes, revision, members)


def remove(journal: Journal, name: str, *, force: bool = False) -> int:
    """Take a node out of the ring and the cluster; returns the ring's epoch from then on.

    Its partitions go to the others at once. Errors: NodeMissing; Refused for the last node, while partitions move, and
    for one that is heard of, unless ``force``.
    """
    for _ in range(ROUNDS_MAX):
        with journal.snapshot() as snapshot:
            row = snapshot.get(_NAMES + name.encode())
            if row is None:
                raise NodeMissing("cluster has no such node", node=name[:NAME_MAX])
            number = int.from_bytes(row.value, "big")
            now = membership(snapshot)
            there = snapshot.get(node_key(number))
        after = _without(now, number, force=force)
        conditions: list[Condition] = [
            Compare(RING_KEY, now.revision),
            Compare(node_key(number), there.revision if there is not None else 0),
        ]
        operations: list[Operation] = [
            Put(RING_KEY, after.encode()),
            Delete(node_key(number)),
            Delete(_NAMES + name.encode()),
        ]
        try:
            # commit point: before it the node is a member, after it no ring names it.
            faultpoints.reach("cluster.before_remove")
            journal.commit_sync(conditions, operations)
            faultpoints.reach("cluster.after_remove")
        except Conflict:
            continue
        return after.epoch
    raise Conflict("cluster changes too fast", node=name)


def _without(now: Membership, number: int, *, force: bool) -> NodeRing:
    ring = now.ring.ring
    if ring.phase is not Phase.SETTLED:
        raise Refused("partitions are moving; wait, or abort that first")
    left = [shard for shard in ring.shards if shard.number != number]
    if not any(shard.weight > 0 for shard in left):
        raise Refused("that is the last node that keeps blocks")
    member = next(one for one in now.members if one.number == number)
    if member.processes and not force:
        raise Refused("node is running; stop it first", node=member.record.name)
    replicas = min(ring.replicas, sum(shard.weight > 0 for shard in left))
    made = build(left, replicas=replicas, seed=ring.seed, before=ring)
    return NodeRing(made, {n: at for n, at in now.ring.addresses.items() if n != number})
