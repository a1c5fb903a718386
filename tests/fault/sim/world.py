"""A simulated world: processes over one virtual disk, clients that push, fetch, fork and move refs, and crashes."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import os
import shutil
import sys
import tempfile
import threading
from array import array
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fault.sim.disk import Disk, SimJournal, SimShard
from fault.sim.history import History
from fault.sim.scheduler import Process, Scheduler, SimLock

import shardgit.blocks.routed
import shardgit.operate.compact
import shardgit.operate.planning
import shardgit.operate.rebalance
from shardgit import clock, faultpoints
from shardgit.backup.source import CutSnapshot
from shardgit.backup.target import Target
from shardgit.blocks import block
from shardgit.blocks.block import partition_of
from shardgit.blocks.routed import RoutedStore
from shardgit.journal.interface import Row
from shardgit.journal.memory import Rows
from shardgit.journal.records import RING_KEY, STORE_KEY, StoreRecord
from shardgit.limits import Limits
from shardgit.node import JournalRings
from shardgit.oid import BlockId, HashKind
from shardgit.operate.gc import GcOptions, gc
from shardgit.operate.named import named_blocks
from shardgit.operate.naming import Following
from shardgit.operate.operation import Control
from shardgit.refs.table import RefTable
from shardgit.ring.ring import PARTITIONS, Ring, RingShard
from shardgit.service.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

    from fault.sim.client import Attempt

    from shardgit.blocks.shard import ShardStore
    from shardgit.oid import ObjectId
    from shardgit.service.look import Look

LIMITS = Limits(
    block_target_bytes=4_000,
    recent_embedded_max_bytes=900,
    recents_settle=4,
    recents_max=8,
    recents_max_bytes=20_000,
)
CRASHES_MAX = 4
LONG_MS = 40 * 86_400_000.0


class SimWorkers:
    """What stands for Workers: jobs run where they are called; what runs behind is a task of the process."""

    threads = 1

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._later: set[Hashable] = set()

    def map(self, job: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return [job(item) for item in items]

    async def run(self, job: Callable[..., Any], /, *words: Any, **named: Any) -> Any:
        return job(*words, **named)

    def later(self, key: Hashable, job: Callable[[], object]) -> None:
        if key in self._later:
            return
        self._later.add(key)

        def run() -> None:
            self._later.discard(key)
            self._world.background(job)

        self._world.scheduler.spawn(self._process, f"later {key!r}"[:24], run)

    def close(self) -> None:
        """Nothing is held."""


class SimControl(Control):
    """Waits in simulated time."""

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            clock.sleep(seconds)
        self.check()


class SimRings(JournalRings):
    """The rings of the simulated journal; all shards are open from the start."""

    def open_shard(self, number: int) -> ShardStore:
        raise AssertionError(number)

    def is_open_shard(self, number: int, shard: ShardStore) -> bool:
        return True


class SimProcess(Process):
    """A simulated process with a store of its own."""

    def __init__(self, name: str, world: World, disk: Disk | None = None) -> None:
        super().__init__(name)
        disk = disk or world.disk
        self.workers = SimWorkers(world, self)
        self.journal = SimJournal(disk, world.scheduler, self)
        shards = {number: SimShard(number, disk, world.scheduler, self) for number in disk.shards}
        row = disk.rows.rows[RING_KEY]
        self.blocks = RoutedStore(
            Ring.decode(row.value),
            cast("Any", shards),
            cast("Any", self.workers),
            source=SimRings(cast("Any", self.journal), world.scratch, cast("Any", self.workers)),
            revision=row.revision,
        )
        self.blocks._writers = cast("Any", self.workers)
        self.store = Store(
            journal=cast("Any", self.journal),
            blocks=self.blocks,
            refs=RefTable(self.blocks),
            workers=cast("Any", self.workers),
            limits=world.limits,
            scratch=world.scratch,
        )

    def forget(self) -> None:
        """Let go of its leases, as the kernel tells of a process that is gone."""
        self.store.leases.close()


class World:
    """All of one seed."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        _take_over()
        self.seed = seed
        self.scheduler = Scheduler(seed, trace=trace)
        self.dice = self.scheduler.dice
        count = self.dice.choice((1, 1, 2, 3))
        self.ring = _ring(count)
        self.disk = Disk({number: {} for number in range(count)})
        first = {STORE_KEY: StoreRecord(bytes(16)).encode(), RING_KEY: _encoded_ring(count)}
        self.disk.rows = Rows({key: Row(key, value, 1) for key, value in first.items()}, 1)
        self.limits = dataclasses.replace(
            LIMITS,
            block_target_bytes=self.dice.choice((1_500, 4_000, 60_000)),
            recent_embedded_max_bytes=self.dice.choice((0, 900, 900, 100_000)),
            recents_settle=self.dice.choice((2, 4, 4, 50)),
        )
        self.rewinds = self.dice.random() < 0.3
        if self.rewinds:  # so that little lies in one block
            self.limits = dataclasses.replace(
                self.limits, block_target_bytes=1_500, recent_embedded_max_bytes=0
            )
        self.scratch = Path(tempfile.mkdtemp(prefix="sim-", dir=_memory()))
        self.folder = self.scratch
        self.history = History(self.dice.choice((HashKind.SHA1,) * 7 + (HashKind.SHA256,)))
        self.attempts: list[Attempt] = []
        self.uploads: list[Attempt] = []
        self.reads = 0
        self.moves = count > 1 and self.dice.random() < 0.12
        self.crashes = 0
        self.checks = 0
        self.restored = 0
        self.counts: Counter[str] = Counter()
        self.crash_rate = self.dice.choice((0.0, 0.002, 0.004, 0.012))
        self.full = self.dice.choice((0.0, 0.0, 0.0, 0.03))
        self.processes: list[SimProcess] = []
        self.works: dict[str, list[Callable[[SimProcess], None]]] = {}
        self.check: Callable[..., None] | None = None
        self.scheduler.at_step = self._at_step

    # ---- see client.Place ----

    def number(self) -> int:
        return len(self.attempts)

    def moment(self) -> int:
        return self.scheduler.steps

    def now_ms(self) -> float:
        return self.scheduler.now

    def control(self) -> Control:
        return SimControl()

    def pause(self) -> None:
        self.scheduler.switch("client is slow")
        if self.dice.random() < (0.6 if self.rewinds else 0.2):
            self.scheduler.sleep(self.dice.choice((0.05, 0.3)))

    def tell(self, attempt: Attempt) -> None:
        """Everybody sees it."""

    def learn(self, store: Store, look: Look, refs: Sequence[ObjectId]) -> None:
        """Nothing is made elsewhere."""

    # ---- processes ----

    def start(self, name: str, works: list[Callable[[SimProcess], None]]) -> None:
        """Start a process that does ``works``, each in a task, and does them again when it was killed."""
        self.works[name] = works
        process = SimProcess(name, self)
        self.processes.append(process)
        for number, work in enumerate(works):
            self.scheduler.spawn(process, f"client {number}", functools.partial(work, process))

    def background(self, job: Callable[[], object]) -> None:
        """Run a job as Workers.later does: what it raises is not lost on anybody but the log."""
        from fault.sim.client import expected

        with expected():
            job()

    def kill(self, processes: list[SimProcess]) -> None:
        """Kill processes at once, and start them anew."""
        self.crashes += 1
        for process in processes:
            process.dead = True
            process.forget()
            self.processes.remove(process)
            for attempt in self.attempts:
                if attempt.process is process and attempt.ended is None:
                    attempt.unknown = True
        checker = SimProcess("checker", self)
        self.scheduler.spawn(checker, "check", self._check_all)
        for process in processes:
            self.start(process.name, self.works[process.name])

    def _check_all(self, *, last: bool = False) -> None:
        """Check the disk as it is, with nobody else moving."""
        hook, self.scheduler.at_step = self.scheduler.at_step, None
        self.scheduler.quiet = True
        full, self.disk.full = self.disk.full, 0.0
        try:
            self.checks += 1
            if self.check is not None:
                judge = SimProcess("judge", self)
                self.check(self, judge.store)
                judge.forget()
                if last:
                    self._check_backups()
                    self._check_space()
        finally:
            self.scheduler.quiet = False
            self.scheduler.at_step = hook
            self.disk.full = full

    def _check_backups(self) -> None:
        """Restore the newest backup that was acknowledged, and judge it like the store."""
        assert self.check is not None
        made = [one for one in self.attempts if one.done and one.what.startswith("backup ")]
        if not made:
            return
        self.restored += 1
        newest = max(made, key=lambda one: one.begun)
        target = Target.open(str(self.folder / "backup"))
        target.load()
        cut = target.cut(newest.what.partition(" ")[2])
        snapshot = CutSnapshot(target, cut)
        rows = {row.key: row for number in range(len(cut.chunks)) for row in snapshot.rows(number)}
        disk = Disk({number: {} for number in self.disk.shards})
        disk.rows = Rows(rows, cut.facts.revision)
        process = SimProcess("restored", self, disk)
        blocks = [BlockId(block) for block in cut.block_ids()]
        process.blocks.put_many_sync([(block, target.get(block)) for block in blocks])
        self.check(self, process.store, before=newest.begun)

    def _check_space(self) -> None:
        """Let all time be over and collect: of what was garbage nothing is left, at once.

        What the gc itself has written and replaced is too young for it, and goes with the next one.
        """
        assert self.check is not None
        for process in self.processes:
            process.forget()  # they have ended
        self.scheduler.now += LONG_MS
        before = {block for block, _ in SimProcess("before", self).blocks.scan_sync()}
        for again in (False, True):
            process = SimProcess("gc", self)
            done = gc(
                process.store,
                GcOptions(grace_s=0.0, orphan_age_s=0.0, wait_s=1.0, garbage_min=0.0),
                control=self.control(),
            )
            named: set[BlockId] = set()
            naming = Following(process.store.blocks)
            with process.store.journal.snapshot() as snapshot:
                for row in snapshot.range(b"\0", b"\xff"):
                    named.update(naming.of(row))
            # Roots hold some inside; a settle that died has put these out, and the next one does so again.
            embedded = named_blocks(process.store, control=self.control()).embedded
            process.forget()
            found = {block for block, _ in process.blocks.scan_sync()}
            left = (found if again else found & before) - named - embedded
            homes = [
                block
                for block in named
                if not any(
                    block in self.disk.shards[home]
                    for home in process.blocks.ring.reads_of(partition_of(block))
                )
            ]
            assert not homes, f"{len(homes)} blocks lie where the ring does not look"
            assert named <= found, f"{len(named - found)} named blocks are gone after {done}"
            assert not left, f"{len(left)} blocks that nothing names are left after {done}"
            self.scheduler.now += 1_000
        self.check(self, SimProcess("after", self).store)

    def _at_step(self, label: str) -> None:
        del label
        chance = self.dice.random()
        if chance < self.crash_rate and self.crashes < CRASHES_MAX and self.processes:
            if self.dice.random() < 0.3:
                self.kill(list(self.processes))
            else:
                self.kill([self.dice.choice(self.processes)])
        elif chance > 0.9985 and self.processes:
            stopped = self.dice.choice(self.processes)
            stopped.stopped = not stopped.stopped
        elif chance > 0.997:
            self.disk.full = self.full if not self.disk.full else 0.0
        elif chance > 0.996:  # time goes by
            self.scheduler.now += self.dice.choice((1_000, 60_000, 3_600_000))

    # ---- the run ----

    def run(self, begin: Callable[[SimProcess], None]) -> None:
        """Run ``begin`` alone, then all processes to their end, then check."""
        with _simulated(self):
            waiting, self.scheduler.tasks = self.scheduler.tasks, []
            process = SimProcess("begin", self)
            self.scheduler.spawn(process, "begin", functools.partial(begin, process))
            self.scheduler.quiet = True
            self.scheduler.run()
            self.scheduler.quiet = False
            self.scheduler.tasks = waiting
            self.scheduler.run()
            if not self.scheduler.failures:
                self.disk.full = 0.0
                checker = SimProcess("checker", self)
                last = functools.partial(self._check_all, last=True)
                self.scheduler.spawn(checker, "check", last)
                self.scheduler.run()
        shutil.rmtree(self.scratch, ignore_errors=True)


