"""What every store of blocks promises: one suite over memory, a shard, and shards by ring."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import pytest
from clustering import Cluster
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgit.blocks.block import (
    BLOCK_MAX_BYTES,
    HEADER_SIZE,
    BlockKind,
    block_id,
    new_header,
    partition_of,
)
from shardgit.blocks.memory import MemoryBlocks
from shardgit.blocks.object_store import ObjectBlocks, open_blocks_bucket
from shardgit.blocks.routed import RoutedStore
from shardgit.blocks.shard import ShardStore
from shardgit.errors import BlockCorrupt
from shardgit.oid import BlockId, HashKind, PoolId
from shardgit.ring.builder import build
from shardgit.ring.ring import PARTITIONS, Ring, RingShard
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from shardgit.blocks.interface import BlockStore

POOL = PoolId(b"p" * 16)
CLUSTERED = [
    "clustered",
    pytest.param("clustered-replicas", marks=pytest.mark.cluster),
    pytest.param("clustered-s3", marks=pytest.mark.cluster),
]
KINDS = ["memory", "shard", "routed", "replicas", "objects-memory", "objects-file", *CLUSTERED]
ON_S3 = pytest.param("objects-s3", marks=pytest.mark.cluster)
LASTING = ["shard", "routed", "replicas", "objects-file", "clustered-lasting"]
MISSING = BlockId(b"\x77" * 32)


class Closes(Protocol):
    def close(self) -> None: ...


@dataclass
class Opened:
    store: BlockStore
    workers: Workers
    closers: Sequence[Closes] = field(default_factory=list)


def make_block(size: int = 3_000, seed: int = 0) -> tuple[BlockId, bytes]:
    body = random.Random(seed).randbytes(size - HEADER_SIZE)
    data = new_header(BlockKind.SEGMENT, HashKind.SHA1, POOL, size) + body
    return block_id(data), data


def make_blocks(count: int, size: int = 3_000) -> list[tuple[BlockId, bytes]]:
    return [make_block(size, seed) for seed in range(count)]


def open_store(kind: str, folder: Path, workers: Workers, url: str = "") -> Opened:
    if kind == "memory":
        return Opened(MemoryBlocks(workers), workers)
    if kind.startswith("objects"):
        url = url or ("memory://" if kind == "objects-memory" else (folder / "objects").as_uri())
        objects = ObjectBlocks(open_blocks_bucket(url), workers)
        return Opened(objects, workers, [objects])
    if kind.startswith("clustered"):
        if kind == "clustered-lasting":
            url = (folder / "objects").as_uri()
        bucket = open_blocks_bucket(url or "memory://")
        replicas = 2 if kind == "clustered-replicas" else 1
        cluster = Cluster(folder, bucket, replicas=replicas)
        return Opened(cluster.nodes[0].blocks, workers, [cluster])
    if kind == "shard":
        shard = ShardStore(folder / "shard", workers, create=True)
        return Opened(shard, workers, [shard])
    shards = {n: ShardStore(folder / f"{n:03}", workers, create=True) for n in range(4)}
    ring = ring_of_four(2 if kind == "replicas" else 1)
    return Opened(RoutedStore(ring, shards, workers), workers, list(shards.values()))


@functools.cache
def ring_of_four(replicas: int) -> Ring:
    return build([RingShard(n, n % 2) for n in range(4)], replicas=replicas)


@pytest.fixture(params=[*KINDS, ON_S3])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    workers = Workers(4)
    url = request.getfixturevalue("s3_url") if request.param.endswith("-s3") else ""
    made = open_store(request.param, tmp_path, workers, url)
    yield made
    workers.close()
    for shard in made.closers:
        shard.close()


@pytest.fixture
def store(opened: Opened) -> BlockStore:
    return opened.store


async def scanned(store: BlockStore, low: int = 0, high: int = PARTITIONS) -> list[BlockId]:
    return [block async for block, _ in store.scan(low, high)]


async def test_a_missing_block_is_none_and_not_an_error(store: BlockStore) -> None:
    assert await store.get_many([MISSING]) == [None]
    assert await store.has_many([MISSING]) == [False]
    assert store.use(MISSING, bytes) is None
    await store.delete_many([MISSING])


async def test_nothing_asked_is_nothing_answered(store: BlockStore) -> None:
    await store.put_many([])
    await store.delete_many([])
    assert await store.get_many([]) == []
    assert await store.has_many([]) == []
    assert await scanned(store) == []


async def test_a_block_comes_back_as_it_was_put(store: BlockStore) -> None:
    block, data = make_block()
    await store.put_many([(block, data)])
    assert await store.get_many([block]) == [data]
    assert store.get_many_sync([block]) == [data]
    assert store.use(block, bytes) == data


async def test_results_stand_in_the_order_of_the_ids_with_repeats_and_gaps(
    store: BlockStore,
) -> None:
    blocks = make_blocks(40)
    await store.put_many(blocks)
    asked = [blocks[n][0] for n in (7, 3, 39, 3, 0)]
    asked.insert(2, MISSING)
    by_id = dict(blocks)
    assert await store.get_many(asked) == [by_id.get(block) for block in asked]
    assert store.get_many_sync(asked) == [by_id.get(block) for block in asked]
    assert await store.has_many(asked) == [block in by_id for block in asked]


async def test_a_block_may_be_put_twice_and_twice_in_one_batch(store: BlockStore) -> None:
    block, data = make_block()
    await store.put_many([(block, data), (block, data)])
    await store.put_many([(block, data)])
    assert await store.get_many([block]) == [data]
    assert await scanned(store) == [block]


async def test_a_block_of_8_mib_comes_back_and_one_byte_more_is_refused(store: BlockStore) -> None:
    block, data = make_block(BLOCK_MAX_BYTES)
    await store.put_many([(block, data)])
    assert await store.get_many([block]) == [data]
    assert await scanned(store) == [block]
    with pytest.raises(BlockCorrupt):
        await store.put_many([make_block(BLOCK_MAX_BYTES + 1)])


@pytest.mark.parametrize("size", [64, 65, 1_000, 2_040, 4_079, 4_080, 4_081, (1 << 20) - 16])
async def test_sizes_around_the_borders_of_pages(store: BlockStore, size: int) -> None:
    block, data = make_block(size)
    await store.put_many([(block, data)])
    assert await store.get_many([block]) == [data]
    assert [row async for row in store.scan()] == [(block, size)]


async def test_a_block_that_does_not_match_its_id_is_refused_with_its_batch(
    store: BlockStore,
) -> None:
    good = make_blocks(20)
    with pytest.raises(BlockCorrupt):
        await store.put_many([*good, (good[0][0], good[1][1])])
    headless = b"x" * 100
    with pytest.raises(BlockCorrupt):
        await store.put_many([*good, (block_id(headless), headless)])
    assert await scanned(store) == []


async def test_a_deleted_block_is_gone_and_can_be_put_again(store: BlockStore) -> None:
    blocks = make_blocks(20)
    await store.put_many(blocks)
    await store.get_many([block for block, _ in blocks])
    gone = [block for block, _ in blocks[:10]]
    await store.delete_many([*gone, MISSING, gone[0]])
    assert await store.has_many([block for block, _ in blocks]) == [False] * 10 + [True] * 10
    assert await store.get_many(gone) == [None] * 10
    await store.put_many(blocks[:3])
    assert await store.get_many([block for block, _ in blocks[:3]]) == [d for _, d in blocks[:3]]


async def test_scan_tells_ids_and_sizes_by_rising_id_across_batches(store: BlockStore) -> None:
    blocks = make_blocks(700, size=200)
    await store.put_many(blocks)
    rows = [row async for row in store.scan()]
    assert rows == sorted((block, 200) for block, _ in blocks)
    assert list(store.scan_sync()) == rows


async def test_scan_keeps_to_its_partitions(store: BlockStore) -> None:
    made = make_blocks(300, size=200)
    await store.put_many(made)
    blocks = sorted(block for block, _ in made)
    at = partition_of(blocks[150])
    for low, high in [(0, at), (at, at + 1), (at, PARTITIONS), (at, at), (PARTITIONS, PARTITIONS)]:
        expected = [block for block in blocks if low <= partition_of(block) < high]
        assert await scanned(store, low, high) == expected


async def test_a_scan_outlives_puts_and_deletes_meanwhile(store: BlockStore) -> None:
    blocks = sorted(make_blocks(600, size=200))
    await store.put_many(blocks[::2])
    seen = []
    async for block, _ in store.scan():
        seen.append(block)
        if len(seen) == 5:
            await store.put_many(blocks[1::2])
            await store.delete_many([block for block, _ in blocks[:100:2]])
    assert seen == sorted(set(seen))
    assert set(seen) >= {block for block, _ in blocks[100::2]}


async def test_use_gives_the_bytes_to_a_job_and_its_result_back(store: BlockStore) -> None:
    block, data = make_block()
    await store.put_many([(block, data)])
    assert store.use(block, len) == len(data)
    assert store.use(block, lambda view: bytes(view[64:80])) == data[64:80]
    assert store.use(block, lambda view: view.readonly) is True


async def test_the_view_of_a_job_is_dead_when_the_job_has_ended(store: BlockStore) -> None:
    block, data = make_block()
    await store.put_many([(block, data)])
    kept: list[memoryview] = []
    store.use(block, kept.append)
    with pytest.raises(ValueError, match="released"):
        bytes(kept[0])


async def test_a_job_that_raises_leaves_the_store_in_order(store: BlockStore) -> None:
    block, data = make_block()
    await store.put_many([(block, data)])

    def fail(view: memoryview) -> None:
        raise KeyError(len(view))

    for _ in range(50):
        with pytest.raises(KeyError):
            store.use(block, fail)
    assert await store.get_many([block]) == [data]


def test_many_threads_put_read_and_delete_at_once(store: BlockStore) -> None:
    blocks = make_blocks(60, size=5_000)
    barrier = threading.Barrier(6)

    def work(thread: int) -> None:
        barrier.wait()
        for block, data in blocks[thread::6]:
            store.put_many_sync([(block, data)])
            assert store.get_many_sync([block]) == [data]
            assert store.use(block, bytes) == data
        mine = [block for block, _ in blocks[thread::6]]
        store.delete_many_sync(mine[:3])
        assert store.has_many_sync(mine) == [False] * 3 + [True] * (len(mine) - 3)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert len(list(store.scan_sync())) == 60 - 18


async def test_many_coroutines_put_and_read_at_once(store: BlockStore) -> None:
    blocks = make_blocks(64, size=20_000)

    async def work(part: list[tuple[BlockId, bytes]]) -> None:
        await store.put_many(part)
        assert await store.get_many([block for block, _ in part]) == [data for _, data in part]

    async with asyncio.TaskGroup() as tasks:
        for at in range(0, 64, 4):
            tasks.create_task(work(blocks[at : at + 4]))
    assert all(await store.has_many([block for block, _ in blocks]))


async def test_a_put_that_is_cancelled_has_ended_when_its_caller_goes_on(opened: Opened) -> None:
    blocks = make_blocks(16, size=500_000)
    store = opened.store
    for delay_s in (0.0, 0.0005, 0.002, 0.01):
        task = asyncio.create_task(store.put_many(blocks))
        await asyncio.sleep(delay_s)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        there = store.has_many_sync([block for block, _ in blocks])
        time.sleep(0.02)
        assert store.has_many_sync([block for block, _ in blocks]) == there
    await store.put_many(blocks)
    assert await store.get_many([blocks[0][0]]) == [blocks[0][1]]


async def test_a_read_and_a_scan_that_are_cancelled_leave_the_store_in_order(
    store: BlockStore,
) -> None:
    blocks = make_blocks(200, size=20_000)
    await store.put_many(blocks)

    async def read_on() -> None:
        while True:
            await store.get_many([block for block, _ in blocks])
            async for _ in store.scan():
                pass

    for delay_s in (0.0, 0.001, 0.01):
        task = asyncio.create_task(read_on())
        await asyncio.sleep(delay_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(await scanned(store)) == 200


@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "delete", "get"]), st.sets(st.integers(0, 11))),
        max_size=20,
    ),
    kind=st.sampled_from(LASTING),
)
def test_every_store_does_what_a_dict_does(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, set[int]]], kind: str
) -> None:
    blocks = [make_block(100 + 700 * n, n) for n in range(12)]
    workers = Workers(2)
    made = open_store(kind, tmp_path_factory.mktemp(kind), workers)
    model: dict[BlockId, bytes] = {}
    try:
        for step, chosen in steps:
            picked = [blocks[n] for n in chosen]
            ids = [block for block, _ in picked]
            if step == "put":
                made.store.put_many_sync(picked)
                model.update(picked)
            elif step == "delete":
                made.store.delete_many_sync(ids)
                for block in ids:
                    model.pop(block, None)
            assert made.store.get_many_sync(ids) == [model.get(block) for block in ids]
        rows = [(block, len(data)) for block, data in sorted(model.items())]
        assert list(made.store.scan_sync()) == rows
    finally:
        workers.close()
        for shard in made.closers:
            shard.close()


def test_blocks_outlive_the_stores_that_put_them(tmp_path: Path) -> None:
    blocks = make_blocks(30)
    for kind in LASTING:
        workers = Workers(2)
        folder = tmp_path / kind
        for _ in range(2):
            made = open_store(kind, folder, workers)
            made.store.put_many_sync(blocks)
            for shard in made.closers:
                shard.close()
        made = open_store(kind, folder, workers)
        ids = [block for block, _ in blocks]
        assert made.store.get_many_sync(ids) == [data for _, data in blocks]
        for shard in made.closers:
            shard.close()
        workers.close()
        assert os.listdir(folder)
