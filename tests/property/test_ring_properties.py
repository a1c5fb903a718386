"""Rings of any shape: deterministic, balanced, moving little, apart by zone, whole on the wire."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shardgit.errors import JournalCorrupt
from shardgit.ring.builder import build, plan, shares
from shardgit.ring.ring import PARTITIONS, Ring, RingShard

if TYPE_CHECKING:
    from collections.abc import Sequence

WEIGHTS = [0.5, 1.0, 1.0, 2.0, 4.0]
# An example deals 65,536 partitions a few times: half a second, so shrinking one takes too long.
FEW = settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[list[RingShard], int]:
    replicas = draw(st.integers(1, 3))
    count = draw(st.integers(max(2, replicas), 9))
    numbers = draw(st.permutations(range(20)))[:count]
    zones = draw(st.integers(1, 4))
    shards = [
        RingShard(number, draw(st.integers(0, zones - 1)), draw(st.sampled_from(WEIGHTS)))
        for number in numbers
    ]
    return shards, replicas


@st.composite
def measured(draw: st.DrawFn) -> list[int] | None:
    kind = draw(st.sampled_from(["nothing", "even", "sparse"]))
    if kind == "nothing":
        return None
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    if kind == "even":
        return [max(int(rng.gauss(1e7, 2e6)), 0) for _ in range(PARTITIONS)]
    sizes = [0] * PARTITIONS
    for _ in range(5_000):
        sizes[rng.randrange(PARTITIONS)] += rng.randint(1 << 19, 1 << 20)
    return sizes


def held(ring: Ring, sizes: Sequence[int]) -> dict[int, float]:
    """Each shard's part of all bytes, summing to the replicas."""
    found: dict[int, float] = {shard.number: 0.0 for shard in ring.shards}
    total = sum(sizes)
    for row in ring.table:
        for partition, shard in enumerate(row):
            found[shard] += sizes[partition] / total
    return found


def check(ring: Ring, sizes: Sequence[int] | None) -> None:
    loads = sizes or [1] * PARTITIONS
    fair = shares(ring.shards, replicas=ring.replicas)
    one = max(loads) / sum(loads)
    for shard, part in held(ring, loads).items():
        assert abs(part - fair.get(shard, 0.0)) <= 0.05 * fair.get(shard, 0.0) + one
    zone = {shard.number: shard.zone for shard in ring.shards}
    apart = min(ring.replicas, len({s.zone for s in ring.shards if s.weight}))
    for home in set(map(ring.shards_of, range(PARTITIONS))):
        assert len(set(home)) == ring.replicas
        assert len({zone[shard] for shard in home}) == apart


@FEW
@given(shapes(), measured(), st.integers(0, (1 << 64) - 1))
def test_load_follows_weights_and_replicas_stand_apart(
    shape: tuple[list[RingShard], int], sizes: list[int] | None, seed: int
) -> None:
    shards, replicas = shape
    ring = build(shards, replicas=replicas, seed=seed, bytes_by_partition=sizes)
    assert ring.epoch == 1
    assert ring.replicas == replicas
    check(ring, sizes)
    again = build(shards[::-1], replicas=replicas, seed=seed, bytes_by_partition=sizes)
    assert again == ring
    assert again.encode() == ring.encode()
    whole = Ring.decode(ring.encode())
    assert whole == ring
    assert [whole.shards_of(p) for p in range(0, PARTITIONS, 999)] == [
        ring.shards_of(p) for p in range(0, PARTITIONS, 999)
    ]


