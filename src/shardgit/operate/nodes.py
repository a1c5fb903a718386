"""The ring of a cluster's nodes: plans, moves with the new owners warmed before they are asked, leaving.

    settled  --plan-->  copying  --warm-->  moved  --keep-->  settled

While it copies, what is put goes to both owners, and the new one is given what the old one has on its disks. Nothing
of it has to succeed: every block is in the object store, and what was not brought is fetched when it is asked for.
Killed anywhere, the next move goes on from where the ring stands.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints
from shardgit.blocks.block import partition_of
from shardgit.blocks.clustered import ClusteredBlocks, HandedOver
from shardgit.cluster.members import Membership, membership, remove
from shardgit.errors import Conflict, NodeMissing, Refused
from shardgit.journal.interface import Compare, Put
from shardgit.journal.records import RING_KEY
from shardgit.operate.operation import running
from shardgit.operate.planning import (
    STEP_PARTITIONS,
    PlannedRing,
    RingChange,
    changed_shards,
    measure,
)
from shardgit.operate.rebalance import PREFIX_BYTES, digest_of
from shardgit.progress import Progress
from shardgit.ring.builder import build, plan
from shardgit.ring.nodes import NodeRing
from shardgit.ring.ring import PARTITIONS, Phase

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Mapping, Sequence

    from shardgit.oid import BlockId
    from shardgit.operate.operation import Control
    from shardgit.ring.ring import Ring
    from shardgit.service.store import Store

KIND = "nodes"
HEARD_S = 2.0  # until every node has heard of a ring; each looks once a second
KEEP_S = 3.0  # that old owners are asked too, once all is moved
BATCH_BLOCKS = 256
SILENCES_MAX = 3  # of a node, until nothing is handed to or from it any more
ROUNDS_MAX = 16


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """A node's part before and after; bytes of all its blocks, on its disks or not."""

    id: int
    name: str
    weight: float
    partitions_before: int
    partitions_after: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class PartitionMoved:
    """A partition that another node owns now, with its blocks as the object store listed them.

    ``digest`` is BLAKE3 over id and length (u64, LE) of each by rising id; ``ids`` are the first 8 bytes of each id, in
    base64.
    """

    partition: int
    source: int
    target: int
    blocks: int
    bytes: int
    digest: str
    ids: str


@dataclass(frozen=True, slots=True)
class NodesMoved:
    """What a move did: ring epochs, what changed its owner, and what of that the new owners were given.

    ``moves`` are partitions that have blocks. ``there`` blocks were on the new owner's disks before, ``cold`` ones on
    nobody's, ``failed`` ones did not come over.
    """

    epochs: tuple[int, ...]
    partitions: int
    blocks: int
    bytes: int
    there_blocks: int
    warmed_blocks: int
    warmed_bytes: int
    cold_blocks: int
    failed_blocks: int
    seconds: float
    nodes: tuple[NodeLoad, ...]
    moves: tuple[PartitionMoved, ...] = ()


def blocks_of(store: Store) -> ClusteredBlocks:
    """Return a store's blocks as the nodes have them. Errors: Refused on one machine."""
    if isinstance(store.blocks, ClusteredBlocks):
        return store.blocks
    raise Refused("the store is on one machine, which has shards and no nodes")


def members(store: Store) -> Membership:
    """Return the nodes and the ring. Errors: Refused on one machine."""
    blocks_of(store)
    store.journal.fresh_sync()
    with store.journal.snapshot() as snapshot:
        return membership(snapshot)


def number_of(now: Membership, name: str) -> int:
    """Return a node's number. Errors: NodeMissing."""
    for member in now.members:
        if member.record.name == name:
            return member.number
    raise NodeMissing("cluster has no such node", node=name[:200])


def plan_nodes(store: Store, weights: Mapping[int, float], *, control: Control) -> PlannedRing:
    """Return what the ring would become with other weights by number; 0 drains. Errors: InvalidArgument, Stopped."""
    return planned_nodes(members(store), weights, store, control)


