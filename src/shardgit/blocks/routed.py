"""Blocks routed to shards by the ring, each to as many as the ring's replicas."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeVar

from shardgit.blocks.block import partition_of
from shardgit.blocks.on_workers import OnWorkers
from shardgit.errors import BlockCorrupt, ShardMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from shardgit.blocks.shard import ShardStore
    from shardgit.oid import BlockId
    from shardgit.ring.ring import Ring
    from shardgit.workers import Workers

T = TypeVar("T")


class RoutedStore(OnWorkers):
    """Routes by partition. Puts go to every replica; reads take the first replica that has the block whole."""

    def __init__(self, ring: Ring, shards: Mapping[int, ShardStore], workers: Workers) -> None:
        missing = [shard.number for shard in ring.shards if shard.number not in shards]
        if missing:
            raise ShardMissing("the ring names a shard that is not open", shard=missing[0])
        self.workers = workers
        self.ring = ring
        self.shards = dict(shards)

    def _homes(self, block: BlockId) -> tuple[int, ...]:
        return self.ring.shards_of(partition_of(block))

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
        """See BlockStore. BlockCorrupt only when no replica has the block whole and one has it damaged."""
        damaged: BlockCorrupt | None = None
        for home in self._homes(block):
            try:
                found = self.shards[home].use(block, lambda view: (job(view),))
            except BlockCorrupt as error:
                damaged = error
                continue
            if found is not None:
                return found[0]
        if damaged is not None:
            raise damaged
        return None

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore."""
        return [self.use(block, bytes) for block in ids]

    def has_many_sync(self, ids: Sequence[BlockId]) -> list[bool]:
        """See BlockStore. A block is here when any replica has it."""
        return [any(self.shards[home].has_many_sync([block])[0] for home in self._homes(block)) for block in ids]

    def put_many_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """See BlockStore. Durable in every replica on return."""
        by_shard: dict[int, list[tuple[BlockId, bytes]]] = defaultdict(list)
        for block, data in blocks:
            for home in self._homes(block):
                by_shard[home].append((block, data))
        for home, batch in by_shard.items():
            self.shards[home].put_many_sync(batch)

    def delete_many_sync(self, ids: Sequence[BlockId]) -> None:
        """See BlockStore."""
        by_shard: dict[int, list[BlockId]] = defaultdict(list)
        for block in ids:
            for home in self._homes(block):
                by_shard[home].append(block)
        for home, batch in by_shard.items():
            self.shards[home].delete_many_sync(batch)

    def scan_sync(self, low: int = 0, high: int = 65_536) -> Iterator[tuple[BlockId, int]]:
        """See BlockStore. By rising partition; replicas are told once."""
        for partition in range(low, high):
            seen: dict[BlockId, int] = {}
            for home in self.ring.shards_of(partition):
                seen.update(self.shards[home].scan_sync(partition, partition + 1))
            yield from sorted(seen.items())

    def close(self) -> None:
        """Close every shard."""
        for shard in self.shards.values():
            shard.close()
