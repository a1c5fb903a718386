"""The blocks of a cluster, as one node sees them: its own disks, the peers that the ring names, the object store."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from shardgit import clock, metrics, telemetry
from shardgit.blocks.ahead import Ahead, ReadAhead
from shardgit.blocks.block import verify_block
from shardgit.blocks.flights import Flights
from shardgit.blocks.on_workers import OnWorkers
from shardgit.blocks.seen import Seen
from shardgit.errors import BlockCorrupt, RingStale, ShardgitError
from shardgit.filelock import FileLock
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from shardgit.blocks.block import BlockHeader
    from shardgit.blocks.nodes import Nodes
    from shardgit.blocks.object_store import ObjectBlocks
    from shardgit.blocks.peers import Peers
    from shardgit.blocks.tier import Tier
    from shardgit.oid import BlockId
    from shardgit.ring.nodes import NodeRing

T = TypeVar("T")
ASKERS_MAX = 32  # calls to peers, and fills from the object store, side by side
AHEAD_THREADS = 16
SERVERS_MAX, NEAR_MAX = 16, 8
WARMERS = 2
ROUNDS_MAX = 3  # of asking peers, before it is the object store's turn
DROPPED_MAX = 1 << 16
HAND_OVER_BYTES = 8 << 20
ASKED_AT_ONCE = 256  # blocks, whether a node has them


@dataclass(frozen=True, slots=True)
class ClusterLimits:
    """Bounds of one process."""

    ahead_each_bytes: int = 32 << 20  # read ahead for one transfer
    ahead_all_bytes: int = 128 << 20  # for all transfers
    warm_bytes: int = (
        64 << 20
    )  # of blocks that wait to go to tiers; what is more is fetched when it is asked for
    fill_wait_s: float = 20.0  # for another process of this node that fills the same block


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What became of blocks that one node was to be given by another.

    ``there`` were on its disks, ``cold`` ones on neither's; ``failed`` ones may be, but did not come over. ``silent``
    is a node that did not answer.
    """

    there: int = 0
    warmed: int = 0
    warmed_bytes: int = 0
    cold: int = 0
    failed: int = 0
    silent: int | None = None

    def __add__(self, other: HandedOver) -> HandedOver:
        return HandedOver(
            self.there + other.there,
            self.warmed + other.warmed,
            self.warmed_bytes + other.warmed_bytes,
            self.cold + other.cold,
            self.failed + other.failed,
            other.silent if other.silent is not None else self.silent,
        )


