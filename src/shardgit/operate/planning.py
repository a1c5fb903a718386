"""Plans: what a change of the ring would move, over measured bytes."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from shardgit.blocks.block import partition_of
from shardgit.errors import InvalidArgument, ShardMissing
from shardgit.progress import Progress
from shardgit.ring.builder import build, plan, shares
from shardgit.ring.ring import PARTITIONS, SHARDS_MAX, WEIGHT_MAX, RingShard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardgit.operate.operation import Control
    from shardgit.ring.builder import Move
    from shardgit.ring.ring import Ring
    from shardgit.service.store import Store

STEP_PARTITIONS = 256
LOOKED_AT_BYTES = 64  # what a block costs that is only counted, for the throttle


@dataclass(frozen=True, slots=True)
class RingChange:
    """What is thought to change: weights of shards that join, and new weights by number; 0 drains."""

    add: tuple[float, ...] = ()
    weights: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShardChange:
    """One shard before and after; shares are parts of all bytes, replicas counted."""

    id: int
    zone: int
    weight: float
    partitions_before: int
    partitions_after: int
    bytes_before: int
    bytes_after: int
    share_after: float
    share_wanted: float


@dataclass(frozen=True, slots=True)
class Flow:
    """All that goes from one shard to another."""

    source: int
    target: int
    partitions: int
    bytes: int


@dataclass(frozen=True, slots=True)
class RingPlan:
    """A plan as it is shown."""

    epoch: int
    replicas: int
    bytes: int
    moved_bytes: int
    moved_share: float
    moved_partitions: int
    shards: tuple[ShardChange, ...]
    flows: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class PlannedRing:
    """The ring as it is, the one to come, and the bytes of each partition (one replica)."""

    before: Ring
    after: Ring
    sizes: array[int]

    @property
    def moves(self) -> list[Move]:
        """What has to be copied, by rising partition."""
        return plan(self.before, self.after)

    def summary(self) -> RingPlan:
        """Return the plan as it is shown."""
        replicas = self.after.replicas
        total = sum(self.sizes) * replicas
        moves = self.moves
        flows: dict[tuple[int, int], list[int]] = {}
        for move in moves:
            flows.setdefault((move.source, move.target), []).append(self.sizes[move.partition])
        moved = sum(map(sum, flows.values()))
        return RingPlan(
            epoch=self.before.epoch,
            replicas=replicas,
            bytes=total,
            moved_bytes=moved,
            moved_share=moved / total if total else 0.0,
            moved_partitions=len(moves),
            shards=tuple(self._shards(total)),
            flows=tuple(
                Flow(source, target, len(sizes), sum(sizes))
                for (source, target), sizes in sorted(flows.items())
            ),
        )

    def _shards(self, total: int) -> list[ShardChange]:
        before, after = loads_of(self.before, self.sizes), loads_of(self.after, self.sizes)
        wanted = shares(self.after.shards, replicas=self.after.replicas)
        return [
            ShardChange(
                id=shard.number,
                zone=shard.zone,
                weight=shard.weight,
                partitions_before=self.before.partitions_of(shard.number),
                partitions_after=self.after.partitions_of(shard.number),
                bytes_before=before[shard.number],
                bytes_after=after[shard.number],
                share_after=after[shard.number] / total if total else 0.0,
                share_wanted=wanted.get(shard.number, 0.0) / self.after.replicas,
            )
            for shard in self.after.shards
        ]


def loads_of(ring: Ring, sizes: Sequence[int]) -> Counter[int]:
    """Return the bytes that a ring gives each shard."""
    loads: Counter[int] = Counter()
    for row in ring.table:
        for shard, size in zip(row, sizes, strict=True):
            loads[shard] += size
    return loads


def plan_ring(store: Store, change: RingChange | None = None, *, control: Control) -> PlannedRing:
    """Return what the ring would become with the weights that it has, and with ``change`` on top.

    Errors: InvalidArgument, ShardMissing, Stopped.
    """
    ring = store.routed.ring
    shards = changed_shards(ring.shards, change or RingChange())
    sizes = measure(store, control)
    after = build(
        shards, replicas=ring.replicas, seed=ring.seed, before=ring, bytes_by_partition=sizes
    )
    return PlannedRing(ring, after, sizes)


def changed_shards(shards: Sequence[RingShard], change: RingChange) -> list[RingShard]:
    """Return shards with a change applied; a shard that joins has a zone of its own."""
    found = {shard.number: shard for shard in shards}
    for number, weight in change.weights.items():
        if number not in found:
            raise ShardMissing("store has no such shard", shard=number)
        found[number] = replace(found[number], weight=checked_weight(weight))
    for weight in change.add:
        number = max(found) + 1
        if number >= SHARDS_MAX:
            raise InvalidArgument("too many shards", limit=SHARDS_MAX)
        zone = max(shard.zone for shard in found.values()) + 1
        found[number] = RingShard(number, zone, checked_weight(weight))
    return list(found.values())


def checked_weight(weight: float) -> float:
    """Return a weight that a ring takes; InvalidArgument otherwise."""
    if not (weight == 0 or 1 / WEIGHT_MAX <= weight <= WEIGHT_MAX):
        raise InvalidArgument("weight is out of range", weight=weight, most=WEIGHT_MAX)
    return weight


def measure(store: Store, control: Control) -> array[int]:
    """Return the bytes of each partition, replicas counted once, at the throttle's pace."""
    sizes = array("Q", bytes(8 * PARTITIONS))
    total = 0  # of a cluster it is not known
    if not store.in_cluster:
        total = sum(stats.blocks for stats in store.routed.stats().values())
        total //= store.routed.ring.replicas
    done = 0
    for low in range(0, PARTITIONS, STEP_PARTITIONS):
        seen = 0
        for block, size in store.blocks.scan_sync(low, low + STEP_PARTITIONS):
            sizes[partition_of(block)] += size
            seen += 1
        done += seen
        control.report(Progress("measuring", done, max(total, done), "blocks"))
        control.pace(seen * LOOKED_AT_BYTES)
    return sizes
