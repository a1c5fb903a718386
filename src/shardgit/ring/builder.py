"""Making rings: bounded load over measured bytes, zones, minimal movement; seeded and deterministic.

Every shard has a quota: its share of the bytes (or of the partitions, where nothing is measured) by weight. What a
shard holds within its quota stays where it is; only what exceeds a quota, or stands on a shard that left, moves, to
the shards that are furthest below theirs. So a change moves what it must and no more, and no shard ends above its
quota by more than one partition.
"""

from __future__ import annotations

import heapq
import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit.errors import InvalidArgument
from shardgit.ring.ring import PARTITIONS, REPLICAS_MAX, SHARDS_MAX, Ring, RingShard

if TYPE_CHECKING:
    from collections.abc import Sequence

NOBODY = 0xFFFF


@dataclass(frozen=True, slots=True)
class Move:
    """One replica of one partition that changes its shard."""

    partition: int
    replica: int
    source: int
    target: int


def build(
    shards: Sequence[RingShard],
    *,
    replicas: int = 1,
    seed: int = 0,
    before: Ring | None = None,
    bytes_by_partition: Sequence[int] | None = None,
) -> Ring:
    """Return a ring over ``shards``; with ``before``, one that differs from it as little as balance allows.

    ``bytes_by_partition`` are 65,536 measured sizes; without them every partition counts the same.
    Errors: InvalidArgument for counts, weights or numbers that make no ring.
    """
    alive = _checked(shards, replicas)
    loads = [1.0] * PARTITIONS
    if bytes_by_partition is not None:
        if len(bytes_by_partition) != PARTITIONS:
            raise InvalidArgument("one size for each partition is wanted", sizes=len(bytes_by_partition))
        # An empty partition still weighs a little, so that empty ones are dealt evenly too.
        little = max(sum(bytes_by_partition) / PARTITIONS / 1000, 1e-9)
        loads = [size + little for size in bytes_by_partition]
    table = _start(before, replicas, {shard.number for shard in alive})
    order = sorted(range(PARTITIONS), key=_shuffle(seed).__getitem__)
    _deal(table, alive, loads, order)
    epoch = before.epoch + 1 if before is not None else 1
    return Ring(epoch, seed, tuple(sorted(shards, key=lambda s: s.number)), tuple(table))


def moves(before: Ring, after: Ring) -> list[Move]:
    """Return what changes its shard between two rings of as many replicas, sorted by partition."""
    found = []
    for partition in range(PARTITIONS):
        old, new = before.shards_of(partition), after.shards_of(partition)
        gone = [shard for shard in old if shard not in new]
        for replica, shard in enumerate(new):
            if shard not in old:
                found.append(Move(partition, replica, gone.pop(0) if gone else old[0], shard))
    return found


def _checked(shards: Sequence[RingShard], replicas: int) -> list[RingShard]:
    if not 1 <= replicas <= REPLICAS_MAX:
        raise InvalidArgument("replicas must be 1 to 3", replicas=replicas)
    if len({shard.number for shard in shards}) != len(shards):
        raise InvalidArgument("two shards have one number")
    for shard in shards:
        if not 0 <= shard.number < SHARDS_MAX or not 0 <= shard.zone < NOBODY:
            raise InvalidArgument("shard number or zone is out of range", shard=shard.number, zone=shard.zone)
        if not 0 <= shard.weight < 1e9:
            raise InvalidArgument("shard weight is out of range", shard=shard.number, weight=shard.weight)
    alive = [shard for shard in shards if shard.weight > 0]
    if len(alive) < replicas:
        raise InvalidArgument("fewer shards than replicas", shards=len(alive), replicas=replicas)
    return sorted(alive, key=lambda shard: shard.number)


def _shuffle(seed: int) -> array[int]:
    """Return one 64-bit key a partition: a stream of BLAKE3 over the seed."""
    stream = blake3(b"shardgit ring" + struct.pack("<q", seed)).digest(length=8 * PARTITIONS)
    return array("Q", stream)


def _start(before: Ring | None, replicas: int, alive: set[int]) -> list[array[int]]:
    table = [array("H", [NOBODY]) * PARTITIONS for _ in range(replicas)]
    if before is not None:
        for replica in range(min(replicas, before.replicas)):
            table[replica] = array("H", [s if s in alive else NOBODY for s in before.table[replica]])
    return table


def _deal(table: list[array[int]], alive: list[RingShard], loads: list[float], order: list[int]) -> None:
    zone = {shard.number: shard.zone for shard in alive}
    zones = len(set(zone.values()))
    quota = _quotas(alive, sum(loads), len(table))
    held = dict.fromkeys(zone, 0.0)
    for row in table:
        for partition, shard in enumerate(row):
            if shard != NOBODY:
                held[shard] += loads[partition]
    # 1. Free what exceeds a quota, in the seeded order, so that every shard gives a fair sample.
    for row in table:
        for partition in order:
            shard = row[partition]
            if shard != NOBODY and held[shard] - loads[partition] >= quota[shard] * (1 - 1e-9):
                held[shard] -= loads[partition]
                row[partition] = NOBODY
    # 2. Give what is free to the shard furthest below its quota, in another zone than its siblings where there is one.
    waiting = [(held[shard] - quota[shard], shard) for shard in zone]
    heapq.heapify(waiting)
    heavy_first = sorted(order, key=lambda partition: -loads[partition])
    for row in table:
        for partition in heavy_first:
            if row[partition] != NOBODY:
                continue
            siblings = [other[partition] for other in table if other[partition] != NOBODY]
            taken = {zone[shard] for shard in siblings} if zones >= len(table) else set()
            passed = []
            while True:
                if not waiting:  # no zone is left: any shard but a sibling
                    waiting, passed, taken = passed, [], set()
                    heapq.heapify(waiting)
                entry = heapq.heappop(waiting)
                if entry[1] not in siblings and zone[entry[1]] not in taken:
                    break
                passed.append(entry)
            for skipped in passed:
                heapq.heappush(waiting, skipped)
            shard = entry[1]
            row[partition] = shard
            heapq.heappush(waiting, (entry[0] + loads[partition], shard))


def _quotas(alive: list[RingShard], load: float, replicas: int) -> dict[int, float]:
    """Share ``load`` x ``replicas`` by weight; no shard can hold more than one replica of everything."""
    quota: dict[int, float] = {}
    left, rest = load * replicas, sorted(alive, key=lambda shard: -shard.weight)
    while rest:
        total = sum(shard.weight for shard in rest)
        shard = rest.pop(0)
        quota[shard.number] = min(load, left * shard.weight / total)
        left -= quota[shard.number]
    return quota