def planned_nodes(
    now: Membership, weights: Mapping[int, float], store: Store, control: Control
) -> PlannedRing:
    """Return what the ring would become. Nodes that have joined without a part get none unless they are named."""
    ring = now.ring.ring
    shards = changed_shards(ring.shards, RingChange(weights=weights))
    waiting = {one.number for one in now.members if not one.partitions} - set(weights)
    dealt = [replace(one, weight=0.0) if one.number in waiting else one for one in shards]
    sizes = measure(store, control)
    after = build(
        dealt, replicas=ring.replicas, seed=ring.seed, before=ring, bytes_by_partition=sizes
    )
    known = tuple(sorted(shards, key=lambda one: one.number))
    return PlannedRing(ring, replace(after, shards=known), sizes)


def move_nodes(store: Store, weights: Mapping[int, float], *, control: Control) -> NodesMoved:
    """Give the nodes what their weights say, ``weights`` by number among these, while all are served.

    Goes on with a move that was stopped, first. Errors: Refused when another runs, InvalidArgument, Stopped.
    """
    with running(store, KIND):
        work = _Move(store, control)
        work.finish()
        return work.run(weights)


def leave(store: Store, name: str, *, control: Control) -> NodesMoved:
    """Take a node out: its part goes to the others, warm as far as it answers, then it is no member any more.

    A node that runs on serves still, and owns nothing; started again it joins again. Errors: as move_nodes,
    NodeMissing, Refused for the last node.
    """
    now = members(store)
    number = number_of(now, name)
    if not any(s.weight > 0 and s.number != number for s in now.ring.ring.shards):
        raise Refused("that is the last node that keeps blocks")
    done = move_nodes(store, {number: 0.0}, control=control)
    epoch = remove(store.journal, name, force=True)
    return replace(done, epochs=(*done.epochs, epoch))


