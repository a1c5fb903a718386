"""Blocks routed to shards by the ring, each to as many as the ring's replicas."""

from __future__ import annotations

import asyncio
import heapq
import os
from array import array
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Protocol, TypeVar

from shardgit import metrics, telemetry
from shardgit.blocks.block import keep_off, parse_header, partition_of, verify_block
from shardgit.blocks.on_workers import OnWorkers
from shardgit.errors import DataLoss, ShardgitError, ShardMissing, Unavailable
from shardgit.ring.ring import PARTITIONS
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from shardgit.blocks.block import BlockHeader
    from shardgit.blocks.shard import ShardStats, ShardStore
    from shardgit.oid import BlockId
    from shardgit.ring.ring import Ring

S = TypeVar("S")
T = TypeVar("T")
WRITERS_MAX = 16
REPAIRS_WAITING_MAX = 256
SCAN_PARTITIONS = 1_024  # after so many a scan looks at the ring again


@dataclass(frozen=True, slots=True)
class Held:
    """Shards that take no blocks: new ones keep off them all, and those that are ``closed`` are not written at all."""

    shards: frozenset[int] = frozenset()
    closed: frozenset[int] = frozenset()


class RingSource(Protocol):
    """Where a routed store learns of another ring, and of shards that are held: the journal."""

    def newer(self, known: int) -> tuple[int, Ring] | None:
        """Return the ring as it is now and its row's revision, None while that is ``known``; cheap."""
        ...

    def held(self, known: int) -> tuple[int, Held] | None:
        """Return what is held as it is now and its row's revision (0 without), None while that is ``known``; cheap."""
        ...

    def check_open(self, number: int) -> None:
        """Raise ReadOnly where a shard is closed right now; cheap beside a write."""
        ...

    def open_shard(self, number: int) -> ShardStore:
        """Open a shard that the ring names; ShardMissing when the store has none."""
        ...

    def is_open_shard(self, number: int, shard: ShardStore) -> bool:
        """Say whether an open shard is still that of its number: one that was removed leaves it to the next."""
        ...


@dataclass(frozen=True, slots=True)
class _Routes:
    """A ring, its row's revision, its shards, and what is held of them: swapped whole."""

    ring: Ring
    revision: int
    shards: Mapping[int, ShardStore]
    held: Held = Held()
    held_revision: int = 0

    def touches_held(self, block: BlockId) -> bool:
        """Say whether a block lies in a shard that is held."""
        return not self.held.shards.isdisjoint(self.ring.reads_of(partition_of(block)))

    def kept_off(self) -> bytes | None:
        """Return a byte for each partition, 1 where a block would lie in a shard that is held; None without such."""
        held = self.held.shards
        homes = map(self.ring.writes_of, range(PARTITIONS)) if held else ()
        return bytes(not held.isdisjoint(home) for home in homes) or None

    def reads(self, block: BlockId) -> tuple[int, ...]:
        """Return where a block may be, in the order to look: replicas take turns by id."""
        partition = partition_of(block)
        homes = self.ring.shards_of(partition)
        every = self.ring.reads_of(partition)
        if len(homes) == 1:
            return every
        first = block[2] % len(homes)
        return homes[first:] + homes[:first] + every[len(homes) :]


