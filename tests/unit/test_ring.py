"""The ring and its builder, case by case."""

from __future__ import annotations

import struct
import zlib
from array import array

import pytest
from blake3 import blake3

from shardgit.errors import InvalidArgument, JournalCorrupt, StoreFormatUnknown
from shardgit.ring.builder import Move, build, plan, shares
from shardgit.ring.ring import PARTITIONS, Ring, RingShard

THREE = [RingShard(n) for n in range(3)]


@pytest.fixture(scope="module")
def ring() -> Ring:
    return build(THREE, seed=5)


def sealed(body: bytes) -> bytes:
    return body + blake3(body).digest()


def body_of(
    *,
    magic: bytes = b"SGRG",
    version: int = 1,
    replicas: int = 1,
    zero: int = 0,
    shards: tuple[bytes, ...] = (struct.pack("<HHdI", 0, 0, 1.0, 0),),
    count: int | None = None,
    table: bytes = bytes(2 * PARTITIONS),
    tail: bytes = b"",
) -> bytes:
    """A ring's bytes, made by hand from docs/formats/ring.md."""
    rows = zlib.compress(table) + tail
    count = len(shards) if count is None else count
    head = struct.pack("<4sHBBQQII", magic, version, replicas, zero, 1, 0, count, len(rows))
    return sealed(head + b"".join(shards) + rows)


def test_the_bytes_are_as_the_format_page_says() -> None:
    assert Ring.decode(body_of()) == build([RingShard(0)])


@pytest.mark.parametrize(
    "data",
    [
        body_of(magic=b"SGRX"),
        body_of(replicas=0),
        body_of(replicas=4),
        body_of(replicas=2),
        body_of(zero=1),
        body_of(shards=()),
        body_of(count=2),
        body_of(count=0xFFFFFFFF),
        body_of(shards=(struct.pack("<HHdI", 0, 0, 1.0, 1),)),
        body_of(shards=(struct.pack("<HHdI", 0, 0, float("nan"), 0),)),
        body_of(shards=(struct.pack("<HHdI", 0, 0, -1.0, 0),)),
        body_of(shards=(struct.pack("<HHdI", 0, 0xFFFF, 1.0, 0),)),
        body_of(shards=(struct.pack("<HHdI", 5_000, 0, 1.0, 0),)),
        body_of(shards=(struct.pack("<HHdI", 1, 0, 1.0, 0),)),
        body_of(shards=(struct.pack("<HHdI", 0, 0, 1.0, 0),) * 2),
        body_of(table=bytes(2 * PARTITIONS - 2)),
        body_of(table=bytes(2 * PARTITIONS + 2)),
        body_of(table=bytes(200 << 20)),
        body_of(replicas=2, table=bytes(4 * PARTITIONS)),
        body_of(tail=b"x"),
        sealed(body_of()[:-40]),
        sealed(b""),
    ],
)
def test_bytes_with_a_right_checksum_that_are_no_ring_are_refused(data: bytes) -> None:
    with pytest.raises(JournalCorrupt):
        Ring.decode(data)


def test_a_ring_of_a_newer_version_is_refused_by_name() -> None:
    with pytest.raises(StoreFormatUnknown):
        Ring.decode(body_of(version=3))


def test_one_shard_has_everything() -> None:
    ring = build([RingShard(3)])
    assert ring.shards_of(0) == ring.shards_of(PARTITIONS - 1) == (3,)
    assert ring.partitions_of(3) == PARTITIONS
    assert ring.partitions_of(0) == 0


def test_another_seed_is_another_table_as_even(ring: Ring) -> None:
    other = build(THREE, seed=6)
    assert other.table != ring.table
    assert all(abs(other.partitions_of(n) - PARTITIONS / 3) < 0.02 * PARTITIONS for n in range(3))


def test_a_table_stays_the_same_from_release_to_release() -> None:
    ring = build([RingShard(n, n % 2, 1 + n % 3) for n in range(5)], replicas=2, seed=42)
    digest = blake3(b"".join(row.tobytes() for row in ring.table)).hexdigest()
    assert digest[:32] == "051d2f9cb97421fbccb02e29d1aee6a5"


def test_the_order_in_which_shards_are_named_does_not_matter() -> None:
    weights = [(0, 0.5), (0, 0.5), (0, 1.0), (2, 2.0), (2, 4.0), (2, 0.5), (1, 4.0)]
    shards = [RingShard(number, zone, weight) for number, (zone, weight) in enumerate(weights)]
    assert build(shards, replicas=2) == build(shards[::-1], replicas=2)


