"""Balance and movement of the ring at the size of a large cluster, by the real builder."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass

from scale.given import given
from scale.pages import count, percent, size, table
from shardgit.ring.builder import build, plan
from shardgit.ring.ring import PARTITIONS, SHARDS_MAX, Ring, RingShard

ETCD_REQUEST_MAX = 1.5 * (1 << 20)


@dataclass(frozen=True, slots=True)
class Lost:
    """What a ring moves when a zone is lost: parts of a node's fair share of the survivors."""

    replicas: int
    moved: int
    gained_mean: float  # partitions that a survivor gets
    gained_max: int


@dataclass(frozen=True, slots=True)
class Rings:
    """What the other parts of the simulation take from here."""

    page: str
    lost: dict[int, Lost]


def nodes(number: int, weights: tuple[float, ...] = (1.0,)) -> list[RingShard]:
    """Return nodes in turn over the zones and the weights."""
    zones = int(given("zones"))
    return [RingShard(n, n % zones, weights[n // zones % len(weights)]) for n in range(number)]


def sizes(dice: random.Random) -> list[int]:
    """Return the bytes of each partition: so many blocks fall into it by chance."""
    blocks = given("repositories") * given("bytes of a repository, mean") / (1 << 20) / PARTITIONS
    return [int(dice.gauss(blocks, math.sqrt(blocks)) * (1 << 20)) for _ in range(PARTITIONS)]


def spread(ring: Ring, loads: list[int]) -> tuple[float, float]:
    """Return how far the fullest and the emptiest node are from their share by weight."""
    held: Counter[int] = Counter()
    for row in ring.table:
        for shard, load in zip(row, loads, strict=True):
            held[shard] += load
    total = sum(held.values())
    weight = sum(shard.weight for shard in ring.shards)
    ratios = [held[s.number] / (total * s.weight / weight) for s in ring.shards]
    return max(ratios) - 1, min(ratios) - 1


def rings() -> Rings:
    """Build rings, lose zones, and tell."""
    loads = sizes(random.Random(1))
    rows, kept = [], {}
    few = int(given("nodes"))
    for number, weights, replicas in (
        (100, (1.0,), 1),
        (few, (1.0,), 1),
        (few, (1.0, 2.0, 4.0), 1),
        (2_000, (1.0,), 1),
        (4_000, (1.0,), 1),
        (4_000, (1.0, 2.0, 4.0), 1),
        (few, (1.0,), 3),
    ):
        ring = build(nodes(number, weights), replicas=replicas, bytes_by_partition=loads)
        most, least = spread(ring, loads)
        if number == few and len(weights) == 1:
            kept[replicas] = ring
        shown = "1" if len(weights) == 1 else "1, 2, 4"
        rows.append(
            [
                f"{number:,}",
                shown,
                str(replicas),
                f"{PARTITIONS * replicas / number:.1f}",
                percent(most),
                percent(least),
                size(len(ring.encode())),
            ]
        )
    loads_text = count(given("bytes of a repository, mean") * given("repositories") / (1 << 20))
    lost, moves = _changes(kept, few, loads)
    page = f"""## Ring

The real builder (`ring/builder.py`) over {loads_text} blocks, which fall into {PARTITIONS:,} partitions by chance.

{table(["nodes", "weights", "replicas", "partitions a node", "fullest", "emptiest", "bytes of the ring"], rows)}
A node's share comes in whole partitions, so the ring is as fine as a node has partitions: with 65 a node the
  steps are
1.5% of a share. **{PARTITIONS:,} partitions stop being enough** where the lightest node has fewer than about
  20 of them (steps of
5%): at {PARTITIONS // 20:,} nodes of one weight with one replica, three times as many with three (the format
  ends before that, at
{SHARDS_MAX:,}), and at {int(PARTITIONS / 20 * 3 / 7):,} where the lightest node weighs 3/7 of the mean. Beyond
  that 2^18 partitions would do; a ring
has its version for that. Two tables of three replicas are {size(2 * 3 * 2 * PARTITIONS)} before they are
  deflated, so a ring of
any size fits into an etcd request ({size(ETCD_REQUEST_MAX)}).

{moves}"""
    return Rings(page, lost)


def _changes(kept: dict[int, Ring], few: int, loads: list[int]) -> tuple[dict[int, Lost], str]:
    rows, lost = [], {}
    for replicas, ring in kept.items():
        one = build(nodes(few + 1), replicas=replicas, bytes_by_partition=loads, before=ring)
        joins = len(plan(ring, one))
        rows.append([str(replicas), "a node joins", f"{joins:,}", f"{joins}", ""])
        left = [shard for shard in nodes(few) if shard.zone]
        gone = build(left, replicas=replicas, bytes_by_partition=loads, before=ring)
        gained = Counter(move.target for move in plan(ring, gone))
        moved = sum(gained.values())
        lost[replicas] = Lost(replicas, moved, moved / len(left), max(gained.values()))
        rows.append(
            [
                str(replicas),
                "a zone is lost",
                f"{moved:,}",
                f"{max(gained.values())}",
                f"{moved / len(left):.1f}",
            ]
        )
    text = table(["replicas", "change", "replicas moved", "most to one node", "mean"], rows)
    note = (
        "With three replicas in three zones the builder makes the third one anew in the two zones that"
        " are left, which copies everything once more: while a zone is away the ring should rather keep"
        " two (see the last table)."
    )
    return lost, f"{text}\n{note}\n"
