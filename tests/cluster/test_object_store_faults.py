"""Blocks in S3 while it is slow, in error or away: what is answered is right, or a typed error in bounded time."""

from __future__ import annotations

import contextlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import seaweed
from cluster.s3_proxy import S3Proxy, s3_proxy
from clustering import Cluster

from shardgit.blocks.block import HEADER_SIZE, BlockKind, block_id, new_header
from shardgit.blocks.object_store import ObjectBlocks, open_blocks_bucket
from shardgit.buckets.cloud import CloudBucket, Patience
from shardgit.errors import BlockCorrupt, PermissionRefused, Unavailable
from shardgit.oid import BlockId, HashKind, PoolId
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.cluster
PATIENCE = Patience(timeout_s=3, retry_s=20, retries=4, pause_max_s=0.2)
IMPATIENT = Patience(timeout_s=0.5, retry_s=1, retries=1, pause_max_s=0.1)


def make_blocks(count: int, size: int = 200_000) -> list[tuple[BlockId, bytes]]:
    found = []
    for seed in range(count):
        body = random.Random(seed).randbytes(size - HEADER_SIZE)
        data = new_header(BlockKind.SEGMENT, HashKind.SHA1, PoolId(b"p" * 16), size) + body
        found.append((block_id(data), data))
    return found


@pytest.fixture
def proxy(
    s3_server: seaweed.Seaweed, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Proxy]:
    with s3_proxy(s3_server.endpoint) as made:
        for key, value in seaweed.environment_for(made.endpoint).items():
            monkeypatch.setenv(key, value)
        yield made


@pytest.fixture
def store(proxy: S3Proxy, s3_url: str) -> Iterator[ObjectBlocks]:
    yield from opened(s3_url, PATIENCE)


@pytest.fixture
def impatient(proxy: S3Proxy, s3_url: str) -> Iterator[ObjectBlocks]:
    yield from opened(s3_url, IMPATIENT)


def opened(url: str, patience: Patience) -> Iterator[ObjectBlocks]:
    workers = Workers(2)
    made = ObjectBlocks(CloudBucket(url, patience=patience), workers)
    yield made
    workers.close()
    made.close()


@pytest.mark.parametrize("fault", ["error", "reset"])
def test_a_few_failures_are_sent_again(proxy: S3Proxy, store: ObjectBlocks, fault: str) -> None:
    blocks = make_blocks(6)
    ids = [block for block, _ in blocks]
    proxy.first(3, fault)
    store.put_many_sync(blocks)
    proxy.first(3, fault)
    assert store.get_many_sync(ids) == [data for _, data in blocks]
    proxy.first(3, fault)
    assert store.has_many_sync(ids) == [True] * 6
    proxy.first(2, fault)
    assert {block for block, _ in store.scan_sync()} == set(ids)
    proxy.first(2, fault)
    store.delete_many_sync(ids)
    assert store.has_many_sync(ids) == [False] * 6


def test_an_answer_that_is_cut_or_changed_is_asked_for_again(
    proxy: S3Proxy, store: ObjectBlocks
) -> None:
    ((block, data),) = make_blocks(1)
    store.put_many_sync([(block, data)])
    for fault in ("cut", "flip"):
        proxy.first(1, fault)
        assert store.get_many_sync([block]) == [data]
    proxy.first(100, "flip")
    with pytest.raises(BlockCorrupt):
        store.get_many_sync([block])


@pytest.mark.parametrize("fault", ["error", "reset", "hang"])
def test_a_store_that_is_away_is_unavailable_and_comes_back(
    proxy: S3Proxy, impatient: ObjectBlocks, fault: str
) -> None:
    kept, fresh = make_blocks(2)
    impatient.put_many_sync([kept])
    proxy.fault = lambda _: fault
    for call in (
        lambda: impatient.put_many_sync([fresh]),
        lambda: impatient.get_many_sync([kept[0]]),
        lambda: impatient.has_many_sync([kept[0]]),
        lambda: impatient.delete_many_sync([kept[0]]),
        lambda: list(impatient.scan_sync(0, 256)),
    ):
        with pytest.raises(Unavailable):
            call()
    proxy.fault = lambda _: ""
    impatient.put_many_sync([fresh])
    assert impatient.use(fresh[0], bytes) == fresh[1]


@pytest.mark.parametrize("fault", ["error", "hang"])
def test_what_a_node_asks_for_is_told_within_five_seconds(
    proxy: S3Proxy, s3_url: str, fault: str
) -> None:
    """Whatever it is and however much: a push waits for the bucket at most so long."""
    large = random.Random(1).randbytes(3 << 20)
    bucket = open_blocks_bucket(s3_url)
    bucket.put("small", b"small")
    bucket.put("large", large)
    proxy.fault = lambda _: fault

    def ask(number: int) -> float:
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            (
                lambda: bucket.put("a", b"small"),
                lambda: bucket.put("b", large),
                lambda: bucket.get("large"),
                lambda: bucket.get("small"),
                lambda: bucket.get_range("small", 0, 2),
                lambda: bucket.get_range("large", 0, 3 << 20),
                lambda: bucket.size("small"),
            )[number]()
        return time.monotonic() - begun

    with ThreadPoolExecutor(7) as threads:
        took = list(threads.map(ask, range(7)))
    assert max(took) < 5.5, took
    proxy.fault = lambda _: ""
    end = time.monotonic() + 6  # a pulse that hangs is given up, then the next one comes through
    while True:
        try:
            assert bucket.get("large") == large
            break
        except Unavailable:
            assert time.monotonic() < end
            time.sleep(0.05)
    bucket.put("b", large)
    assert bucket.get_range("b", 5, 9) == large[5:9]


def test_wrong_credentials_are_refused_and_not_sent_again(
    proxy: S3Proxy, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    bucket = CloudBucket(s3_url, patience=PATIENCE)
    before = proxy.seen["GET"]
    with pytest.raises(PermissionRefused):
        bucket.get("blocks/x")
    assert proxy.seen["GET"] == before + 1


def test_a_cold_clone_asks_s3_once_for_each_block_and_goes_on_without_it(
    tmp_path: Path, proxy: S3Proxy, s3_url: str
) -> None:
    blocks = make_blocks(20)
    ids = [block for block, _ in blocks]
    bucket = CloudBucket(s3_url, patience=IMPATIENT)
    with contextlib.closing(ObjectBlocks(bucket, Workers(1))) as store:
        store.put_many_sync(blocks)
    cluster = Cluster(tmp_path, bucket, timeout_s=60)
    try:
        before = proxy.seen["GET"]
        for node in cluster.nodes:
            with node.blocks.prefetch(ids):
                assert [node.blocks.use(block, bytes) for block in ids] == [d for _, d in blocks]
        assert proxy.seen["GET"] - before == len(ids)
        proxy.fault = lambda _: "error"
        for node in cluster.nodes:
            assert node.blocks.get_many_sync(ids) == [data for _, data in blocks]
        with pytest.raises(Unavailable):
            cluster.nodes[0].blocks.put_many_sync(make_blocks(1, size=300))
    finally:
        cluster.close()
