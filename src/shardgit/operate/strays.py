"""Strays: blocks in a shard that the ring does not route there, left by moves; nobody reads them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from shardgit.blocks.block import partition_of
from shardgit.errors import BlockCorrupt
from shardgit.progress import Progress

if TYPE_CHECKING:
    from shardgit.blocks.shard import ShardStore
    from shardgit.oid import BlockId
    from shardgit.operate.operation import Control
    from shardgit.ring.ring import Ring
    from shardgit.service.store import Store

BATCH = 256
BATCH_BYTES = 8 << 20
DELETED_BYTES = 4_096  # what a deletion costs, for the throttle


def sweep(store: Store, control: Control, *, stage: str = "sweeping") -> int:
    """Delete every stray; returns how many there were.

    A stray that one of its homes lacks is put there first. A put that is under way goes to its homes as well before it
    returns, so nothing of it is lost. The caller keeps the ring's tables as they are meanwhile.
    """
    store.routed.refresh()
    ring, shards = store.routed.ring, store.routed.shards
    total = sum(shard.stats().blocks for shard in shards.values())
    seen = dropped = 0
    for number, shard in sorted(shards.items()):
        strays: list[BlockId] = []
        cost = 0
        for block, size in shard.scan_sync():
            seen += 1
            if number not in ring.reads_of(partition_of(block)):
                strays.append(block)
                homes = [shards[home] for home in ring.shards_of(partition_of(block))]
                cost += DELETED_BYTES + size * sum(not home.has_met(block) for home in homes)
            if len(strays) == BATCH or cost >= BATCH_BYTES:
                dropped += _drop(store, ring, shard, strays)
                control.pace(cost)
                strays, cost = [], 0
            if seen % BATCH == 0:
                control.report(Progress(stage, seen, max(total, seen), "blocks"))
                control.check()
        if strays:
            dropped += _drop(store, ring, shard, strays)
    control.report(Progress(stage, seen, seen, "blocks"))
    return dropped


def _drop(store: Store, ring: Ring, shard: ShardStore, strays: list[BlockId]) -> int:
    kept = [block for block in strays if not _is_safe(store, ring, shard, block)]
    gone = [block for block in strays if block not in kept]
    shard.delete_many_sync(gone)
    return len(gone)


def _is_safe(store: Store, ring: Ring, shard: ShardStore, block: BlockId) -> bool:
    """Put a stray where its homes do not have it whole; False when it is damaged and the only one of its kind."""
    for home in ring.shards_of(partition_of(block)):
        target = store.routed.shards[home]
        with suppress(BlockCorrupt):  # else it is put right from here
            if target.use(block, len) is not None:
                continue
        try:
            data = shard.read_sync(block)
        except BlockCorrupt:
            return False  # for a repair to judge
        if data is not None:
            target.put_verified_sync([(block, data)])
    return True
