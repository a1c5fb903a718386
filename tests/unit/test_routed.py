"""Blocks by ring: where they go, and what is read when replicas are gone or damaged."""

from __future__ import annotations

import random
import threading
from array import array
from typing import TYPE_CHECKING

import pytest
from waiting import WAIT_S, until

from shardgit import metrics
from shardgit.blocks.block import HEADER_SIZE, BlockKind, block_id, new_header, partition_of
from shardgit.blocks.routed import RoutedStore
from shardgit.blocks.shard import ShardStore
from shardgit.errors import BlockCorrupt, DataLoss, ShardMissing, StorageFull, Unavailable
from shardgit.oid import BlockId, HashKind, PoolId
from shardgit.ring.builder import build
from shardgit.ring.ring import RingShard
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prometheus_client import Counter

    from shardgit.ring.ring import Ring

SHARDS = [RingShard(n, n % 2) for n in range(4)]
ONE, TWO = build(SHARDS), build(SHARDS, replicas=2)


def make_blocks(count: int, size: int = 2_000) -> list[tuple[BlockId, bytes]]:
    made = []
    for seed in range(count):
        body = random.Random(seed).randbytes(size - HEADER_SIZE)
        data = new_header(BlockKind.SEGMENT, HashKind.SHA1, PoolId(bytes(16)), size) + body
        made.append((block_id(data), data))
    return made


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(2)
    yield made
    made.close()


@pytest.fixture
def shards(tmp_path: Path, workers: Workers) -> Iterator[dict[int, ShardStore]]:
    made = {n: ShardStore(tmp_path / str(n), workers, create=True) for n in range(4)}
    yield made
    for shard in made.values():
        shard.close()


@pytest.fixture
def two(shards: dict[int, ShardStore], workers: Workers) -> RoutedStore:
    return RoutedStore(TWO, shards, workers)


def rot(shard: ShardStore, block: BlockId, data: bytes) -> None:
    """Put other bytes under an id, as a disk that lies would."""
    with shard._environment.write() as transaction:
        transaction.put(block, data)
    shard._seen.discard(block)


def test_each_block_lies_where_the_ring_says_and_nowhere_else(two: RoutedStore) -> None:
    blocks = make_blocks(100)
    two.put_many_sync(blocks)
    for block, data in blocks:
        homes = TWO.shards_of(partition_of(block))
        for number, shard in two.shards.items():
            assert shard.get_many_sync([block]) == [data if number in homes else None]
    assert sum(stats.blocks for stats in two.stats().values()) == 200


def test_readers_take_turns_over_the_replicas(two: RoutedStore) -> None:
    first = [two._routes.reads(block)[0] for block, _ in make_blocks(400)]
    assert all(60 < first.count(number) < 140 for number in range(4))


def test_a_block_that_one_replica_lost_is_read_from_the_other(two: RoutedStore) -> None:
    blocks = make_blocks(40)
    ids = [block for block, _ in blocks]
    two.put_many_sync(blocks)
    (here,) = {two.shards[0].stats().blocks}
    two.shards[0].delete_many_sync(ids)
    before = value_of(metrics.BLOCK_FALLBACKS.labels("missing"))
    assert two.get_many_sync(ids) == [data for _, data in blocks]
    assert two.has_many_sync(ids) == [True] * 40
    # What was read from the other is put again behind it, and counted.
    read = value_of(metrics.BLOCK_FALLBACKS.labels("missing")) - before
    assert 0 < read <= here
    until(lambda: two.shards[0].stats().blocks == read)
    assert [block for block, _ in two.scan_sync()] == sorted(ids)


def test_a_block_damaged_in_one_replica_is_read_from_the_other(two: RoutedStore) -> None:
    (block, data), *_ = make_blocks(1)
    two.put_many_sync([(block, data)])
    for home in two._routes.reads(block):
        other = next(h for h in two._routes.reads(block) if h != home)
        rot(two.shards[home], block, data[:-1] + b"!")
        with pytest.raises(BlockCorrupt):
            two.shards[home].get_many_sync([block])
        assert two.shards[other].get_many_sync([block]) == [data]
        two.put_many_sync([(block, data)])
        assert two.shards[home].get_many_sync([block]) == [data]


def test_a_damaged_copy_is_counted_and_put_right_behind_the_read(two: RoutedStore) -> None:
    (block, data), *_ = make_blocks(1)
    two.put_many_sync([(block, data)])
    first, _ = two._routes.reads(block)
    before = value_of(metrics.BLOCK_FALLBACKS.labels("damaged"))
    repairs = metrics.BLOCK_REPAIRS.labels("done")
    repaired = value_of(repairs)
    rot(two.shards[first], block, data[:-1] + b"!")
    assert two.get_many_sync([block]) == [data]
    assert value_of(metrics.BLOCK_FALLBACKS.labels("damaged")) == before + 1
    until(lambda: is_whole(two.shards[first], block, data))
    until(lambda: value_of(repairs) == repaired + 1)
    assert two.use(block, bytes) == data


def value_of(counter: Counter) -> float:
    return float(counter._value.get())


def is_whole(shard: ShardStore, block: BlockId, data: bytes) -> bool:
    try:
        return shard.get_many_sync([block]) == [data]
    except DataLoss:
        return False


