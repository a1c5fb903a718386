"""The workers of a server: each has a post, is started again when it dies, and may be replaced while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shardgit import telemetry
from shardgit.accepting import ABSENT, Loads, Place
from shardgit.config import WORKERS_MAX
from shardgit.counts import bury
from shardgit.errors import Refused, ShardgitError
from shardgit.node import check_readers

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shardgit.config import ServeConfig

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 10.0
STEADY_S = 60.0  # a worker that lived that long is restarted without a wait
START_MAX_S = 60.0
KILL_AFTER_S = 10.0  # past the drain
# What gRPC writes beside our log is no JSON, and any client may cause it.
QUIET = {"GRPC_VERBOSITY": "NONE"}
RETIRE = signal.SIGUSR1  # tells a worker that another serves in its place: there is no hurry


@dataclass(frozen=True, slots=True)
class Sockets:
    """Those that workers inherit: on which HTTP and SSH connections come."""

    http: tuple[int, ...]
    ssh: tuple[int, ...]


@dataclass(eq=False, slots=True)
class Worker:
    """A worker's process; ``slot`` is its own among all that run."""

    slot: int
    config: ServeConfig
    process: asyncio.subprocess.Process
    ended: asyncio.Future[int]


class Crew:
    """Keeps workers at their posts until ``stop``; ``hurry`` kills.

    A post has two slots, so that a worker may serve there while the one before it still ends its requests.
    ``died`` is called for each that ends by itself, ``serves`` when those that serve have changed.
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        sockets: Sockets,
        metrics: str,
        died: Callable[[], None],
        serves: Callable[[], None],
    ) -> None:
        self.config = config
        self.sockets = sockets
        self.metrics = metrics
        self.died = died
        self.serves = serves
        self.loads = Loads.make(2 * WORKERS_MAX)
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.serving: set[int] = set()
        self._posts: list[Post] = []
        self._readers = asyncio.Lock()

    @property
    def count(self) -> int:
        """How many workers there are to be."""
        return self.config.workers or os.cpu_count() or 1

    async def run(self) -> None:
        """Have workers serve until the stop. Errors: Refused, in a group, when one never starts."""
        try:
            async with asyncio.TaskGroup() as self._group:
                for number in range(self.count):
                    self._add(number)
        finally:
            self.loads.close()

    def _add(self, number: int) -> None:
        post = Post(self, number)
        self._posts.append(post)
        self._group.create_task(post.keep())

    async def roll(self, config: ServeConfig) -> bool:
        """Replace all workers, one after another, by such of another configuration; says whether all were.

        Where the first does not come to serve, nothing has changed. Where a later one does not, those that are left
        serve on as they are.
        """
        before, self.config = self.config, config
        for at, post in enumerate(self._posts[: self.count]):
            if self.stop.is_set():
                return False
            if not await post.replace():
                if at == 0:
                    self.config = before
                return False
        for number in range(len(self._posts), self.count):
            self._add(number)
        surplus, self._posts = self._posts[self.count :], self._posts[: self.count]
        for post in surplus:
            await post.leave()
        return True

    def now_serving(self, worker: Worker) -> None:
        """Note that a worker takes connections."""
        self.serving.add(worker.slot)
        self.serves()

    def serves_no_more(self, worker: Worker) -> None:
        """Note that a worker takes no more connections."""
        self.serving.discard(worker.slot)
        self.serves()

    async def start(self, slot: int) -> Worker:
        """Start a worker process."""
        sockets = self.sockets
        place = Place(slot, self.count, sockets.http, sockets.ssh, self.loads.file)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "shardgit.worker",
            msgspec.json.encode(self.config).decode(),
            msgspec.json.encode(place).decode(),
            pass_fds=(*sockets.http, *sockets.ssh, self.loads.file),
            stdin=asyncio.subprocess.PIPE,  # its end tells the worker that the supervisor is gone
            stdout=asyncio.subprocess.PIPE,
            env={**QUIET, **_environment(), "PROMETHEUS_MULTIPROC_DIR": self.metrics},
            start_new_session=True,  # ctrl-C reaches the supervisor, which stops workers in order
        )
        return Worker(slot, self.config, process, asyncio.ensure_future(process.wait()))

    async def until_ready(self, worker: Worker) -> bool:
        """Wait until a worker takes connections; says whether it does."""
        assert worker.process.stdout is not None
        first_line = asyncio.ensure_future(worker.process.stdout.readline())
        stopping = asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait(
                {first_line, stopping}, timeout=START_MAX_S, return_when=asyncio.FIRST_COMPLETED
            )
            return first_line.done() and first_line.result() == b"ready\n"
        finally:
            first_line.cancel()
            stopping.cancel()

    async def end(self, worker: Worker, *, retire: bool = False) -> int:
        """Have a worker end its requests and go, in time; with ``retire`` in much time. Returns its exit code."""
        if retire and not self.stop.is_set():
            _tell(worker, RETIRE)
            await self._first(worker.ended, self.stop, seconds=worker.config.retire_s)
        if not worker.ended.done():
            _tell(worker, signal.SIGTERM)
            await self._first(
                worker.ended, self.hurry, seconds=worker.config.drain_s + KILL_AFTER_S
            )
        if not worker.ended.done():
            _tell(worker, signal.SIGKILL)
            await asyncio.wait({worker.ended})
        self.buried(worker)
        return worker.ended.result()

    def buried(self, worker: Worker) -> None:
        """Let go of what a worker that has ended leaves behind."""
        self.loads.tell(worker.slot, ABSENT)
        try:
            bury(Path(self.metrics), worker.process.pid)
        except OSError as error:
            telemetry.log().error("counts_lost", error=str(error))

    async def free_readers(self) -> None:
        """Free the reader slots that a dead worker left; an old reader keeps pages from reuse."""
        if self.config.in_cluster:
            return  # the process that feeds the replica does so
        async with self._readers:  # an environment is open once in a process
            try:
                freed = await asyncio.to_thread(check_readers, self.config.folder)
            except (ShardgitError, OSError) as error:  # a shard that leaves at that moment
                telemetry.log().error("reader_check_failed", error=str(error))
            else:
                telemetry.log().info("readers_freed", count=freed)

    @staticmethod
    async def _first(ended: asyncio.Future[int], event: asyncio.Event, *, seconds: float) -> None:
        waits = asyncio.ensure_future(event.wait())
        either: list[asyncio.Future[Any]] = [ended, waits]
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        waits.cancel()


class Post:
    """Where one worker serves at a time, beside one that ends its requests."""

    def __init__(self, crew: Crew, number: int) -> None:
        self.crew = crew
        self.number = number
        self._now: Worker | None = None
        self._before: asyncio.Task[int] | None = None
        self._slot_before = -1
        self._hurried = asyncio.Event()
        self._changed = asyncio.Event()
        self._gone = asyncio.Event()  # the post itself is given up
        self._ever = False
        self._starting = asyncio.Lock()

    async def keep(self) -> None:
        """Have somebody serve here until the stop. Errors: Refused when nobody ever could."""
        delay = BACKOFF_MIN_S
        try:
            while not self._over():
                begun = time.monotonic()
                code = await self._one()
                if self._over() or code is None:
                    continue
                if not self._ever:
                    raise Refused("a worker does not start", worker=self.number, exit_code=code)
                self.crew.died()
                telemetry.log().warning("worker_died", worker=self.number, exit_code=code)
                await self.crew.free_readers()
                steady = time.monotonic() - begun > STEADY_S
                delay = BACKOFF_MIN_S if steady else min(delay * 2, BACKOFF_MAX_S)
                await self._sleep(delay)
        finally:
            if self._now is not None:
                self.crew.serves_no_more(self._now)
                await self.crew.end(self._now)
            if self._before is not None:
                await self._before

    def _over(self) -> bool:
        return self.crew.stop.is_set() or self._gone.is_set()

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.crew.stop.wait()

    async def _one(self) -> int | None:
        """Watch over who serves; returns the exit code of one that ended by itself, None where another serves now."""
        async with self._starting:
            if self._now is None:
                fresh = await self._begun()
                if isinstance(fresh, int):
                    return fresh
                self._now = fresh
            watched = self._now
            self._changed.clear()
        events = [self._changed.wait(), self.crew.stop.wait(), self._gone.wait()]
        waits: set[asyncio.Future[Any]] = {asyncio.ensure_future(each) for each in events}
        await asyncio.wait({watched.ended, *waits}, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
        if self._over() or self._now is not watched:
            return None
        self._now = None
        self.crew.serves_no_more(watched)
        self.crew.buried(watched)
        return watched.ended.result()

    async def _begun(self) -> Worker | int:
        """Start a worker in a slot that is free; returns it once it serves, else its exit code."""
        busy = {self._slot_before} | ({self._now.slot} if self._now is not None else set())
        slot = next(one for one in (2 * self.number, 2 * self.number + 1) if one not in busy)
        worker = await self.crew.start(slot)
        try:
            is_ready = await self.crew.until_ready(worker)
        except BaseException:
            await self.crew.end(worker)
            raise
        if is_ready:
            self._ever = True
            self.crew.now_serving(worker)
            return worker
        return await self.crew.end(worker)

    async def replace(self) -> bool:
        """Put another worker in the place of the one that serves; says whether it came to serve.

        One that still ends its requests from the time before is asked to hurry.
        """
        await self._hurry_before()
        async with self._starting:
            if self._over():
                return False
            fresh = await self._begun()
            if isinstance(fresh, int):
                telemetry.log().error("worker_not_replaced", worker=self.number, exit_code=fresh)
                return False
            old, self._now = self._now, fresh
            self._changed.set()
            if old is not None:
                self._retire(old)
        return True

    async def leave(self) -> None:
        """Give the post up; who serves here ends its requests first."""
        await self._hurry_before()
        async with self._starting:
            old, self._now = self._now, None
            self._gone.set()
            if old is not None:
                self._retire(old)

    def _retire(self, old: Worker) -> None:
        self.crew.serves_no_more(old)
        self._slot_before = old.slot
        self._hurried.clear()
        self._before = asyncio.ensure_future(self._retired(old))

    async def _retired(self, old: Worker) -> int:
        leaving = asyncio.ensure_future(self.crew.end(old, retire=True))
        hurried = asyncio.ensure_future(self._hurried.wait())
        either: set[asyncio.Future[Any]] = {leaving, hurried}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not leaving.done():
            _tell(old, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(old.config.drain_s + KILL_AFTER_S):
                    await asyncio.shield(leaving)
            _tell(old, signal.SIGKILL)
        code = await leaving
        self._slot_before = -1
        if code:
            await self.crew.free_readers()
        telemetry.log().info("worker_replaced", worker=self.number, exit_code=code)
        return code

    async def _hurry_before(self) -> None:
        if self._before is not None:
            if not self._before.done():  # those gRPC connections whose age comes
                await asyncio.wait({self._before}, timeout=self.crew.config.grpc_connection_s * 1.2)
            self._hurried.set()
            await asyncio.shield(self._before)
            self._before = None


def _tell(worker: Worker, what: signal.Signals) -> None:
    if not worker.ended.done():
        with contextlib.suppress(ProcessLookupError):
            worker.process.send_signal(what)


def _environment() -> dict[str, str]:
    """Return what workers are told of the environment: the service manager's socket is the supervisor's."""
    ours = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
    return {key: value for key, value in os.environ.items() if key not in ours}
