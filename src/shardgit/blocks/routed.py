"""Blocks routed to shards by the ring, each to as many as the ring's replicas."""

from __future__ import annotations

import asyncio
import heapq
from array import array
from collections import defaultdict
from typing import TYPE_CHECKING, TypeVar

from shardgit import telemetry
from shardgit.blocks.block import partition_of, verify_block
from shardgit.blocks.on_workers import OnWorkers
from shardgit.errors import DataLoss, ShardgitError, ShardMissing
from shardgit.ring.ring import PARTITIONS
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from shardgit.blocks.shard import ShardStats, ShardStore
    from shardgit.oid import BlockId
    from shardgit.ring.ring import Ring

S = TypeVar("S")
T = TypeVar("T")
WRITERS_MAX = 16
REPAIRS_WAITING_MAX = 256


class RoutedStore(OnWorkers):
    """Routes by partition; shards write side by side.

    A put is durable in every replica when it returns. When it fails, some shards may have their
    part of the batch and others not: nothing names these blocks yet, and putting them again is
    safe. A read takes the first replica that has the block whole; replicas take turns by id.
    """

    def __init__(self, ring: Ring, shards: Mapping[int, ShardStore], workers: Workers) -> None:
        missing = [shard.number for shard in ring.shards if shard.number not in shards]
        if missing:
            raise ShardMissing("the ring names a shard that is not open", shard=missing[0])
        self.workers = workers
        self.ring = ring
        self.shards = dict(shards)
        self._repairing: set[BlockId] = set()
        # Threads of their own: a put runs on a worker and waits, and a pool that waits for itself
        # stands still.
        self._writers = Workers(min(len(self.shards), WRITERS_MAX))

    def _homes(self, block: BlockId) -> tuple[int, ...]:
        homes = self.ring.shards_of(partition_of(block))
        if len(homes) == 1:
            return homes
        first = block[2] % len(homes)
        return homes[first:] + homes[:first]

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
        """See BlockStore. A job that meets DataLoss is run again over the next replica.

        DataLoss only when no replica has the block whole and one has it damaged.
        """
        damaged: DataLoss | None = None
        bad: list[int] = []
        for home in self._homes(block):
            try:
                found = self.shards[home].use(block, lambda view: (job(view),))
            except DataLoss as error:
                damaged = damaged or error
                bad.append(home)
                continue
            if found is not None:
                if bad:
                    self._fell_back(block, bad, home, "damaged" if damaged else "missing")
                return found[0]
            bad.append(home)
        if damaged is not None:
            telemetry.BLOCK_FALLBACKS.labels("lost").inc()
            raise damaged
        return None

    def _fell_back(self, block: BlockId, bad: list[int], good: int, outcome: str) -> None:
        """Count a read that a replica could not serve, and put that replica's copy right behind it."""
        telemetry.BLOCK_FALLBACKS.labels(outcome).inc()
        telemetry.log().warning(
            "block_fell_back", block=block.hex(), shards=bad, read_from=good, outcome=outcome
        )
        # A shard that lost everything is for shard repair; here a few copies are put right at once.
        if len(self._repairing) < REPAIRS_WAITING_MAX and block not in self._repairing:
            self._repairing.add(block)
            self.workers.later(("repair", block), lambda: self._repair(block, bad, good))

    def _repair(self, block: BlockId, bad: Sequence[int], good: int) -> None:
        try:
            self._put_right(block, bad, good)
        finally:
            self._repairing.discard(block)

    def _put_right(self, block: BlockId, bad: Sequence[int], good: int) -> None:
        """Put a copy again where it was damaged or missing, from a shard that has it whole."""
        (data,) = self.shards[good].get_many_sync([block])
        if data is None:
            return  # deleted meanwhile, here first
        verify_block(block, data)
        homes = self.ring.shards_of(partition_of(block))
        for number in bad:
            if number not in homes:
                continue
            try:
                self.shards[number].put_verified_sync([(block, data)])
            except ShardgitError:
                telemetry.BLOCK_REPAIRS.labels("failed").inc()
                raise
            # Whoever deletes a block deletes it everywhere; one that came in between must win.
            if not self.shards[good].has_many_sync([block])[0]:
                self.shards[number].delete_many_sync([block])
            telemetry.BLOCK_REPAIRS.labels("done").inc()

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore."""
        return [self.use(block, bytes) for block in ids]

    async def get_many(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore. Shards are read side by side."""
        groups: dict[int, list[int]] = defaultdict(list)
        for position, block in enumerate(ids):
            groups[self._homes(block)[0]].append(position)
        found: list[bytes | None] = [None] * len(ids)

        async def read(positions: list[int]) -> None:
            part = [ids[position] for position in positions]
            blocks = await self.workers.run(self.get_many_sync, part)
            for position, data in zip(positions, blocks, strict=True):
                found[position] = data

        try:
            async with asyncio.TaskGroup() as tasks:
                for positions in groups.values():
                    tasks.create_task(read(positions))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        return found

    def has_many_sync(self, ids: Sequence[BlockId]) -> list[bool]:
        """See BlockStore. A block is here when any replica has it."""
        found = [False] * len(ids)
        for turn in range(self.ring.replicas):
            groups: dict[int, list[int]] = defaultdict(list)
            for position, block in enumerate(ids):
                if not found[position]:
                    groups[self._homes(block)[turn]].append(position)
            for home, positions in groups.items():
                here = self.shards[home].has_many_sync([ids[p] for p in positions])
                for position, is_here in zip(positions, here, strict=True):
                    found[position] = is_here
        return found

    def put_many_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """See BlockStore. Durable in every replica on return."""
        for block, data in blocks:
            verify_block(block, data)
        by_shard: dict[int, list[tuple[BlockId, bytes]]] = defaultdict(list)
        for block, data in blocks:
            for home in self._homes(block):
                by_shard[home].append((block, data))
        self._on_each(by_shard, lambda shard, batch: shard.put_verified_sync(batch))

    def delete_many_sync(self, ids: Sequence[BlockId]) -> None:
        """See BlockStore."""
        by_shard: dict[int, list[BlockId]] = defaultdict(list)
        for block in ids:
            for home in self._homes(block):
                by_shard[home].append(block)
        self._on_each(by_shard, lambda shard, batch: shard.delete_many_sync(batch))

    def _on_each(
        self, by_shard: Mapping[int, list[S]], job: Callable[[ShardStore, list[S]], None]
    ) -> None:
        """Run a job on its shards side by side; raise the first error once all have ended."""

        def attempt(item: tuple[int, list[S]]) -> Exception | None:
            try:
                job(self.shards[item[0]], item[1])
            except Exception as error:
                return error
            return None

        items = sorted(by_shard.items(), key=lambda item: item[0])
        outcomes = map(attempt, items) if len(items) == 1 else self._writers.map(attempt, items)
        for error in outcomes:
            if error is not None:
                raise error

    def scan_sync(self, low: int = 0, high: int = PARTITIONS) -> Iterator[tuple[BlockId, int]]:
        """See BlockStore. Replicas are told once; what the ring does not route to is not told."""
        last = None
        scans = [self._scan_routed(number, low, high) for number in sorted(self.shards)]
        for block, size in heapq.merge(*scans):
            if block != last:
                yield block, size
            last = block

    def _scan_routed(self, number: int, low: int, high: int) -> Iterator[tuple[BlockId, int]]:
        for block, size in self.shards[number].scan_sync(low, high):
            if number in self.ring.shards_of(partition_of(block)):
                yield block, size

    def measure_sync(self) -> array[int]:
        """Return the bytes of each partition, replicas counted once, as the builder wants them."""
        found = array("Q", bytes(8 * PARTITIONS))
        for block, size in self.scan_sync():
            found[partition_of(block)] += size
        return found

    def stats(self) -> dict[int, ShardStats]:
        """Return what each shard holds, by number."""
        return {number: shard.stats() for number, shard in sorted(self.shards.items())}

    def close(self) -> None:
        """Close every shard; no call may be under way."""
        self._writers.close()
        for shard in self.shards.values():
            shard.close()
