"""A bounded cache of blocks in one folder: LMDB environments in a row, the oldest dropped whole.

Deleting single blocks from one large environment would leave holes that large blocks do not fit in, and a file that
never shrinks. Here nothing is deleted to make room but whole files.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

from shardgit import clock, metrics, telemetry
from shardgit.blocks.generation_folder import GenerationFolder
from shardgit.blocks.shard import ShardStore
from shardgit.errors import (
    BlockCorrupt,
    DataLoss,
    Internal,
    ShardgitError,
    ShardMissing,
    StorageFull,
    Unavailable,
)
from shardgit.lmdbenv import LOCK_FILE_BYTES, PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from shardgit.oid import BlockId
    from shardgit.workers import Workers

T = TypeVar("T")
GENERATIONS = 8
CARRIED = 2  # of so many oldest generations a block that is read goes on to the newest
TRIES = 8
CARRIES_WAITING_MAX = 64
MAP_LEAST_BYTES = 64 << 20
TICK_NS = 50_000_000  # times of files are some milliseconds coarse
AWAY_S = 5.0  # how long a folder that failed is left alone
# Beside the blocks' own pages: the tree's, and those that two transactions before have left.
TREE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What a job made of a block; ``ages`` when the block's generation is among the next to be dropped."""

    result: T
    ages: bool


@dataclass(frozen=True, slots=True)
class Dropped:
    """A block was here, but damaged: it is not here any more."""


@dataclass(frozen=True, slots=True)
class _Generation:
    number: int
    inode: int  # of its folder
    store: ShardStore


