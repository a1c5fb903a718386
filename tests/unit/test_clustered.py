"""Blocks of a cluster: three nodes in one process, peers over gRPC, one bucket in memory."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from clustering import Cluster, CountedBucket, ring_at, take_away
from hypothesis import given
from hypothesis import strategies as st
from moved import Moved
from waiting import until

from shardgit.blocks.block import (
    BLOCK_MAX_BYTES,
    HEADER_SIZE,
    BlockKind,
    block_id,
    new_header,
    partition_of,
)
from shardgit.blocks.clustered import ClusterLimits
from shardgit.blocks.flights import Flights
from shardgit.blocks.tier import OWNED
from shardgit.buckets.folder import FolderBucket
from shardgit.buckets.memory import MemoryBucket
from shardgit.errors import (
    BlockCorrupt,
    InvalidArgument,
    JournalCorrupt,
    RingStale,
    ShardgitError,
    StoreFormatUnknown,
    Unavailable,
)
from shardgit.filelock import FileLock
from shardgit.oid import BlockId, HashKind, PoolId
from shardgit.ring.nodes import NodeRing, is_address
from shardgit.rpc.peer import MESSAGE_BYTES, Joining, ids_of, in_messages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POOL = PoolId(b"p" * 16)
PATIENT_S = 60.0  # a busy machine must not look like a node that is down


def make_block(size: int = 3_000, seed: int = 0) -> tuple[BlockId, bytes]:
    body = random.Random(seed).randbytes(size - HEADER_SIZE)
    data = new_header(BlockKind.SEGMENT, HashKind.SHA1, POOL, size) + body
    return block_id(data), data


@pytest.fixture
def bucket() -> CountedBucket:
    return CountedBucket(MemoryBucket())


@pytest.fixture
def cluster(tmp_path: Path, bucket: CountedBucket) -> Iterator[Cluster]:
    made = Cluster(tmp_path, bucket, timeout_s=PATIENT_S)
    yield made
    made.close()


def cold(bucket: CountedBucket, count: int, size: int = 3_000) -> list[tuple[BlockId, bytes]]:
    """Put blocks behind the back of all nodes."""
    blocks = [make_block(size, seed) for seed in range(count)]
    for block, data in blocks:
        bucket.bucket.put(f"blocks/{block.hex()[:2]}/{block.hex()}", data)
    return blocks


def test_a_block_that_all_nodes_want_is_taken_from_the_store_once(
    cluster: Cluster, bucket: CountedBucket
) -> None:
    blocks = cold(bucket, 12)
    asks = [(node, block) for block in blocks for node in cluster.nodes for _ in range(4)]
    random.Random(1).shuffle(asks)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda ask: ask[0].blocks.use(ask[1][0], bytes), asks))
    assert found == [data for _, (_, data) in asks]
    assert bucket.calls["get"] == len(blocks)


def test_a_batch_comes_from_all_nodes_in_its_order(cluster: Cluster, bucket: CountedBucket) -> None:
    blocks = cold(bucket, 40)
    ids = [block for block, _ in blocks]
    asked = [*ids, BlockId(b"\1" * 32), ids[3]]
    moved = Moved()
    assert cluster.nodes[1].blocks.get_many_sync(asked) == [
        *(data for _, data in blocks),
        None,
        blocks[3][1],
    ]
    for node in cluster.nodes:
        mine = [block for block in ids if node.nodes.is_mine(block)]
        assert all(node.tier.has_many(mine))
    # All nodes count in this process; the missing one is looked for by its owner, and by who asks.
    is_mine = cluster.nodes[1].nodes.is_mine
    foreign = sum(not is_mine(block) for block in ids)
    nowhere = 1 if is_mine(asked[-2]) else 2
    fetches = {"store": 40, "peer": foreign, "nowhere": nowhere}
    assert moved("shardgit_block_fetches_total") == fetches
    assert moved("shardgit_object_store_requests_total") == {"get ok": 40 + nowhere}
    assert moved("shardgit_object_store_seconds_count") == {"get": 40 + nowhere}
    assert moved("shardgit_object_store_bytes_total") == {
        "get": sum(len(data) for _, data in blocks)
    }


def test_what_one_node_puts_is_in_its_keepers_tiers_soon_and_elsewhere_at_once(
    cluster: Cluster, bucket: CountedBucket
) -> None:
    blocks = [make_block(seed=seed) for seed in range(30)]
    moved = Moved()
    cluster.nodes[0].blocks.put_many_sync(blocks)
    assert bucket.calls["put"] == len(blocks)
    assert moved("shardgit_object_store_requests_total") == {"put ok": 30}
    assert moved("shardgit_object_store_bytes_total") == {
        "put": sum(len(data) for _, data in blocks)
    }
    assert cluster.nodes[2].blocks.get_many_sync([b for b, _ in blocks]) == [d for _, d in blocks]
    for node in cluster.nodes:
        mine = [block for block, _ in blocks if node.nodes.is_mine(block)]
        until(lambda node=node, mine=mine: all(node.tier.has_many(mine)))  # type: ignore[misc]
    until(lambda: moved("shardgit_block_warms_total") == {"done": 30})


def test_an_emptied_node_gives_the_same_blocks_and_fills_again(
    cluster: Cluster, bucket: CountedBucket
) -> None:
    blocks = [make_block(seed=seed) for seed in range(30)]
    cluster.nodes[0].blocks.put_many_sync(blocks)
    ids = [block for block, _ in blocks]
    node = cluster.nodes[1]
    mine = [block for block in ids if node.nodes.is_mine(block)]
    until(lambda: all(node.tier.has_many(mine)))
    take_away(node.folder / "tier" / OWNED)
    assert node.tier.has_many(mine) == [False] * len(mine)
    for other in cluster.nodes:
        assert other.blocks.get_many_sync(ids) == [data for _, data in blocks]
    assert all(node.tier.has_many(mine))


def test_a_node_that_is_down_is_passed_over_and_not_asked_again_at_once(
    cluster: Cluster, bucket: CountedBucket
) -> None:
    blocks = cold(bucket, 30)
    cluster.loop.run(cluster.nodes[1].stop())
    node = cluster.nodes[0]
    for block, data in blocks:
        assert node.blocks.use(block, bytes) == data
    theirs = [block for block in blocks if node.nodes.owners(block[0]) == (1,)]
    assert theirs
    assert set(node.nodes._avoided) == {1}
    moved = Moved()
    node.blocks.put_many_sync(theirs)
    until(lambda: moved("shardgit_block_warms_total") == {"skipped": len(theirs)})
    node.nodes.answered(1)  # it is tried again
    node.blocks.put_many_sync(theirs)
    until(lambda: moved("shardgit_block_warms_total").get("failed") == len(theirs))


def test_a_node_that_hangs_holds_a_read_up_for_its_deadline_and_no_longer(
    tmp_path: Path, bucket: CountedBucket
) -> None:
    blocks = cold(bucket, 30)
    cluster = Cluster(tmp_path, bucket, timeout_s=0.2)
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes calls, and never answers
            ports = {node.number: node.port for node in cluster.nodes}
            ports[1] = silent.getsockname()[1]
            node = cluster.nodes[0]
            node.nodes.take(ring_at(cluster.ring, 9, ports))
            ids = [block for block, _ in blocks]
            assert node.blocks.get_many_sync(ids) == [data for _, data in blocks]
            assert 1 in node.nodes._avoided
    finally:
        cluster.close()


def test_reads_go_on_while_the_object_store_is_away(
    cluster: Cluster, bucket: CountedBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = cold(bucket, 10)
    ids = [block for block, _ in blocks]
    cluster.nodes[0].blocks.get_many_sync(ids)  # owners have filled them

    def away(name: str) -> bytes | None:
        raise Unavailable("object store failed", object=name)

    monkeypatch.setattr(bucket.bucket, "get", away)
    moved = Moved()
    for node in cluster.nodes:
        assert node.blocks.get_many_sync(ids) == [data for _, data in blocks]
        with pytest.raises(Unavailable):
            node.blocks.use(BlockId(b"\1" * 32), bytes)
    requests = moved("shardgit_object_store_requests_total")
    assert set(requests) == {"get unavailable"}
    assert moved("shardgit_object_store_seconds_count") == {"get": requests["get unavailable"]}
    assert moved("shardgit_object_store_bytes_total") == {}


def test_a_block_that_is_damaged_in_a_tier_is_put_right_from_the_store(
    cluster: Cluster, bucket: CountedBucket
) -> None:
    blocks = cold(bucket, 10, size=20_000)
    ids = [block for block, _ in blocks]
    owner = next(node for node in cluster.nodes if node.nodes.is_mine(ids[0]))
    owner.blocks.get_many_sync([ids[0]])
    (file,) = (owner.folder / "tier" / OWNED).glob("g-*/data.mdb")
    with file.open("r+b") as opened:
        at = opened.read().index(blocks[0][1][500:600])
        opened.seek(at)
        opened.write(bytes(100))
    before = bucket.calls["get"]
    for node in cluster.nodes:
        assert node.blocks.use(ids[0], bytes) == blocks[0][1]
    assert bucket.calls["get"] == before + 1


def test_damage_in_the_store_is_told_and_never_given(
    cluster: Cluster, bucket: CountedBucket
) -> None:
    ((block, data),) = cold(bucket, 1)
    wrong = bytes([*data[:100], data[100] ^ 1, *data[101:]])
    bucket.bucket.put(f"blocks/{block.hex()[:2]}/{block.hex()}", wrong)
    for node in cluster.nodes:
        with pytest.raises(BlockCorrupt):
            node.blocks.use(block, bytes)


def test_a_stale_ring_is_refused_and_the_new_one_taken_over(
    cluster: Cluster, bucket: CountedBucket
) -> None:
    blocks = cold(bucket, 20)
    old, *others = cluster.nodes
    for node in others:
        node.nodes.take(cluster.node_ring(5))
    foreign = [block for block, _ in blocks if not old.nodes.is_mine(block)]
    peers = old.blocks._peers
    with pytest.raises(RingStale) as refused:
        list(peers.get(1, foreign, only_here=False))
    assert refused.value.facts["epoch"] == 5
    assert old.nodes.epoch == 5
    assert old.nodes.ring.encode() == others[0].nodes.ring.encode()
    for node in others:
        node.nodes.take(cluster.node_ring(6))
    assert old.blocks.get_many_sync([b for b, _ in blocks]) == [d for _, d in blocks]
    assert old.nodes.epoch == 6
    assert not old.nodes.is_avoided(1)
    old.nodes.take(cluster.node_ring(7))  # a caller that is ahead is served
    assert others[0].blocks.has_many_sync(foreign) == [True] * len(foreign)


def test_while_a_ring_moves_blocks_go_to_both_tables_nodes(
    cluster: Cluster, bucket: CountedBucket
) -> None:
    table = cluster.ring.table[0]
    turned = type(table)("H", [(shard + 1) % 3 for shard in table])
    moving = replace(cluster.ring, epoch=8).towards((turned,))
    ports = {node.number: node.port for node in cluster.nodes}
    for node in cluster.nodes:
        node.nodes.take(ring_at(moving, moving.epoch, ports))
    block, data = make_block()
    cluster.nodes[0].blocks.put_many_sync([(block, data)])
    home = table[partition_of(block)]
    for number in (home, (home + 1) % 3):
        until(lambda number=number: cluster.nodes[number].tier.has_many([block])[0])  # type: ignore[misc]
    # The new owner, empty, takes from the old one what that has, not from the store.
    fresh, owner = cluster.nodes[(home + 1) % 3], cluster.nodes[home]
    fresh.tier.delete_many([block])
    assert owner.tier.has_many([block]) == [True]
    assert fresh.blocks.use(block, bytes) == data
    assert bucket.calls["get"] == 0


def test_a_process_takes_what_another_one_of_its_node_has_filled(
    cluster: Cluster, bucket: CountedBucket
) -> None:
    ((block, data),) = cold(bucket, 1)
    owner = next(node for node in cluster.nodes if node.nodes.is_mine(block))
    other = FileLock(owner.folder / "locks" / f"{block.hex()[:32]}.lock")  # the other process's
    moved = Moved()
    assert other.try_take()
    with ThreadPoolExecutor(4) as pool:
        asks = [pool.submit(owner.blocks.use, block, bytes) for _ in range(4)]
        owner.tier.put(block, data, owned=True)
        other.release()
        assert [ask.result(PATIENT_S) for ask in asks] == [data] * 4
    assert bucket.calls["get"] == 0
    fetches = moved("shardgit_block_fetches_total")
    assert set(fetches) <= {"joined"}  # those that came behind the put found it in the tier
    assert fetches.get("joined", 0) + moved("shardgit_tier_reads_total").get("owned", 0) >= 4


PROCESS = """
import random, sys
from pathlib import Path
from clustering import CountedBucket, Node, ring_at, ring_of
from shardgit.blocks.object_store import open_blocks_bucket