@functools.cache
def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@functools.cache
def _ring(count: int) -> Ring:
    table = array("H", [partition % count for partition in range(PARTITIONS)])
    return Ring(1, 0, tuple(RingShard(number, number) for number in range(count)), (table,))


@functools.cache
def _encoded_ring(count: int) -> bytes:
    return _ring(count).encode()


class _Threading:
    Lock = SimLock

    def __getattr__(self, name: str) -> object:
        return getattr(threading, name)


_decode = Ring.decode


@functools.cache
def _decoded(data: bytes) -> Ring:
    return _decode(data)


def _cheap_build(shards: Sequence[RingShard], *, before: Ring, seed: int = 0, **_: object) -> Ring:
    """Return a ring that the real builder might have made, a thousand times as fast."""
    full = [shard.number for shard in shards if shard.weight > 0]
    row = array("H", bytes(2 * PARTITIONS))
    for low in range(0, PARTITIONS, 1_024):
        home = full[(low // 1_024 + before.epoch) % len(full)]
        row[low : low + 1_024] = array("H", [home]) * 1_024
    return Ring(before.epoch + 1, seed, tuple(shards), (row,))


@functools.cache
def _take_over() -> None:
    """Give shardgit's modules locks that the scheduler knows; once in a process, for good."""
    shardgit.operate.compact.WANTED_BYTES = 500
    shardgit.operate.rebalance.STEP_PARTITIONS = 8_192
    shardgit.operate.rebalance.GROUP_BYTES = 3_000
    shardgit.operate.planning.STEP_PARTITIONS = 32_768
    setattr(shardgit.operate.planning, "build", _cheap_build)  # noqa: B010
    shardgit.blocks.routed.SCAN_PARTITIONS = 16_384
    setattr(Ring, "decode", _decoded)  # noqa: B010
    for name, module in list(sys.modules.items()):
        # Backups are put by threads of their own.
        if name.startswith("shardgit") and not name.startswith("shardgit.backup"):
            if getattr(module, "Lock", None) is threading.Lock:
                module.Lock = SimLock  # type: ignore[attr-defined]
            if getattr(module, "threading", None) is threading:
                module.threading = _Threading()  # type: ignore[attr-defined]


@contextmanager
def _simulated(world: World) -> Iterator[None]:
    """Put the world's clock, dice and locks in the place of the machine's."""
    scheduler, dice = world.scheduler, world.dice
    urandom, flock = os.urandom, fcntl.flock

    def patient(file: Any, how: int) -> None:
        while True:
            try:
                return flock(file, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if how & fcntl.LOCK_NB:
                    raise
                scheduler.switch("flock", stay=0.0)

    with ExitStack() as stack:
        stack.enter_context(clock.replaced(scheduler))
        stack.enter_context(faultpoints.listening(lambda name: scheduler.switch(f"at {name}")))
        SimLock.scheduler = scheduler
        os.urandom = dice.randbytes
        block.fresh_nonces()
        fcntl.flock = patient
        try:
            yield
        finally:
            os.urandom, fcntl.flock = urandom, flock
            block.fresh_nonces()
            SimLock.scheduler = None