class ClusteredBlocks(OnWorkers):
    """See BlockStore. What is durable is in the object store; all else is a cache, and its failures are misses.

    A block is read from this node's tier, else from the peers that the ring names, else from the object store, and
    checked against its id wherever it comes from. Threads that miss one block at once share one fetch. The node that
    the ring gives a block fills it from the object store once for all nodes: processes of a node by a file lock in
    ``locks``, the others by asking it.

    A batch is put into the object store; once that has it, the tiers of its keepers are given it in the background.
    Deleted blocks leave the object store, this node's tier and those of their keepers that answer. Another node may go
    on giving a deleted block from its cache: nothing names it any more.

    Errors beside those of BlockStore: Unavailable when a block is in no cache and the object store does not answer.
    """

    in_place = False

    def __init__(
        self,
        objects: ObjectBlocks,
        tier: Tier,
        peers: Peers,
        nodes: Nodes,
        workers: Workers,
        *,
        locks: Path,
        limits: ClusterLimits | None = None,
        newest: Callable[[], NodeRing | None] | None = None,
    ) -> None:
        self._newest = newest  # reads the ring where it is decided
        self.objects = objects
        self.tier = tier
        self.nodes = nodes
        self.workers = workers
        self.limits = limits or ClusterLimits()
        self._peers = peers
        self._locks = locks
        with suppress(OSError):
            locks.mkdir(parents=True, exist_ok=True)
        self._flights = Flights()
        # Leaves only: what runs there waits for no other thread of ours, but for the network.
        self._askers = Workers(ASKERS_MAX)
        # Peers have threads of their own: nodes whose workers all wait for each other's would stand still. Those that
        # ask for what is here wait for no network at all, so that servers may wait for them.
        self._servers = Workers(SERVERS_MAX)
        self._near = Workers(NEAR_MAX)
        self._warmers = Workers(WARMERS)
        self._warming = 0
        self._dropped = Seen(DROPPED_MAX)
        self._lock = Lock()
        self._readers = Workers(AHEAD_THREADS)
        self._pools = (self._servers, self._near, self._readers, self._warmers, self._askers)
        self.ahead = ReadAhead(
            lambda block: self._fetch([block])[block],
            self.tier.has_many,
            self._readers,
            each_bytes=self.limits.ahead_each_bytes,
            all_bytes=self.limits.ahead_all_bytes,
        )

    # ---- reading ----

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
        """See BlockStore. The job runs over the bytes where they lie on this node's disks, else over a fetched copy."""
        data = self.ahead.take(block)
        if data is None:
            found = self.tier.use(block, job)
            if found is not None:
                return found[0]
            data = self._fetch([block])[block]
        if data is None:
            return None
        with memoryview(data) as view:
            return job(view)

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore. What is not on this node's disks comes from all nodes side by side."""
        found: dict[BlockId, bytes | None] = {}
        for block in dict.fromkeys(ids):
            here = self.tier.use(block, bytes)
            if here is not None:
                found[block] = here[0]
        found.update(self._fetch([block for block in dict.fromkeys(ids) if block not in found]))
        return [found[block] for block in ids]

    def prefetch(self, ids: Sequence[BlockId]) -> Ahead:
        """See BlockStore. Blocks on this node's disks are left where they are."""
        return Ahead(self.ahead, ids)

    def _fetch(self, ids: Sequence[BlockId]) -> dict[BlockId, bytes | None]:
        """Return blocks that the tier does not have; each is fetched by one thread, for all that want it now."""
        if not ids:
            return {}
        mine, flights = self._flights.board(ids)
        try:
            if mine:
                left = self._from_peers(mine)
                self._side_by_side([partial(self._from_store, block) for block in left])
        except BaseException as error:
            for block in mine:
                self._flights.land(block, None, error)
            raise
        joined = len(flights) - len(mine)
        if joined:
            metrics.BLOCK_FETCHES.labels("joined").inc(joined)
        found = {block: flight.wait() for block, flight in flights.items()}
        for block, data in found.items():
            if data is None and block not in mine:
                # Others may have looked before it was put, and we only behind that.
                found[block] = self.objects.read_sync(block)
        return found

    def _from_peers(self, ids: Sequence[BlockId]) -> list[BlockId]:
        """Fetch from the peers that the ring names, side by side; returns what is left for the object store."""
        left = list(ids)
        asked: dict[BlockId, set[int]] = defaultdict(set)
        for _ in range(ROUNDS_MAX):
            groups: dict[tuple[int, bool], list[BlockId]] = defaultdict(list)
            for block in left:
                # This node fills what is its own; of others that keep it too it wants only what they have.
                only_here = self.nodes.is_mine(block)
                for node in self.nodes.owners(block):
                    known = node == self.nodes.me or node in asked[block]
                    if not known and not self.nodes.is_avoided(node):
                        asked[block].add(node)
                        groups[node, only_here].append(block)
                        break
            if not groups:
                break
            came: set[BlockId] = set()
            stale: set[int] = set()
            jobs = [
                partial(self._ask, node, some, came, stale, only_here=only_here)
                for (node, only_here), some in groups.items()
            ]
            self._side_by_side(jobs)
            for block in left:
                asked[block] -= stale  # by the new ring they may be asked again
            left = [block for block in left if block not in came]
        return left

    def _ask(
        self,
        node: int,
        ids: Sequence[BlockId],
        came: set[BlockId],
        stale: set[int],
        *,
        only_here: bool,
    ) -> None:
        """Ask one peer for blocks; those that it gave, whole, are landed and noted, or that it has another ring."""
        try:
            for block, data in self._peers.get(node, ids, only_here=only_here):
                if data is None:
                    continue
                verify_block(block, data)
                came.add(block)
                metrics.BLOCK_FETCHES.labels("peer").inc()
                self._flights.land(block, data)
                self._keep(block, data)
            self.nodes.answered(node)
        except RingStale:
            stale.add(node)  # the next round goes by the new ring
        except BlockCorrupt as error:
            telemetry.log().warning("peer_gave_damaged_block", node=node, error=str(error))
            self.nodes.failed(node)
        except ShardgitError as error:
            telemetry.log().warning("peer_failed", node=node, error=str(error))
            self.nodes.failed(node)

    def _from_store(self, block: BlockId) -> None:
        """Fetch a block from the object store, and land it."""
        if not self.nodes.is_mine(block):
            self._land_from_store(block)
            return
        with suppress(OSError):
            lock = FileLock(self._locks / f"{block.hex()[:32]}.lock")
            try:
                self._wait_for(lock)
                found = self.tier.use(block, bytes)
                if found is not None:  # brought by another process meanwhile
                    metrics.BLOCK_FETCHES.labels("joined").inc()
                    self._flights.land(block, found[0])
                    return
                self._land_from_store(block)
                return
            finally:
                lock.release()
        self._land_from_store(block)  # without a lock: the disk is away

    def _wait_for(self, lock: FileLock) -> None:
        """Take a lock, or give up when another process has it for too long: then the block is fetched twice."""
        end, pause_s = clock.monotonic() + self.limits.fill_wait_s, 0.002
        while not lock.try_take() and clock.monotonic() < end:
            clock.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.05)

    def _land_from_store(self, block: BlockId) -> None:
        self._came_back([block])  # bytes that are there now were put behind any drop so far
        data = self.objects.read_sync(block)
        metrics.BLOCK_FETCHES.labels("nowhere" if data is None else "store").inc()
        self._flights.land(block, data)
        if data is not None:
            self._keep(block, data)

    def _keep(self, block: BlockId, data: bytes) -> None:
        """Put a block that was checked into the tier, unless it was deleted meanwhile."""
        self.tier.put(block, data, owned=self.nodes.is_mine(block))
        with self._lock:
            is_dropped = block in self._dropped
        if is_dropped:
            self.tier.delete_many([block])

    def _side_by_side(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Run jobs that wait for the network; the first error is raised once all have ended."""
        if len(jobs) == 1:
            jobs[0]()
        else:
            self._askers.map(lambda job: job(), jobs)

    def has_many_sync(self, ids: Sequence[BlockId]) -> list[bool]:
        """See BlockStore. Only the object store is asked: what a cache has need not be durable any more."""
        return self.objects.has_many_sync(ids)

    def headers(self, ids: Sequence[BlockId]) -> list[BlockHeader | None]:
        """See StoreBlocks. Of the object store's copies, and their first bytes alone."""
        return self.objects.headers(ids)

    def scan_sync(self, low: int = 0, high: int = 65_536) -> Iterator[tuple[BlockId, int]]:
        """See BlockStore. By lists of the object store, for orphans."""
        return self.objects.scan_sync(low, high)

    # ---- writing ----

    def put_many_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """See BlockStore. Durable in the object store on return."""
        self.objects.put_many_sync(blocks)
        self._came_back([block for block, _ in blocks])
        groups: dict[int, list[tuple[BlockId, bytes]]] = defaultdict(list)
        for block, data in dict(blocks).items():
            for node in self.nodes.keepers(block):
                groups[node].append((block, data))
        for node, some in groups.items():
            self._warm_later(node, some)

    def _warm_later(self, node: int, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        size = sum(len(data) for _, data in blocks)
        with self._lock:
            if self._warming + size > self.limits.warm_bytes:
                metrics.BLOCK_WARMS.labels("skipped").inc(len(blocks))
                return
            self._warming += size
        try:
            self._warmers.submit(self._warm, node, blocks, size)
        except RuntimeError:  # closed
            with self._lock:
                self._warming -= size

    def _warm(self, node: int, blocks: Sequence[tuple[BlockId, bytes]], size: int) -> None:
        try:
            outcome = "done"
            if node == self.nodes.me:
                for block, data in blocks:
                    self._keep(block, data)
            elif self.nodes.is_avoided(node):
                outcome = "skipped"
            else:
                self._peers.warm(node, blocks)
            metrics.BLOCK_WARMS.labels(outcome).inc(len(blocks))
        except RingStale:
            metrics.BLOCK_WARMS.labels("skipped").inc(len(blocks))
        except ShardgitError as error:
            metrics.BLOCK_WARMS.labels("failed").inc(len(blocks))
            telemetry.log().warning("peer_failed", node=node, error=str(error))
            self.nodes.failed(node)
        finally:
            with self._lock:
                self._warming -= size

    def delete_many_sync(self, ids: Sequence[BlockId]) -> None:
        """See BlockStore."""
        self.objects.delete_many_sync(ids)
        self.drop_here(ids)
        groups: dict[int, list[BlockId]] = defaultdict(list)
        for block in dict.fromkeys(ids):
            for node in self.nodes.owners(block):
                if node != self.nodes.me and not self.nodes.is_avoided(node):
                    groups[node].append(block)
        self._side_by_side([partial(self._drop_there, *group) for group in groups.items()])

    def _drop_there(self, node: int, ids: Sequence[BlockId]) -> None:
        try:
            self._peers.drop(node, ids)
        except RingStale:
            with suppress(ShardgitError):
                self._peers.drop(node, ids)
        except ShardgitError as error:
            telemetry.log().warning("peer_failed", node=node, error=str(error))
            self.nodes.failed(node)

    # ---- for operators ----

    def whereabouts(self, ids: Sequence[BlockId]) -> tuple[dict[BlockId, list[int]], set[int]]:
        """Return which nodes say that they have blocks on their disks, and which nodes did not answer."""
        found: dict[BlockId, list[int]] = {}
        silent: set[int] = set()
        for node in (self.nodes.me, *sorted(set(self.nodes.ring.addresses) - {self.nodes.me})):
            for at in range(0, len(ids), ASKED_AT_ONCE):
                some = ids[at : at + ASKED_AT_ONCE]
                try:
                    here = self._had_by_now(node, some)
                except ShardgitError as error:
                    telemetry.log().warning("peer_failed", node=node, error=str(error))
                    silent.add(node)
                    break
                for block, is_here in zip(some, here, strict=True):
                    if is_here:
                        found.setdefault(block, []).append(node)
        return found, silent

    def _had_by_now(self, node: int, ids: Sequence[BlockId]) -> list[bool]:
        try:
            return self._had(node, ids)
        except RingStale:  # the newer ring was taken over
            return self._had(node, ids)

    def copy_from(self, node: int, block: BlockId) -> bytes | None:
        """Return a whole copy of a block from a node's disks, None when it has none to give."""
        try:
            for _, data in self._held(node, [block]):
                if data is not None:
                    verify_block(block, data)
                    return data
        except ShardgitError as error:
            telemetry.log().warning("peer_failed", node=node, error=str(error))
        return None

    def hand_over(self, source: int, target: int, ids: Sequence[BlockId]) -> HandedOver:
        """Give one node what another has on its disks, through this one; failures are counted, not raised."""
        try:
            here = self._had(target, ids)
        except ShardgitError as error:
            telemetry.log().warning("peer_failed", node=target, error=str(error))
            return HandedOver(failed=len(ids), silent=target)
        lacking = [block for block, is_here in zip(ids, here, strict=True) if not is_here]
        total = HandedOver(there=len(ids) - len(lacking))
        seen = 0
        batch: list[tuple[BlockId, bytes]] = []
        try:
            for block, data in self._held(source, lacking):
                seen += 1
                if data is None:
                    total += HandedOver(cold=1)
                    continue
                verify_block(block, data)
                batch.append((block, data))
                if sum(len(one) for _, one in batch) >= HAND_OVER_BYTES:
                    total += self._given(target, batch)
                    batch = []
        except ShardgitError as error:
            telemetry.log().warning("peer_failed", node=source, error=str(error))
            total += HandedOver(failed=len(lacking) - seen, silent=source)
        return total + self._given(target, batch)

    def _had(self, node: int, ids: Sequence[BlockId]) -> list[bool]:
        return self.tier.has_many(ids) if node == self.nodes.me else self._peers.has(node, ids)

    def _held(self, node: int, ids: Sequence[BlockId]) -> Iterator[tuple[BlockId, bytes | None]]:
        if node != self.nodes.me:
            yield from self._peers.get(node, ids, only_here=True)
            return
        for block in ids:
            yield block, self._here([block])[0]

    def _given(self, node: int, blocks: Sequence[tuple[BlockId, bytes]]) -> HandedOver:
        if not blocks:
            return HandedOver()
        try:
            taken = self._take(blocks) if node == self.nodes.me else self._peers.warm(node, blocks)
        except ShardgitError as error:
            telemetry.log().warning("peer_failed", node=node, error=str(error))
            return HandedOver(failed=len(blocks), silent=node)
        size = sum(len(data) for _, data in blocks) * taken // len(blocks)
        return HandedOver(warmed=taken, warmed_bytes=size, failed=len(blocks) - taken)

    # ---- for peers ----

    async def serve(self, ids: Sequence[BlockId], *, only_here: bool) -> list[bytes | None]:
        """Return blocks to a peer: what is on this node's disks, else, unless ``only_here``, what it can fetch."""
        if only_here:
            return await self._near.run(self._here, ids)
        return await self._servers.run(self.get_many_sync, ids)

    def _here(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        found = [self.tier.use(block, bytes) for block in ids]
        return [None if one is None else one[0] for one in found]

    async def has_here(self, ids: Sequence[BlockId]) -> list[bool]:
        """Tell a peer which blocks are on this node's disks."""
        return await self._near.run(self.tier.has_many, ids)

    async def take(self, blocks: Sequence[tuple[BlockId, bytes]]) -> int:
        """Take durable blocks from a peer; returns how many the ring gives this node.

        Errors: BlockCorrupt, and nothing is taken.
        """
        return await self._near.run(self._take, blocks)

    def _take(self, blocks: Sequence[tuple[BlockId, bytes]]) -> int:
        for block, data in blocks:
            verify_block(block, data)
        taken = [(block, data) for block, data in blocks if self.nodes.is_mine(block)]
        self._came_back([block for block, _ in taken])
        for block, data in taken:
            self._keep(block, data)
        return len(taken)

    async def drop(self, ids: Sequence[BlockId]) -> None:
        """Drop blocks that a peer has deleted."""
        await self._near.run(self.drop_here, ids)

    def drop_here(self, ids: Sequence[BlockId]) -> None:
        """Drop deleted blocks from this node's tier; what is on its way there does not stay."""
        with self._lock:
            for block in ids:
                self._dropped.add(block)
        self.tier.delete_many(ids)

    def _came_back(self, ids: Sequence[BlockId]) -> None:
        with self._lock:
            for block in ids:
                self._dropped.discard(block)

    def begin_threads(self) -> None:
        """Begin the threads, at the priority of the one that calls."""
        for pool in self._pools:
            pool.begin()
        self.objects.begin_threads()

    def look_around(self) -> None:
        """Do what keeps an idle process up to date: go by the newest ring, and the tier's own."""
        ring = self._newest() if self._newest is not None else None
        if ring is not None:
            self.nodes.take(ring)
        self.tier.look_around()

    def close(self) -> None:
        """End the threads and close the tier; no call may be under way."""
        for pool in self._pools:
            pool.close()
        self._peers.close()
        self.objects.close()
        self.tier.close()