class Generations:
    """At most ``bytes_max`` of blocks; any number of processes may share the folder.

    Nothing here raises because of the disk: a folder that is full, away or damaged misses what is asked for and takes
    nothing, and is looked at again after AWAY_S. A damaged block is dropped, a damaged environment too. Several
    processes that write at once may together be over the limit by a batch each; of a dropped generation the disk gets
    its bytes back when the last process has looked around.
    """

    def __init__(self, folder: Path, workers: Workers, *, bytes_max: int) -> None:
        self.folder = folder
        self.workers = workers
        self.generation_bytes = bytes_max // GENERATIONS - LOCK_FILE_BYTES
        self.block_max_bytes = self.generation_bytes - TREE_BYTES
        # Not LMDB's usual TiB: a process has 128 TiB of addresses, for all generations of all disks.
        pages = 4 * max(bytes_max // GENERATIONS, MAP_LEAST_BYTES) // PAGE_BYTES
        self._map_bytes = pages * PAGE_BYTES
        self._files = GenerationFolder(folder, most=GENERATIONS, map_bytes=self._map_bytes)
        self._open: tuple[_Generation, ...] = ()  # newest first
        self._mark = 0
        self._leaving: list[ShardStore] = []
        self._lock = threading.RLock()
        self._carrying: set[BlockId] = set()
        self._away_until = 0.0
        self._closed = False
        with self._tried("open"):
            self._files.set_up()
            self._refresh()

    def _tried(self, what: str) -> _Tried:
        return _Tried(self, what)

    def is_away(self) -> bool:
        """Whether the folder failed a moment ago."""
        return clock.monotonic() < self._away_until

    def leave_alone(self, what: str, error: Exception) -> None:
        """Note that the folder failed."""
        if not self.is_away():
            telemetry.log().warning(
                "tier_failed", path=str(self.folder), doing=what, error=str(error)
            )
        self._away_until = clock.monotonic() + AWAY_S

    # ---- who is here ----

    def _refresh(self) -> None:
        """Take over generations that came and went."""
        with self._lock:
            if not self.folder.exists():
                self._files.set_up()  # taken away under us
            mark = self.folder.stat().st_mtime_ns
            if mark == self._mark or self._closed:
                return
            if abs(time.time_ns() - mark) < TICK_NS:
                mark = 0  # another change in the same tick would have the same time
            before = {(one.number, one.inode): one for one in self._open}
            now: list[_Generation] = []
            for path in self._files.paths():
                number = self._files.number_of(path)
                try:
                    inode = path.stat().st_ino
                except FileNotFoundError:
                    continue  # another process drops it
                one = before.pop((number, inode), None)
                if one is None:
                    try:
                        store = ShardStore(
                            path, self.workers, durable=False, map_bytes=self._map_bytes
                        )
                        one = _Generation(number, inode, store)
                    except DataLoss:
                        if (path / "data.mdb").exists():  # else another process drops it
                            metrics.TIER_DROPS.labels("damaged").inc()
                        self._files.remove(path)
                        continue
                    except (OSError, ShardgitError):
                        mark = 0  # it is being dropped, or will open later
                        continue
                now.append(one)
            if tuple(now) != self._open:
                self._open = tuple(now)  # another tuple for other generations alone; see ``use``
            for gone in before.values():
                self._retire(gone)
            self._mark = mark

    def _retire(self, gone: _Generation) -> None:
        gone.store.retire()
        if not gone.store.idle():
            self._leaving.append(gone.store)

    def look_around(self) -> None:
        """Do what gives a disk its bytes back under an idle process."""
        with self._tried("look around"):
            self._refresh()
        with self._lock:
            self._leaving = [store for store in self._leaving if not store.idle()]
        self.workers.later(("seal", str(self.folder)), self._seal)

    def _seal(self) -> None:
        """Make durable what is not written to any more; may take a minute."""
        with self._tried("make durable"):
            self._files.seal([one.store for one in self._open[1:]])

    # ---- reading ----

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> Found[T] | Dropped | None:
        """Run a job over a block's bytes where they lie; None when it is not here. What the job raises is raised."""
        if self.is_away():
            return None
        used = self._open
        found = self._use(block, job)
        if not isinstance(found, Found):
            with self._tried("look for generations"):
                self._refresh()
            if self._open is not used:  # whichever thread has taken the others over
                return self._use(block, job) or found
        return found

    def _use(self, block: BlockId, job: Callable[[memoryview], T]) -> Found[T] | Dropped | None:
        dropped: Dropped | None = None
        for age, one in enumerate(self._open):
            run = _Run(job)
            try:
                found = one.store.use(block, run)
            except (ShardMissing, FileNotFoundError):
                if run.has_failed:
                    raise
                continue  # dropped this moment
            except (ShardgitError, OSError) as error:
                if run.has_failed or isinstance(error, Internal):
                    raise
                if isinstance(error, BlockCorrupt):
                    dropped = Dropped()
                    metrics.TIER_DROPS.labels("block").inc()
                    self._delete_from(one, [block])
                elif isinstance(error, DataLoss):
                    self._drop_damaged(one)
                else:
                    self.leave_alone("read", error)
                continue
            if found is not None:
                return Found(found[0], ages=age >= GENERATIONS - CARRIED)
        return dropped

    def _drop_damaged(self, one: _Generation) -> None:
        """Drop a generation whose trees are damaged, unless that was done: another one may have its number by now."""
        with self._tried("drop a damaged generation"), self._lock:
            if one in self._open:
                metrics.TIER_DROPS.labels("damaged").inc()
                self._open = tuple(other for other in self._open if other is not one)
                self._retire(one)
                if one.store.folder.stat().st_ino == one.inode:
                    self._files.remove(one.store.folder)

    def recheck(self, block: BlockId) -> bool:
        """Look whether a block's bytes are what they were, and drop them if not; says whether any were dropped."""
        dropped = False
        for one in self._open:
            try:
                one.store.read_sync(block)
            except BlockCorrupt:
                dropped = True
                metrics.TIER_DROPS.labels("block").inc()
                self._delete_from(one, [block])
            except (ShardgitError, OSError):
                continue
        return dropped

    def has_many(self, ids: Sequence[BlockId]) -> list[bool]:
        """Say which blocks are here."""
        found = [False] * len(ids)
        if self.is_away():
            return found
        with self._tried("look for generations"):
            self._refresh()
        for one in self._open:
            with suppress(ShardgitError, OSError):
                here = one.store.has_many_sync(ids)
                found = [before or now for before, now in zip(found, here, strict=True)]
        return found

    def sample(self, start: BlockId, count: int) -> list[BlockId]:
        """Return blocks that go next, from ``start`` on in their order; none while there is room."""
        generations = self._open
        if len(generations) < GENERATIONS:
            return []
        with suppress(ShardgitError, OSError):
            oldest = generations[-1].store
            for low in (start[0] << 8 | start[1], 0):
                found = [block for block, _ in islice(oldest.scan_sync(low), count)]
                if found:
                    return found
        return []

    def scan(self) -> Iterator[tuple[BlockId, int]]:
        """Return id and bytes of what is here, in no order; a block may be told twice."""
        for one in self._open:
            with suppress(ShardgitError, OSError):
                yield from one.store.scan_sync()

    def bytes_used(self) -> int:
        """Return the bytes of all files."""
        return self._files.bytes_used()

    # ---- writing ----

    def put(self, blocks: Sequence[tuple[BlockId, bytes]]) -> int:
        """Take blocks that were checked against their ids; returns how many, not durable ones."""
        taken = 0
        if self.is_away():
            return 0
        with self._tried("write"):
            for block, data in blocks:
                if len(data) > self.block_max_bytes:
                    continue
                self._put(block, data)
                taken += 1
        return taken

    def _put(self, block: BlockId, data: bytes) -> None:
        need = len(data) + 2 * PAGE_BYTES
        is_full = False
        for _ in range(TRIES):
            self._refresh()
            newest = self._open[0] if self._open else None
            try:
                if newest is not None and self._has_room(newest, need):
                    newest.store.put_verified_sync([(block, data)])
                    if self._files.is_sealed(newest.store):  # a newer one came, and time passed
                        self._files.unseal(newest.store)
                    return
            except (ShardMissing, FileNotFoundError):
                continue  # dropped by another process
            except StorageFull:
                if is_full or not self._drop_oldest(keep=1):
                    raise
                is_full = True
                continue
            except DataLoss:
                if newest is not None:
                    self._drop_damaged(newest)
                continue
            self._begin_one(newest.number if newest is not None else -1)
        raise Unavailable("generations come and go too fast", path=str(self.folder))

    def _has_room(self, one: _Generation, need: int) -> bool:
        return one.store.file_bytes() + need + TREE_BYTES // 2 <= self.generation_bytes

    def _begin_one(self, behind: int) -> None:
        """Begin a generation behind that one, unless another process just has; drop the oldest."""
        with self._lock:
            self._files.begin(behind)
            self._refresh()
        self.workers.later(("seal", str(self.folder)), self._seal)

    def _drop_oldest(self, *, keep: int) -> bool:
        with self._lock:
            paths = self._files.paths()
            if len(paths) <= keep:
                return False
            metrics.TIER_DROPS.labels("no_space").inc()
            self._files.remove(paths[-1])
            self._refresh()
            self._leaving = [store for store in self._leaving if not store.idle()]
            return True

    def carry(self, block: BlockId) -> None:
        """Bring a block of an old generation to the newest, soon."""
        if len(self._carrying) < CARRIES_WAITING_MAX and block not in self._carrying:
            self._carrying.add(block)
            self.workers.later(("carry", str(self.folder), block), lambda: self._carry(block))

    def _carry(self, block: BlockId) -> None:
        self._carrying.discard(block)
        found = self._use(block, bytes)
        if isinstance(found, Found) and found.ages:
            self.put([(block, found.result)])

    def delete(self, ids: Sequence[BlockId]) -> None:
        """Drop blocks, from all generations."""
        with self._tried("look for generations"):
            self._refresh()
        for one in self._open:
            self._delete_from(one, ids)

    def _delete_from(self, one: _Generation, ids: Sequence[BlockId]) -> None:
        with self._tried("delete"), suppress(ShardMissing, DataLoss):
            here = one.store.has_many_sync(ids)
            gone = [block for block, is_here in zip(ids, here, strict=True) if is_here]
            if gone:
                self._files.unseal(one.store)
                one.store.delete_many_sync(gone)

    def close(self) -> None:
        """Close every environment; no call may be under way."""
        with self._lock:
            self._closed = True
            for store in [*(one.store for one in self._open), *self._leaving]:
                store.close()
            self._open = ()


class _Tried:
    """Lets no failure of the disk out."""

    __slots__ = ("_part", "_what")

    def __init__(self, part: Generations, what: str) -> None:
        self._part = part
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, FileNotFoundError):
            return True  # another process dropped what we looked at
        if isinstance(error, OSError | ShardgitError):
            self._part.leave_alone(self._what, error)
            return True
        return False


class _Run(Generic[T]):
    """A job that remembers whether it was the one that failed; its result in a tuple, for it may be None."""

    __slots__ = ("has_failed", "job")

    def __init__(self, job: Callable[[memoryview], T]) -> None:
        self.job = job
        self.has_failed = False

    def __call__(self, view: memoryview) -> tuple[T]:
        self.has_failed = True
        result = self.job(view)
        self.has_failed = False
        return (result,)