class RoutedStore(OnWorkers):
    """Routes by partition; shards write side by side.

    A put is durable in every replica when it returns. When it fails, some shards may have their
    part of the batch and others not: nothing names these blocks yet, and putting them again is
    safe. A read takes the first replica that has the block whole; replicas take turns by id.

    Another process may change the ring at any moment. No one is asked to wait for that: whoever has put or deleted
    blocks, durably, looks whether the ring is still the same, and does it again where it is not; whoever misses a
    block looks too (ADR 0010).
    """

    def __init__(
        self,
        ring: Ring,
        shards: Mapping[int, ShardStore],
        workers: Workers,
        *,
        source: RingSource | None = None,
        revision: int = 0,
    ) -> None:
        missing = [shard.number for shard in ring.shards if shard.number not in shards]
        if missing:
            raise ShardMissing("the ring names a shard that is not open", shard=missing[0])
        self.workers = workers
        self._routes = _Routes(ring, revision, dict(shards))
        self._source = source
        self._refreshing = Lock()
        self._leaving: list[ShardStore] = []
        self._repairing: set[BlockId] = set()
        # Threads of their own: a put runs on a worker and waits, and a pool that waits for itself
        # stands still.
        self._writers = Workers(WRITERS_MAX)
        keep_off(self, None)  # of another that had its place in memory
        self._guard(self._routes.shards)

    @property
    def ring(self) -> Ring:
        """The ring that this process goes by."""
        return self._routes.ring

    @property
    def shards(self) -> Mapping[int, ShardStore]:
        """The open shards by number."""
        return self._routes.shards

    @property
    def ring_revision(self) -> int:
        """The revision of the ring's row in the journal."""
        return self._routes.revision

    @property
    def held(self) -> Held:
        """The shards that take no blocks, as far as this process knows."""
        return self._routes.held

    @property
    def held_revision(self) -> int:
        """The revision of the row that tells what is held, 0 without one."""
        return self._routes.held_revision

    def is_held(self, block: BlockId) -> bool:
        """Say whether a block lies in a shard that takes no changes, and hence cannot be deleted."""
        routes = self._routes
        return bool(routes.held.shards) and routes.touches_held(block)

    def begin_threads(self) -> None:
        """Begin the threads that write, at the priority of the one that calls."""
        self._writers.begin()

    def write_to(self, shard: ShardStore, job: Callable[[ShardStore], None]) -> None:
        """Run a job that writes to one shard, whatever the ring says of it."""
        _raise_first(self._side_by_side([lambda: job(shard)]))

    def refresh(self) -> bool:
        """Take over the ring of the journal, and compacted shards; says whether the ring was another."""
        return self._fresh(self._routes) is not None

    def look_around(self) -> None:
        """Do what keeps an idle process up to date: other rings, compacted shards, shards that left."""
        self.refresh()
        for shard in self._routes.shards.values():
            shard.refresh()
        # Not under the lock, for which every put waits: closing the last handle of a file that was removed gives its
        # bytes back to the disk.
        closed = [shard for shard in self._leaving if shard.idle()]
        with self._refreshing:
            self._leaving = [shard for shard in self._leaving if shard not in closed]

    def _fresh(self, used: _Routes) -> _Routes | None:
        """Return the routes to use in place of ``used``, None when these are right still."""
        if self._source is None:
            return None
        with self._refreshing:
            held = self._source.held(self._routes.held_revision)
            if held is not None:
                self._take(replace(self._routes, held_revision=held[0], held=held[1]))
            found = self._source.newer(self._routes.revision)
            if found is not None:
                self._take_ring(*found)
            return None if self._routes is used else self._routes

    def _take_ring(self, revision: int, ring: Ring) -> None:
        """Go on by another ring; shards that left are closed once nobody uses them."""
        assert self._source is not None
        named = {shard.number for shard in ring.shards}
        before = self._routes.shards
        shards = {
            n: shard
            for n, shard in before.items()
            if n in named and self._source.is_open_shard(n, shard)
        }
        gone = [shard for n, shard in before.items() if n not in shards]
        for number in named - shards.keys():
            shards[number] = self._source.open_shard(number)
        self._guard(shards)
        self._take(replace(self._routes, ring=ring, revision=revision, shards=shards))
        for shard in gone:
            shard.retire()
        self._leaving += gone

    def _take(self, routes: _Routes) -> None:
        keep_off(self, routes.kept_off())
        self._routes = routes

    def _guard(self, shards: Mapping[int, ShardStore]) -> None:
        """Have who would write to a shard ask under its lock."""
        if self._source is not None:
            for number, shard in shards.items():
                shard.guard = partial(self._source.check_open, number)

    def headers(self, ids: Sequence[BlockId]) -> list[BlockHeader | None]:
        """See StoreBlocks."""
        found: list[BlockHeader | None] = []
        for block in ids:
            try:
                found.append(self.use(block, parse_header))
            except DataLoss:
                found.append(None)
        return found

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
        """See BlockStore. A job that meets DataLoss is run again over the next replica.

        DataLoss only when no replica has the block whole and one has it damaged; Unavailable when one cannot say.
        """
        routes: _Routes | None = self._routes
        damaged: DataLoss | None = None
        away: Unavailable | None = None
        while routes is not None:
            damaged = away = None
            bad: list[int] = []
            for home in routes.reads(block):
                try:
                    found = routes.shards[home].use(block, lambda view: (job(view),))
                except DataLoss as error:
                    damaged = damaged or error
                    bad.append(home)
                    continue
                except ShardMissing:
                    continue
                except Unavailable as error:
                    away = away or error
                    continue
                if found is not None:
                    if bad and self._fresh(routes) is None:  # else the ring explains it
                        self._fell_back(block, bad, home, "damaged" if damaged else "missing")
                    return found[0]
                bad.append(home)
            routes = self._fresh(routes)
        if damaged is not None:
            metrics.BLOCK_FALLBACKS.labels("lost").inc()
            raise damaged
        if away is not None:
            raise away
        return None

    def _fell_back(self, block: BlockId, bad: list[int], good: int, outcome: str) -> None:
        """Count a read that a replica could not serve, and put that replica's copy right behind it."""
        metrics.BLOCK_FALLBACKS.labels(outcome).inc()
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
        routes = self._fresh(self._routes) or self._routes
        if good not in routes.shards:
            return
        (data,) = routes.shards[good].get_many_sync([block])
        if data is None:
            return  # deleted meanwhile, here first
        verify_block(block, data)
        homes = routes.ring.shards_of(partition_of(block))
        for number in bad:
            if number not in homes or number in routes.held.shards:
                continue
            try:
                routes.shards[number].put_verified_sync([(block, data)])
            except ShardgitError:
                metrics.BLOCK_REPAIRS.labels("failed").inc()
                raise
            # Whoever deletes a block deletes it everywhere; one that came in between must win. Under another ring it
            # may be gone there because it is here.
            gone = not routes.shards[good].has_many_sync([block])[0]
            if gone and self._routes_as(routes, block, good):
                routes.shards[number].delete_many_sync([block])
            metrics.BLOCK_REPAIRS.labels("done").inc()

    def _routes_as(self, routes: _Routes, block: BlockId, home: int) -> bool:
        """Say whether the ring is that of the routes still, and has a shard among those where a block may be."""
        now = self._fresh(routes)
        same = now is None or now.ring is routes.ring
        return same and home in routes.ring.reads_of(partition_of(block))

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore."""
        return [self.use(block, bytes) for block in ids]

    async def get_many(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore. Shards are read side by side."""
        groups: dict[int, list[int]] = defaultdict(list)
        for position, block in enumerate(ids):
            groups[self._routes.reads(block)[0]].append(position)
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
        routes: _Routes | None = self._routes
        while routes is not None and not all(found):
            homes = [routes.reads(block) for block in ids]
            for turn in range(max(map(len, homes), default=0)):
                groups: dict[int, list[int]] = defaultdict(list)
                for position, every in enumerate(homes):
                    if not found[position] and turn < len(every):
                        groups[every[turn]].append(position)
                for home, positions in groups.items():
                    here = self._has(routes.shards[home], [ids[p] for p in positions])
                    for position, is_here in zip(positions, here, strict=True):
                        found[position] = is_here
            if not all(found):
                routes = self._fresh(routes)
        return found

    def _has(self, shard: ShardStore, ids: Sequence[BlockId]) -> list[bool]:
        try:
            return shard.has_many_sync(ids)
        except ShardMissing:
            return [False] * len(ids)

    def put_many_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """See BlockStore. Durable in every replica on return."""
        for block, data in blocks:
            verify_block(block, data)

        def put(routes: _Routes) -> None:
            by_shard: dict[int, list[tuple[BlockId, bytes]]] = defaultdict(list)
            for block, data in blocks:
                for home in routes.ring.writes_of(partition_of(block)):
                    if home in routes.held.closed and routes.shards[home].has_whole(block, data):
                        continue
                    by_shard[home].append((block, data))
            self._on_each(routes, by_shard, lambda shard, batch: shard.put_verified_sync(batch))

        self._until_settled(put)

    def delete_many_sync(self, ids: Sequence[BlockId]) -> None:
        """See BlockStore. What lies in a shard that is held stays, for a gc once it takes changes again."""

        def delete(routes: _Routes) -> None:
            by_shard: dict[int, list[BlockId]] = defaultdict(list)
            for block in ids:
                if routes.held.shards and routes.touches_held(block):
                    continue  # nothing names it: a gc behind the hold finds it again
                for home in routes.ring.reads_of(partition_of(block)):
                    by_shard[home].append(block)
            self._on_each(routes, by_shard, lambda shard, batch: shard.delete_many_sync(batch))

        self._until_settled(delete)

    def _until_settled(self, change: Callable[[_Routes], None]) -> None:
        """Make a change, and again as often as the ring is another one once it is durable.

        So what was put under a ring is there before the next ring is committed, or is put under that one too: whoever
        commits a ring and then looks for blocks finds all of them.
        """
        routes: _Routes | None = self._fresh(self._routes) or self._routes
        while routes is not None:
            used = routes
            try:
                change(used)
            except ShardgitError:
                routes = self._fresh(used)
                if routes is None:
                    raise
            else:
                routes = self._fresh(used)
                if routes is not None and routes.ring is used.ring:
                    return  # what is held is no matter of where it lies

    def _on_each(
        self,
        routes: _Routes,
        by_shard: Mapping[int, list[S]],
        job: Callable[[ShardStore, list[S]], None],
    ) -> None:
        """Run a job on its shards side by side; raise the first error once all have ended."""

        jobs = [
            partial(job, routes.shards[number], some) for number, some in sorted(by_shard.items())
        ]
        _raise_first(self._side_by_side(jobs))

    def _side_by_side(self, jobs: Sequence[Callable[[], None]]) -> Iterable[Exception | None]:
        """Run jobs that each write to a shard; returns how they ended, in their order.

        One alone runs in the thread that asks, unless that has stepped back: who writes holds LMDB's lock, for which
        every other writer of the shard waits, at whatever priority.
        """

        def attempt(job: Callable[[], None]) -> Exception | None:
            try:
                job()
            except Exception as error:
                return error
            return None

        if len(jobs) == 1 and os.getpriority(os.PRIO_PROCESS, 0) <= 0:  # 0 is this thread
            # Not lazily: whoever went through them would be in the error's frames, and hold it.
            return [attempt(job) for job in jobs]
        return self._writers.map(attempt, jobs)

    def scan_sync(self, low: int = 0, high: int = PARTITIONS) -> Iterator[tuple[BlockId, int]]:
        """See BlockStore. Replicas are told once; what the ring does not route to is not told."""
        for start in range(low, high, SCAN_PARTITIONS):
            self.refresh()
            routes = self._routes
            stop = min(start + SCAN_PARTITIONS, high)
            last = None
            scans = [self._scan_routed(routes, n, start, stop) for n in sorted(routes.shards)]
            for block, size in heapq.merge(*scans):
                if block != last:
                    yield block, size
                last = block

    def _scan_routed(
        self, routes: _Routes, number: int, low: int, high: int
    ) -> Iterator[tuple[BlockId, int]]:
        for block, size in routes.shards[number].scan_sync(low, high):
            if number in routes.ring.reads_of(partition_of(block)):
                yield block, size

    def measure_sync(self) -> array[int]:
        """Return the bytes of each partition, replicas counted once, as the builder wants them."""
        found = array("Q", bytes(8 * PARTITIONS))
        for block, size in self.scan_sync():
            found[partition_of(block)] += size
        return found

    def stats(self) -> dict[int, ShardStats]:
        """Return what each shard holds, by number."""
        self.refresh()
        return {number: shard.stats() for number, shard in sorted(self.shards.items())}

    def close(self) -> None:
        """Close every shard; no call may be under way."""
        keep_off(self, None)
        self._writers.close()
        for shard in (*self.shards.values(), *self._leaving):
            shard.close()


def _raise_first(outcomes: Iterable[Exception | None]) -> None:
    first = next((error for error in outcomes if error is not None), None)
    if first is not None:
        try:
            raise first
        finally:
            # An error leads to this frame, hence to itself, and would keep all that the frames above hold.
            del first, outcomes