class _Move:
    """One move, by the process that has the turn."""

    def __init__(self, store: Store, control: Control) -> None:
        self.store = store
        self.control = control
        self.blocks = blocks_of(store)
        self.begun = clock.monotonic()
        self.epochs: list[int] = []
        self.partitions = self.moved = self.moved_bytes = 0
        self.done = HandedOver()
        self.moves: list[PartitionMoved] = []
        self.silences: Counter[int] = Counter()  # of nodes

    def finish(self) -> None:
        """Bring a move to its end that was stopped."""
        ring = members(self.store).ring.ring
        if ring.phase is not Phase.SETTLED:
            self._to_the_end(ring)

    def run(self, weights: Mapping[int, float]) -> NodesMoved:
        """Move, unless everything is where it belongs."""
        now = members(self.store)
        before = now.ring.ring
        self.epochs.append(before.epoch)
        planned = planned_nodes(now, weights, self.store, self.control)

        def towards(ring: Ring) -> Ring | None:
            if ring.phase is not Phase.SETTLED:
                raise Conflict("another process moves partitions")
            shards = tuple(changed_shards(ring.shards, RingChange(weights=weights)))
            if planned.moves:
                return replace(ring, shards=shards).towards(planned.after.table)
            if shards == ring.shards:
                return None
            return replace(ring, shards=shards, epoch=ring.epoch + 1)

        ring = self._change(towards)
        if ring is not None and planned.moves:
            self._to_the_end(ring)
        return self._receipt(now, planned)

    def _change(self, make: Callable[[Ring], Ring | None]) -> Ring | None:
        """Commit the ring that is made of the one that stands; addresses may change meanwhile. None: as it is."""
        for _ in range(ROUNDS_MAX):
            now = members(self.store)
            after = make(now.ring.ring)
            if after is None:
                return None
            nodes = NodeRing(after, now.ring.addresses)
            # commit point: before it all go by the ring before, after it by this one; either leads to every block.
            faultpoints.reach("nodes.before_ring")
            if self.store.try_commit(
                [Compare(RING_KEY, now.revision)], [Put(RING_KEY, nodes.encode())]
            ):
                faultpoints.reach("nodes.after_ring")
                self.blocks.nodes.take(nodes)
                self.epochs.append(after.epoch)
                return after
        raise Conflict("ring changes too fast")

    def _to_the_end(self, ring: Ring) -> None:
        if ring.phase is Phase.MOVED:  # by one that was killed: its receipt is lost, and made anew
            self._warm(ring.other, ring)
        if ring.phase is Phase.COPYING:
            self.control.sleep(HEARD_S)
            self._warm(ring.table, replace(ring, table=ring.other))
            self._change(lambda ring: ring.moved() if ring.phase is Phase.COPYING else None)
        self.control.sleep(KEEP_S)
        self._change(lambda ring: ring.settled() if ring.phase is Phase.MOVED else None)

    def _warm(self, table: tuple[array[int], ...], ring: Ring) -> None:
        """Give the owners by a ring what those by the table before have on their disks."""
        after = replace(ring, phase=Phase.SETTLED, other=())
        lanes: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for move in plan(replace(after, table=table), after):
            lanes[move.partition].append((move.source, move.target))
        self.partitions += sum(map(len, lanes.values()))
        for low in range(0, PARTITIONS, STEP_PARTITIONS):
            share = low * self.partitions // PARTITIONS
            self.control.report(Progress("warming partitions", share, self.partitions, "objects"))
            if not any(partition in lanes for partition in range(low, low + STEP_PARTITIONS)):
                continue
            groups: dict[tuple[int, int], list[BlockId]] = defaultdict(list)
            parts: dict[tuple[int, int, int], list[tuple[BlockId, int]]] = defaultdict(list)
            for block, size in self.store.blocks.scan_sync(low, low + STEP_PARTITIONS):
                partition = partition_of(block)
                for lane in lanes.get(partition, ()):
                    groups[lane].append(block)
                    parts[partition, *lane].append((block, size))
            for key, listed in sorted(parts.items()):
                self._note(*key, sorted(listed))
            for (source, target), blocks in groups.items():
                self._hand_over(source, target, blocks)
        whole = self.partitions
        self.control.report(Progress("warming partitions", whole, whole, "objects"))

    def _note(
        self, partition: int, source: int, target: int, blocks: Sequence[tuple[BlockId, int]]
    ) -> None:
        size = sum(length for _, length in blocks)
        self.moved += len(blocks)
        self.moved_bytes += size
        ids = base64.b64encode(b"".join(block[:PREFIX_BYTES] for block, _ in blocks)).decode()
        self.moves.append(
            PartitionMoved(partition, source, target, len(blocks), size, digest_of(blocks), ids)
        )

    def _hand_over(self, source: int, target: int, blocks: Sequence[BlockId]) -> None:
        for at in range(0, len(blocks), BATCH_BLOCKS):
            some = blocks[at : at + BATCH_BLOCKS]
            if max(self.silences[source], self.silences[target]) >= SILENCES_MAX:
                self.done += HandedOver(failed=len(some))
                continue
            done = self.blocks.hand_over(source, target, some)
            if done.silent is not None:
                self.silences[done.silent] += 1
            self.done += done
            self.control.pace(done.warmed_bytes)

    def _receipt(self, now: Membership, planned: PlannedRing) -> NodesMoved:
        names = {member.number: member.record.name for member in now.members}
        return NodesMoved(
            epochs=tuple(self.epochs),
            partitions=self.partitions,
            blocks=self.moved,
            bytes=self.moved_bytes,
            there_blocks=self.done.there,
            warmed_blocks=self.done.warmed,
            warmed_bytes=self.done.warmed_bytes,
            cold_blocks=self.done.cold,
            failed_blocks=self.done.failed,
            seconds=clock.monotonic() - self.begun,
            moves=tuple(self.moves),
            nodes=tuple(
                NodeLoad(
                    id=one.id,
                    name=names.get(one.id, ""),
                    weight=one.weight,
                    partitions_before=one.partitions_before,
                    partitions_after=one.partitions_after,
                    bytes_before=one.bytes_before,
                    bytes_after=one.bytes_after,
                )
                for one in planned.summary().shards
            ),
        )
