"""Making rings: bounded load over measured bytes, zones, minimal movement.

Every shard has a quota: its share by weight of the bytes, or of the partitions where nothing is
measured, as far as zones and replicas allow. A partition stays where it is unless its shard left,
its zone clashes with another replica's, or its shard is over its quota while another is under.
What must find a place goes to the shard furthest below its quota. So a change moves what it must
and little more, and no shard ends more than SLACK or one partition above its quota.

The same input and seed give the same ring on every machine.
"""

from __future__ import annotations

import heapq
import math
import struct
from array import array
from collections import deque
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit.errors import InvalidArgument
from shardgit.ring.ring import (
    PARTITIONS,
    REPLICAS_MAX,
    SHARDS_MAX,
    WEIGHT_MAX,
    ZONE_MAX,
    Ring,
    RingShard,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NOBODY = 0xFFFF
SLACK = 0.01  # a shard this near to its quota is left alone
CHANCE = 0.005  # how much of its quota luck counts for or against a shard
CHAINS_MAX = 64  # ways that are tried where zones forbid the straight one
PASSES_MAX = 8  # passes over the table that look for moves; the second rarely finds one


@dataclass(frozen=True, slots=True)
class Move:
    """One replica of one partition that goes to another shard.

    ``source`` is the shard that gives it up; where a replica is added, one that keeps it.
    """

    partition: int
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
    """Return a ring over ``shards``; with ``before``, one that differs from it little.

    ``bytes_by_partition`` are 65,536 measured sizes; without them all partitions count the same.
    ``seed`` has a say in who gets what, not in how much. The epoch is one above ``before``'s.
    Errors: InvalidArgument for counts, weights or numbers that make no ring.
    """
    _check(shards, replicas, seed)
    known = tuple(sorted(shards, key=lambda shard: shard.number))
    epoch = before.epoch + 1 if before is not None else 1
    alive = [shard for shard in known if shard.weight > 0]
    if len(alive) == 1:  # nothing to deal, which takes longer than all else of a new store
        loads = _loads(bytes_by_partition)
        return Ring(epoch, seed, known, (array("H", [alive[0].number]) * len(loads),))
    deal = _Deal(alive, replicas, _loads(bytes_by_partition), seed)
    if before is not None:
        deal.keep(before)
    deal.fill()
    for _ in range(PASSES_MAX):
        if not deal.level() and not deal.chain():
            break
    return Ring(epoch, seed, known, tuple(deal.table))


def plan(before: Ring, after: Ring) -> list[Move]:
    """Return what has to be copied to get from one ring to another, by rising partition.

    Replicas that are merely given up are in no move.
    """
    found = []
    for partition in range(PARTITIONS):
        old, new = before.shards_of(partition), after.shards_of(partition)
        if old == new:
            continue
        gone = [shard for shard in old if shard not in new]
        for shard in new:
            if shard not in old:
                found.append(Move(partition, gone.pop(0) if gone else old[0], shard))
    return found


def shares(shards: Sequence[RingShard], *, replicas: int = 1) -> dict[int, float]:
    """Return each shard's fair part of all replicas; together they make ``replicas``.

    That is by weight, but no shard keeps more than one replica of everything, and no zone more
    than one where there are zones for all replicas.
    """
    alive = sorted((s for s in shards if s.weight > 0), key=lambda shard: shard.number)
    zones: dict[int, list[RingShard]] = {}
    for shard in alive:
        zones.setdefault(shard.zone, []).append(shard)
    most = max(replicas - len(zones), 0) + 1  # replicas that one zone may have to keep
    least = 1.0 if len(zones) <= replicas else 0.0
    of_zone = _divide(
        float(replicas),
        [sum(shard.weight for shard in members) for members in zones.values()],
        [least] * len(zones),
        [float(min(most, len(members))) for members in zones.values()],
    )
    found: dict[int, float] = {}
    for members, part in zip(zones.values(), of_zone, strict=True):
        weights = [shard.weight for shard in members]
        parts = _divide(part, weights, [0.0] * len(members), [1.0] * len(members))
        found.update(zip((shard.number for shard in members), parts, strict=True))
    return found


def _divide(
    total: float, weights: list[float], least: list[float], most: list[float]
) -> list[float]:
    """Divide ``total`` by weight within bounds: the one scale at which the clamped parts fit."""

    def at(scale: float) -> list[float]:
        return [
            min(max(scale * weight, low), high)
            for weight, low, high in zip(weights, least, most, strict=True)
        ]

    low, high = 0.0, max(most) / min(weights)
    for _ in range(200):
        middle = (low + high) / 2
        if sum(at(middle)) < total:
            low = middle
        else:
            high = middle
    return at(high)


def _check(shards: Sequence[RingShard], replicas: int, seed: int) -> None:
    if not 1 <= replicas <= REPLICAS_MAX:
        raise InvalidArgument("replicas must be 1 to 3", replicas=replicas)
    if not 0 <= seed < 1 << 64:
        raise InvalidArgument("seed must be a number of 64 bits", seed=seed)
    if len(shards) > SHARDS_MAX:
        raise InvalidArgument("too many shards", shards=len(shards), limit=SHARDS_MAX)
    if len({shard.number for shard in shards}) != len(shards):
        raise InvalidArgument("two shards have one number")
    for shard in shards:
        number, zone, weight = shard.number, shard.zone, shard.weight
        if not 0 <= number < SHARDS_MAX or not 0 <= zone <= ZONE_MAX:
            raise InvalidArgument("shard or zone is out of range", shard=number, zone=zone)
        if weight and not (math.isfinite(weight) and 1 / WEIGHT_MAX <= weight <= WEIGHT_MAX):
            raise InvalidArgument("weight is out of range", shard=number, weight=weight)
    alive = sum(shard.weight > 0 for shard in shards)
    if alive < replicas:
        raise InvalidArgument("fewer shards than replicas", shards=alive, replicas=replicas)


def _loads(bytes_by_partition: Sequence[int] | None) -> list[float]:
    if bytes_by_partition is None:
        return [1.0] * PARTITIONS
    if len(bytes_by_partition) != PARTITIONS:
        raise InvalidArgument("a ring wants 65,536 sizes", sizes=len(bytes_by_partition))
    if min(bytes_by_partition) < 0:
        raise InvalidArgument("a partition's size is negative")
    # An empty partition weighs a little, so that empty ones are dealt evenly too.
    little = max(sum(bytes_by_partition) / PARTITIONS / 1000, 1e-9)
    return [size + little for size in bytes_by_partition]


def _stream(seed: int, what: bytes) -> tuple[int, ...]:
    """Return one number of 64 bits a partition: BLAKE3 over the seed, drawn out."""
    drawn = blake3(b"shardgit ring " + what + struct.pack("<Q", seed)).digest(length=8 * PARTITIONS)
    return struct.unpack(f"<{PARTITIONS}Q", drawn)


class _Deal:
    """A ring in the making."""

    def __init__(
        self, alive: list[RingShard], replicas: int, loads: list[float], seed: int
    ) -> None:
        self.table = [array("H", [NOBODY]) * PARTITIONS for _ in range(replicas)]
        self._loads = loads
        self._order = sorted(range(PARTITIONS), key=_stream(seed, b"order").__getitem__)
        # Without a little chance in who is next, shards that take turns become each other's only
        # siblings, and what one loses, few can give back.
        self._chances = cycle(_stream(seed, b"chance"))
        self._zone = {shard.number: shard.zone for shard in alive}
        self._zones = set(self._zone.values())
        total = sum(loads)
        self._mean = total / PARTITIONS
        parts = shares(alive, replicas=replicas)
        self._quota = {shard: part * total for shard, part in parts.items()}
        # What a shard holds above its quota; below, where negative.
        self._over = {shard: -quota for shard, quota in self._quota.items()}

    def keep(self, before: Ring) -> None:
        """Take over what may stay: shards that are still there, in zones that do not clash."""
        replicas = len(self.table)
        doubles_max = max(replicas - len(self._zones), 0)
        for partition in range(PARTITIONS):
            used: set[int] = set()
            firsts: list[tuple[int, int]] = []
            doubles: list[tuple[int, int]] = []
            for at, shard in enumerate(before.shards_of(partition)):
                zone = self._zone.get(shard)
                if zone is not None:
                    (doubles if zone in used else firsts).append((at, shard))
                    used.add(zone)
            kept = (firsts + doubles[:doubles_max])[:replicas]
            free = [at for at in range(replicas) if all(at != own for own, _ in kept)]
            for own, shard in kept:
                self.table[own if own < replicas else free.pop()][partition] = shard
                self._over[shard] += self._loads[partition]

    def fill(self) -> None:
        """Give each free place to the shard furthest below its quota, heavy partitions first."""
        heap = [(over, shard) for shard, over in self._over.items()]
        heapq.heapify(heap)
        heavy_first = sorted(self._order, key=lambda partition: -self._loads[partition])
        for row in self.table:
            for partition in heavy_first:
                if row[partition] != NOBODY:
                    continue
                if len(self.table) == 1:  # no sibling to keep away from: whoever is first
                    shard: int | None = heapq.heappop(heap)[1]
                else:
                    shard = _first(heap, self._admits(row, partition))
                if shard is None:
                    raise AssertionError("no shard may keep a partition")
                row[partition] = shard
                self._over[shard] += self._loads[partition]
                chance = next(self._chances) / 2**64 * CHANCE * self._quota[shard]
                heapq.heappush(heap, (self._over[shard] + chance, shard))

    def level(self) -> int:
        """Move partitions from shards over their quota to shards under it; returns how many.

        Only while a shard is further from its quota than SLACK, and only where both ends gain.
        """
        moved = 0
        heap = [(over, shard) for shard, over in self._over.items() if over < 0]
        heapq.heapify(heap)
        short = {shard for _, shard in heap if self._is_short(shard)}
        for partition in self._order:
            load = self._loads[partition]
            for row in self.table:
                source = row[partition]
                over = self._over[source]
                if over <= load / 2 or not heap:
                    continue
                among = None if over > SLACK * self._quota[source] else short
                if among is not None and not among:
                    continue
                target = _first(heap, self._admits(row, partition, among), below=-load / 2)
                if target is None:
                    continue
                row[partition] = target
                self._over[source] -= load
                self._over[target] += load
                heapq.heappush(heap, (self._over[target], target))
                if not self._is_short(target):
                    short.discard(target)
                moved += 1
        return moved

    def chain(self) -> int:
        """Move along chains where zones forbid the straight way: over -> between -> short."""
        moved = 0
        shut: set[tuple[int, int]] = set()  # ends between which no partition is left to move
        for _ in range(CHAINS_MAX):
            if not any(self._wants(start, end) for start in self._over for end in self._over):
                break
            slots = self._slots()
            path = self._path(slots, shut)
            if not path:
                break
            while path and self._wants(path[0], path[-1]):
                room = 2 * min(self._over[path[0]], -self._over[path[-1]])
                # From the short end, so that each move is checked against what is there.
                for source, target in reversed(list(pairwise(path))):
                    if not self._move_one(slots, source, target, room):
                        shut.add((source, target))
                        path = []
                        break
                    moved += 1
        return moved

    def _slots(self) -> dict[int, dict[frozenset[int], list[int]]]:
        """Return the partitions of each shard by the zones that their other replicas are in."""
        slots: dict[int, dict[frozenset[int], list[int]]] = {shard: {} for shard in self._zone}
        for partition in self._order:
            home = [row[partition] for row in self.table]
            for shard in home:
                used = frozenset(self._zone[other] for other in home if other != shard)
                slots[shard].setdefault(used, []).append(partition)
        return slots

    def _path(
        self, slots: dict[int, dict[frozenset[int], list[int]]], shut: set[tuple[int, int]]
    ) -> list[int]:
        """Return the shortest way from a shard over its quota to one that is short."""
        for start in sorted(self._over, key=lambda shard: (-self._over[shard], shard)):
            if self._over[start] <= 0:
                break
            came = {start: start}
            queue = deque([start])
            while queue:
                shard = queue.popleft()
                if self._wants(start, shard):
                    path = [shard]
                    while path[-1] != start:
                        path.append(came[path[-1]])
                    return path[::-1]
                closed = [used for used, partitions in slots[shard].items() if partitions]
                for target, zone in self._zone.items():
                    if target in came or (shard, target) in shut:
                        continue
                    if any(self._open(zone, used) for used in closed):
                        came[target] = shard
                        queue.append(target)
        return []

    def _wants(self, source: int, target: int) -> bool:
        """Say whether a partition should still go, by whatever way, from one shard to another."""
        over, under = self._over[source], -self._over[target]
        beyond = over > SLACK * self._quota[source] or self._is_short(target)
        return beyond and min(over, under) > self._mean

    def _open(self, zone: int, used: frozenset[int]) -> bool:
        """Say whether a replica may stand in a zone while its siblings are in ``used``."""
        return zone not in used or used >= self._zones

    def _move_one(
        self,
        slots: dict[int, dict[frozenset[int], list[int]]],
        source: int,
        target: int,
        room: float,
    ) -> bool:
        """Move the next partition that may go and is lighter than ``room``."""
        zone = self._zone[target]
        for used, partitions in slots[source].items():
            while partitions and self._open(zone, used):
                partition = partitions.pop()
                if self._loads[partition] >= room:
                    continue
                for row in self.table:
                    if row[partition] == source and self._admits(row, partition)(target):
                        row[partition] = target
                        self._over[source] -= self._loads[partition]
                        self._over[target] += self._loads[partition]
                        return True
        return False

    def _is_short(self, shard: int) -> bool:
        return self._over[shard] < -SLACK * self._quota[shard]

    def _admits(
        self, row: array[int], partition: int, among: set[int] | None = None
    ) -> Callable[[int], bool]:
        """Return the test of who may keep one replica, given where its siblings are."""
        others = [r[partition] for r in self.table if r is not row and r[partition] != NOBODY]
        used = {self._zone[shard] for shard in others}
        if used >= self._zones:
            used = set()

        def may(shard: int) -> bool:
            if among is not None and shard not in among:
                return False
            return self._zone[shard] not in used and shard not in others

        return may


def _first(
    heap: list[tuple[float, int]], may: Callable[[int], bool], *, below: float = math.inf
) -> int | None:
    """Take the lowest entry whose shard may; None when there is none at or under ``below``."""
    passed = []
    found = None
    while heap and heap[0][0] < below:
        entry = heapq.heappop(heap)
        if may(entry[1]):
            found = entry[1]
            break
        passed.append(entry)
    for entry in passed:
        heapq.heappush(heap, entry)
    return found