@FEW
@given(shapes(), measured(), st.data())
def test_a_change_of_shards_weights_or_zones_leads_to_a_ring_as_good(
    shape: tuple[list[RingShard], int], sizes: list[int] | None, data: st.DataObject
) -> None:
    shards, replicas = shape
    before = build(shards, replicas=replicas, bytes_by_partition=sizes)
    changed = list(shards)
    at = data.draw(st.integers(0, len(changed) - 1))
    what = data.draw(st.sampled_from(["add", "weight", "zone", "replicas", "leave", "drain"]))
    if what == "add":
        changed.append(RingShard(30, data.draw(st.integers(0, 4)), 1.0))
    elif what == "weight":
        changed[at] = replace(changed[at], weight=data.draw(st.sampled_from(WEIGHTS)))
    elif what == "zone":
        changed[at] = replace(changed[at], zone=data.draw(st.integers(0, 4)))
    elif what == "replicas":
        replicas = data.draw(st.integers(1, min(3, len(shards))))
    elif len(changed) > replicas:
        changed[at] = replace(changed[at], weight=0.0)
        if what == "leave":
            del changed[at]
    after = build(changed, replicas=replicas, before=before, bytes_by_partition=sizes)
    assert after.epoch == 2
    check(after, sizes)
    for move in plan(before, after):
        assert move.target in after.shards_of(move.partition)
        assert move.target not in before.shards_of(move.partition)
        assert move.source in before.shards_of(move.partition)
    same = build(changed, replicas=replicas, before=after, bytes_by_partition=sizes)
    assert same.table == after.table


@FEW
@given(st.integers(2, 20), st.integers(1, 3), measured(), st.integers(0, 1 << 32), st.booleans())
def test_one_of_n_equal_shards_moves_at_most_its_share_and_two_percent(
    count: int, replicas: int, sizes: list[int] | None, seed: int, joins: bool
) -> None:
    count = max(count, replicas + 1)
    large = [RingShard(number) for number in range(count)]
    loads = sizes or [1] * PARTITIONS
    old, new = (large[:-1], large) if joins else (large, large[:-1])
    before = build(old, replicas=replicas, seed=seed, bytes_by_partition=sizes)
    after = build(new, replicas=replicas, seed=seed, before=before, bytes_by_partition=sizes)
    moved = sum(loads[move.partition] for move in plan(before, after))
    assert moved / (sum(loads) * replicas) <= 1 / count + 0.02
    check(after, sizes)


RING = build([RingShard(n, n % 3, 1 + n % 2) for n in range(7)], replicas=3, seed=7).encode()


OTHER = build([RingShard(n, n % 3) for n in range(8)], replicas=3, seed=8)
MOVING = Ring.decode(RING).towards(OTHER.table)


@FEW
@given(shapes(), shapes(), st.integers(1, 3))
def test_what_is_put_under_one_ring_is_read_under_its_neighbours(
    old: tuple[list[RingShard], int], new: tuple[list[RingShard], int], replicas: int
) -> None:
    one, other = ([replace(s, weight=s.weight or 1.0) for s in shape[0]] for shape in (old, new))
    replicas = min(replicas, len(one), len(other))
    before = build(one, replicas=replicas)
    after = build(other, replicas=replicas, before=before)
    copying = before.towards(after.table)
    moved = copying.moved()
    settled = moved.settled()
    for at in range(0, PARTITIONS, 97):
        was, will = set(before.shards_of(at)), set(after.shards_of(at))
        assert set(before.writes_of(at)) == set(before.reads_of(at)) == was
        assert set(copying.writes_of(at)) == set(copying.reads_of(at)) == was | will
        assert set(moved.writes_of(at)) == will
        assert set(moved.reads_of(at)) == was | will
        assert set(settled.writes_of(at)) == set(settled.reads_of(at)) == will
        assert copying.reads_of(at)[:replicas] == before.shards_of(at)
        assert moved.reads_of(at)[:replicas] == after.shards_of(at)
    assert [ring.epoch - before.epoch for ring in (copying, moved, settled)] == [1, 2, 3]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from([RING, MOVING.encode(), MOVING.moved().encode()]))
def test_any_flipped_cut_or_added_byte_is_found(data: st.DataObject, whole: bytes) -> None:
    at = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(whole) - 1)))
    what = data.draw(st.sampled_from(["flip", "cut", "add", "drop"]))
    if what == "flip":
        bit = 1 << data.draw(st.integers(0, 7))
        broken = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
    elif what == "cut":
        broken = whole[:at]
    elif what == "add":
        broken = whole[:at] + data.draw(st.binary(min_size=1, max_size=9)) + whole[at:]
    else:
        broken = whole[:at] + whole[at + 1 :]
    try:
        Ring.decode(broken)
    except JournalCorrupt:
        return
    raise AssertionError("a broken ring was read")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_one_typed_error(data: bytes) -> None:
    try:
        Ring.decode(data)
    except JournalCorrupt:
        return
    raise AssertionError("noise was read as a ring")