def test_building_anew_without_a_change_moves_nothing(ring: Ring) -> None:
    again = build(THREE, before=ring, seed=9)
    assert again.table == ring.table
    assert again.epoch == ring.epoch + 1
    assert plan(ring, again) == []


def test_350_blocks_over_5_shards_are_within_5_percent_once_measured() -> None:
    sizes = [0] * PARTITIONS
    for n in range(350):
        sizes[(n * 7_919) % PARTITIONS] += 1 << 20
    ring = build([RingShard(n) for n in range(5)], bytes_by_partition=sizes)
    held = [0] * 5
    for partition, shard in enumerate(ring.table[0]):
        held[shard] += sizes[partition]
    assert max(held) <= 1.05 * sum(held) / 5
    assert min(held) >= 0.95 * sum(held) / 5


def test_a_drained_shard_keeps_its_row_and_nothing_else(ring: Ring) -> None:
    after = build([THREE[0], THREE[1], RingShard(2, weight=0.0)], before=ring)
    assert after.partitions_of(2) == 0
    assert [shard.number for shard in after.shards] == [0, 1, 2]
    moves = plan(ring, after)
    assert len(moves) == ring.partitions_of(2)
    assert {move.source for move in moves} == {2}


def test_siblings_of_a_shards_replicas_are_spread_over_all_others() -> None:
    ring = build([RingShard(n) for n in range(8)], replicas=2)
    pairs = {frozenset(ring.shards_of(p)) for p in range(PARTITIONS)}
    assert len(pairs) == 8 * 7 // 2


def test_a_new_zone_takes_replicas_apart() -> None:
    before = build([RingShard(0), RingShard(1)], replicas=2)
    after = build([RingShard(0), RingShard(1), RingShard(2, zone=1)], replicas=2, before=before)
    assert all(2 in after.shards_of(partition) for partition in range(PARTITIONS))
    assert len(plan(before, after)) == PARTITIONS


def test_more_replicas_are_copied_from_one_that_has_them() -> None:
    before = build(THREE)
    after = build(THREE, replicas=3, before=before)
    moves = plan(before, after)
    assert len(moves) == 2 * PARTITIONS
    assert all(move.source == before.shards_of(move.partition)[0] for move in moves)
    assert plan(after, build(THREE, replicas=1, before=after)) == []


def test_a_plan_names_partition_source_and_target() -> None:
    before = Ring(1, 0, tuple(THREE), (array("H", [0]) * PARTITIONS,))
    row = array("H", [0]) * PARTITIONS
    row[77] = 2
    after = Ring(2, 0, tuple(THREE), (row,))
    assert plan(before, after) == [Move(77, 0, 2)]


def test_shares_follow_weights_as_far_as_replicas_and_zones_allow() -> None:
    assert shares([RingShard(0, weight=1), RingShard(1, weight=3)]) == pytest.approx(
        {0: 0.25, 1: 0.75}
    )
    alone = [RingShard(0, 0), RingShard(1, 1), RingShard(2, 1), RingShard(3, 1)]
    assert shares(alone, replicas=2) == pytest.approx({0: 1, 1: 1 / 3, 2: 1 / 3, 3: 1 / 3})
    heavy = [RingShard(0, weight=10), RingShard(1), RingShard(2)]
    assert shares(heavy, replicas=2) == pytest.approx({0: 1, 1: 0.5, 2: 0.5})
    assert shares([RingShard(0), RingShard(1, weight=0)]) == pytest.approx({0: 1})


@pytest.mark.parametrize(
    ("shards", "options"),
    [
        ([], {}),
        ([RingShard(0, weight=0.0)], {}),
        (THREE, {"replicas": 0}),
        (THREE, {"replicas": 4}),
        (THREE[:2], {"replicas": 3}),
        ([RingShard(0), RingShard(0)], {}),
        ([RingShard(4_096)], {}),
        ([RingShard(-1)], {}),
        ([RingShard(0, zone=65_535)], {}),
        ([RingShard(0, weight=-1.0)], {}),
        ([RingShard(0, weight=float("nan"))], {}),
        ([RingShard(0, weight=float("inf"))], {}),
        (THREE, {"seed": -1}),
        (THREE, {"seed": 1 << 64}),
        (THREE, {"bytes_by_partition": [1, 2, 3]}),
        (THREE, {"bytes_by_partition": [-1] * PARTITIONS}),
    ],
)
def test_what_makes_no_ring_is_refused(shards: list[RingShard], options: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument):
        build(shards, **options)  # type: ignore[arg-type]