def test_a_replica_that_cannot_say_is_passed_over_and_what_only_it_may_have_is_not_missing(
    two: RoutedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(block: BlockId, job: object) -> None:
        raise Unavailable("away")

    (block, data), (unknown, _) = make_blocks(2)
    two.put_many_sync([(block, data)])
    for home in two._routes.reads(block):
        with monkeypatch.context() as patch:
            patch.setattr(two.shards[home], "use", away)
            assert two.get_many_sync([block]) == [data]
    for home in two._routes.reads(unknown):
        with monkeypatch.context() as patch:
            patch.setattr(two.shards[home], "use", away)
            with pytest.raises(Unavailable):
                two.get_many_sync([unknown])
    assert two.get_many_sync([unknown]) == [None]


class Rings:
    """A source that gives what a test has put there."""

    def __init__(self, ring: Ring) -> None:
        self.ring, self.revision = ring, 1

    def take(self, ring: Ring) -> None:
        self.ring, self.revision = ring, self.revision + 1

    def newer(self, known: int) -> tuple[int, Ring] | None:
        return None if known == self.revision else (self.revision, self.ring)

    def held(self, known: int) -> None:
        return None

    def check_open(self, number: int) -> None:
        pass

    def open_shard(self, number: int) -> ShardStore:
        raise ShardMissing("none", shard=number)

    def is_open_shard(self, number: int, shard: ShardStore) -> bool:
        return True


def test_a_copy_is_put_right_while_a_rebalance_drops_the_one_that_it_was_taken_from(
    shards: dict[int, ShardStore], workers: Workers
) -> None:
    (block, data), *_ = make_blocks(1)
    at = partition_of(block)
    (old,) = ONE.shards_of(at)
    new = (old + 1) % len(SHARDS)
    (row,) = ONE.table
    moved = ONE.towards((array(row.typecode, [*row[:at], new, *row[at + 1 :]]),)).moved()
    source = Rings(moved)
    store = RoutedStore(moved, shards, workers, source=source, revision=1)
    shards[old].put_many_sync([(block, data)])
    rot(shards[new], block, data[:-1] + b"!")
    put = shards[new].put_verified_sync
    settled = threading.Event()

    def put_and_settle(blocks: list[tuple[BlockId, bytes]]) -> None:
        put(blocks)
        if not settled.is_set():  # in another process: it settles, and sweeps the old copies
            settled.set()
            source.take(moved.settled())
            shards[old].delete_many_sync([block])

    shards[new].put_verified_sync = put_and_settle  # type: ignore[method-assign, assignment]
    assert store.get_many_sync([block]) == [data]
    assert settled.wait(WAIT_S)
    until(lambda: not store._repairing)
    assert store.get_many_sync([block]) == [data]


async def test_data_loss_only_when_no_replica_has_it_whole(two: RoutedStore) -> None:
    (block, data), *_ = make_blocks(1)
    two.put_many_sync([(block, data)])
    first, second = two._routes.reads(block)
    rot(two.shards[first], block, data[:-1] + b"!")
    two.shards[second].delete_many_sync([block])
    with pytest.raises(DataLoss):  # damaged here and missing there is not "not found"
        two.get_many_sync([block])
    with pytest.raises(DataLoss):
        await two.get_many([block, *(other for other, _ in make_blocks(9))])
    two.shards[first].delete_many_sync([block])
    assert await two.get_many([block]) == [None]


def test_a_job_that_returns_none_is_not_run_again(two: RoutedStore) -> None:
    (block, data), *_ = make_blocks(1)
    two.put_many_sync([(block, data)])
    calls: list[int] = []
    assert two.use(block, lambda view: calls.append(len(view))) is None
    assert calls == [len(data)]


def test_a_full_shard_fails_the_put_and_the_same_put_goes_through_later(
    two: RoutedStore,
) -> None:
    blocks = make_blocks(40)
    two.shards[2].bytes_max = 20_000
    with pytest.raises(StorageFull):
        two.put_many_sync(blocks)
    assert two.shards[2].stats().blocks == 0
    two.shards[2].bytes_max = None
    two.put_many_sync(blocks)
    assert two.get_many_sync([block for block, _ in blocks]) == [data for _, data in blocks]


def test_puts_from_all_workers_at_once_do_not_wait_for_each_other(
    shards: dict[int, ShardStore], workers: Workers
) -> None:
    store = RoutedStore(TWO, shards, workers)
    blocks = make_blocks(64)
    started = threading.Barrier(workers.threads)

    def put(part: list[tuple[BlockId, bytes]]) -> None:
        started.wait(10)
        store.put_many_sync(part)

    workers.map(put, [blocks[:32], blocks[32:]])
    assert all(store.has_many_sync([block for block, _ in blocks]))


def test_what_the_ring_does_not_route_to_is_not_told(
    shards: dict[int, ShardStore], workers: Workers
) -> None:
    store = RoutedStore(ONE, shards, workers)
    blocks = make_blocks(50)
    for shard in shards.values():
        shard.put_many_sync(blocks)
    rows = list(store.scan_sync())
    assert [block for block, _ in rows] == sorted(block for block, _ in blocks)
    sizes = store.measure_sync()
    assert sum(sizes) == sum(len(data) for _, data in blocks)
    assert sizes[partition_of(rows[0][0])] == 2_000


def test_a_ring_with_a_shard_that_is_not_open_is_refused(
    shards: dict[int, ShardStore], workers: Workers
) -> None:
    del shards[3]
    with pytest.raises(ShardMissing):
        RoutedStore(ONE, shards, workers)
