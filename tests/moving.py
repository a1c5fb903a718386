"""Stores full of small blocks, for tests that move them."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shardgit.blocks.block import BlockKind, block_id, new_header, partition_of
from shardgit.journal.interface import Put
from shardgit.journal.records import RING_KEY
from shardgit.node import create_store, open_store
from shardgit.oid import BlockId, HashKind, PoolId
from shardgit.ring.builder import build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store

Blocks = dict[BlockId, bytes]


def part(chance: random.Random, size: int) -> tuple[BlockId, bytes]:
    """Return a block of random bytes; the same chance gives the same block."""
    header = bytearray(new_header(BlockKind.PART, HashKind.SHA1, PoolId(bytes(16)), size + 64))
    header[32:56] = (1_700_000_000_000).to_bytes(8, "little") + chance.randbytes(16)
    data = bytes(header) + chance.randbytes(size)
    return block_id(data), data


def parts(count: int, *, seed: int = 1, most: int = 20_000) -> Blocks:
    """Return blocks of mixed sizes."""
    chance = random.Random(seed)
    return dict(part(chance, chance.randrange(100, most)) for _ in range(count))


def full_store(folder: Path, blocks: Blocks, *, shards: int = 3, replicas: int = 1) -> Path:
    """Make a store that holds blocks; each shard is a zone of its own where there are replicas."""
    create_store(folder, shards=shards)
    with open_store(folder, threads=1) as store:
        if replicas > 1:
            ring = build(store.routed.ring.shards, replicas=replicas, before=store.routed.ring)
            store.journal.commit_sync([], [Put(RING_KEY, ring.encode())])
            store.routed.refresh()
        store.blocks.put_many_sync(list(blocks.items()))
    return folder


@contextmanager
def opened(folder: Path) -> Iterator[Store]:
    """Open a store for a test."""
    with open_store(folder, threads=2) as store:
        yield store


def placed(store: Store) -> dict[int, set[BlockId]]:
    """Return the ids that lie in each shard."""
    return {n: {b for b, _ in shard.scan_sync()} for n, shard in store.routed.shards.items()}


def check_whole(store: Store, blocks: Blocks) -> None:
    """Assert that blocks are there, whole, in each of their homes, and that nothing else lies anywhere."""
    store.routed.refresh()
    for block, data in blocks.items():
        assert store.blocks.get_many_sync([block]) == [data]
    wanted: dict[int, set[BlockId]] = {number: set() for number in store.routed.shards}
    for block in blocks:
        for home in store.routed.ring.shards_of(partition_of(block)):
            wanted[home].add(block)
    assert placed(store) == wanted
    for number, ids in wanted.items():
        for block in ids:
            assert store.routed.shards[number].read_sync(block) == blocks[block]