folder, ids = Path(sys.argv[1]), [bytes.fromhex(line) for line in sys.stdin.read().split()]
random.Random(int(sys.argv[2])).shuffle(ids)
bucket = CountedBucket(open_blocks_bucket(str(folder / "objects")))
node = Node(0, folder / "node", bucket, ring_at(ring_of(1, 1), 1, {0: 1}))
assert [len(data) for data in node.blocks.get_many_sync(ids[:10])] == [100_000] * 10
assert [node.blocks.use(block, len) for block in ids] == [100_000] * len(ids)
print(bucket.calls["get"])
node.close()
"""


def test_all_processes_of_a_node_take_a_block_from_the_store_once(tmp_path: Path) -> None:
    on_disk = CountedBucket(FolderBucket(tmp_path / "objects"))
    (tmp_path / "objects").mkdir()
    blocks = cold(on_disk, 40, size=100_000)
    words = "\n".join(block.hex() for block, _ in blocks)
    places = os.pathsep.join(path for path in sys.path if path)
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": places},
        )
        for seed in range(3)
    ]
    with ThreadPoolExecutor(3) as pool:
        told = list(pool.map(lambda one: one.communicate(words, PATIENT_S)[0], begun))
    assert [one.returncode for one in begun] == [0, 0, 0]
    assert sum(map(int, told)) == len(blocks)


def test_read_ahead_brings_all_in_time_and_stays_within_its_bytes(
    tmp_path: Path, bucket: CountedBucket
) -> None:
    limits = ClusterLimits(
        ahead_each_bytes=2 * BLOCK_MAX_BYTES, ahead_all_bytes=3 * BLOCK_MAX_BYTES
    )
    cluster = Cluster(tmp_path, bucket, timeout_s=PATIENT_S, limits=limits)
    try:
        blocks = cold(bucket, 60, size=200_000)
        ids = [block for block, _ in blocks]
        store = cluster.nodes[0].blocks
        foreign = [block for block in ids if not cluster.nodes[0].nodes.is_mine(block)]

        def transfer(_: int) -> None:
            with store.prefetch(ids):
                for block, data in blocks:
                    assert store.use(block, bytes) == data

        with ThreadPoolExecutor(5) as pool:
            list(pool.map(transfer, range(5)))
        assert bucket.calls["get"] == len(ids)
        with store.prefetch(foreign):
            until(lambda: store.ahead._used_bytes == 0 or store.ahead.most_bytes > 0)
        with store.prefetch(foreign), store.prefetch(foreign):
            pass  # nobody uses anything
        until(lambda: store.ahead._used_bytes == 0)
        assert 0 < store.ahead.most_bytes <= limits.ahead_all_bytes
    finally:
        cluster.close()


def test_read_ahead_of_a_slow_client_waits_within_its_bytes(
    cluster: Cluster, bucket: CountedBucket
) -> None:
    blocks = cold(bucket, 50, size=4 << 20)
    store = cluster.nodes[0].blocks
    with store.prefetch([block for block, _ in blocks]) as ahead:
        until(lambda: ahead.begun >= 4)
        assert ahead.reserved_bytes <= store.limits.ahead_each_bytes
        assert bucket.calls["get"] < 30
        assert store.use(blocks[0][0], len) == 4 << 20
    assert store.ahead.most_bytes <= store.limits.ahead_each_bytes


def test_a_fetch_that_fails_fails_for_all_who_wait_and_not_for_the_next() -> None:
    flights = Flights()
    one = BlockId(b"\1" * 32)
    mine, _ = flights.board([one])
    assert mine == [one]
    not_mine, waiting = flights.board([one, one])
    assert not_mine == []
    errors: list[ShardgitError] = []

    def wait() -> None:
        try:
            waiting[one].wait()
        except ShardgitError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    flights.land(one, None, Unavailable("away", object="x"))
    flights.land(one, b"late")
    for thread in threads:
        thread.join()
    assert [(type(error), error.facts) for error in errors] == [(Unavailable, {"object": "x"})] * 3
    assert len({id(error) for error in errors}) == 3
    assert flights.board([one])[0] == [one]


@given(
    sizes=st.lists(st.sampled_from([0, 64, 100, 5_000, MESSAGE_BYTES - 37, MESSAGE_BYTES, 3 << 20]))
)
def test_blocks_cross_the_wire_in_messages_of_bounded_size(sizes: list[int]) -> None:
    ids = [BlockId(bytes([n % 256]) * 32) for n in range(len(sizes))]
    found = [bytes([n % 251 + 1]) * size if size else None for n, size in enumerate(sizes)]
    joining = Joining()
    out: list[tuple[BlockId, bytes | None]] = []
    for names, lengths, data in in_messages(ids, found):
        assert len(names) + len(data) <= MESSAGE_BYTES + 64
        out += joining.take(ids_of(names), lengths, data)
    joining.end()
    assert out == list(zip(ids, found, strict=True))


def test_what_no_node_sends_is_refused() -> None:
    block = BlockId(b"\1" * 32)
    for sizes, data in [([1, 2], b"x"), ([BLOCK_MAX_BYTES + 1], b"x"), ([1], b"xy"), ([0], b"x")]:
        with pytest.raises(InvalidArgument):
            list(Joining().take([block], sizes, data))
    joining = Joining()
    assert list(joining.take([block], [5], b"abc")) == []
    with pytest.raises(InvalidArgument):
        joining.end()
    with pytest.raises(InvalidArgument):
        ids_of(b"short")


def test_a_ring_of_nodes_comes_back_and_a_changed_byte_is_told(cluster: Cluster) -> None:
    ring = cluster.node_ring(9)
    data = ring.encode()
    again = NodeRing.decode(data)
    assert again == ring
    assert again.epoch == 9
    chance = random.Random(3)
    for at in [0, 4, 8, 12, 16, 20, *(chance.randrange(len(data)) for _ in range(30))]:
        wrong = bytearray(data)
        wrong[at] ^= 1 << chance.randrange(8)
        with pytest.raises((JournalCorrupt, StoreFormatUnknown)):
            NodeRing.decode(bytes(wrong))
    for end in (0, 30, len(data) // 2, len(data) - 1):
        with pytest.raises(JournalCorrupt):
            NodeRing.decode(data[:end])
    with pytest.raises(InvalidArgument):
        NodeRing(ring.ring, {0: "a:1"})


def test_addresses() -> None:
    for good in ("127.0.0.1:1", "node-1.example.org:7421", "[::1]:65535"):
        assert is_address(good)
    for bad in ("", "host", "host:0", "host:65536", "::1:80", "ho st:1", "a:1\n", "x" * 255 + ":1"):
        assert not is_address(bad)
