"""The one door to threads: a bounded pool whose jobs are never abandoned."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import partial
from queue import SimpleQueue
from threading import Event, Lock, Semaphore, Thread, current_thread
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

from shardgit import telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterable, Iterator

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")

tenant: ContextVar[str] = ContextVar("tenant", default="")
"""For whom the jobs of this task are: those of tenants take turns, however many one of them brings."""


class Later(Generic[T]):
    """What a job returns whose outcome another thread will tell: its own goes on to the next job meanwhile.

    ``start`` is called with what is to be told the outcome, once.
    """

    __slots__ = ("start",)

    def __init__(self, start: Callable[[Callable[[T], None]], None]) -> None:
        self.start = start


class _Job(Generic[T]):
    """A job whose outcome goes back to the event loop that wants it.

    Not a concurrent.futures.Future: one of those with its asyncio twin and shield costs 0.1 ms of CPU a job, a third
    of what a small push spends on the event loop.
    """

    __slots__ = (
        "after",
        "begun_s",
        "call",
        "commits",
        "ended",
        "future",
        "loop",
        "made_s",
        "told_s",
    )

    def __init__(self, call: Callable[[], T | Later[T]], loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.loop = loop
        self.future: asyncio.Future[T] = loop.create_future()
        self.after: asyncio.Future[None] | None = None  # of a cancelled caller that waits
        self.ended = False
        self.commits = False  # its outcome comes from elsewhere, later
        self.made_s = self.begun_s = self.told_s = time.monotonic()

    def run(self) -> None:
        """Run in a worker's thread."""
        self.begun_s = time.monotonic()
        try:
            result = self.call()
            if isinstance(result, Later):
                self.commits, self.told_s = True, time.monotonic()
                result.start(lambda outcome: self._hand_back(outcome, None))
                return
        except BaseException as error:
            self._hand_back(None, error)
        else:
            self._hand_back(result, None)

    def _hand_back(self, result: T | None, error: BaseException | None) -> None:
        if self.told_s == self.made_s:
            self.told_s = time.monotonic()
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self._deliver, result, error)

    def _deliver(self, result: T | None, error: BaseException | None) -> None:
        self.ended = True
        if self.after is not None:
            if not self.after.done():
                self.after.set_result(None)
        elif self.future.done():
            return  # cancelled in this very turn of the loop
        elif error is None:
            self.future.set_result(result)  # type: ignore[arg-type]
        elif isinstance(error, StopIteration):  # no future takes that
            self.future.set_exception(RuntimeError("job raised StopIteration"))
        else:
            self.future.set_exception(error)

    async def outcome(self) -> T:
        """Wait for the end of the job, however often the caller is cancelled meanwhile."""
        try:
            return await self.future
        except asyncio.CancelledError:
            while not self.ended:
                self.after = self.loop.create_future()
                with suppress(asyncio.CancelledError):
                    await self.after
            raise
        finally:
            telemetry.spend("queue", self.begun_s - self.made_s)
            telemetry.spend("work", self.told_s - self.begun_s)
            if self.commits:
                telemetry.spend("commit", time.monotonic() - self.told_s)
            # An error leads to the frames that it passed, hence through us to itself, and would keep all that they
            # hold (leases among it) until Python looks for cycles.
            del self.future


class _Turns:
    """Jobs that wait: each tenant's in the order in which they came, and of tenants one job each in turn.

    Ended by one None for each who takes, which comes behind all jobs.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: dict[str, deque[Callable[[], object]]] = {}
        self._turns: deque[tuple[str, float]] = (
            deque()
        )  # tenants that have jobs, and since when they wait for a turn
        self._ready: SimpleQueue[bool] = (
            SimpleQueue()
        )  # one item for each job; waits without the GIL

    def put(self, whose: str, job: Callable[[], object]) -> None:
        """Let a job wait."""
        with self._lock:
            waiting = self._waiting.get(whose)
            if waiting is None:
                waiting = self._waiting[whose] = deque()
                self._turns.append((whose, time.monotonic()))
            waiting.append(job)
        self._ready.put(True)

    def end(self) -> None:
        """Send one of those who take home, behind all jobs."""
        self._ready.put(False)

    def get(self) -> Callable[[], object] | None:
        """Take the next job, once there is one."""
        if not self._ready.get():
            return None
        with self._lock:
            whose, _ = self._turns.popleft()
            waiting = self._waiting[whose]
            job = waiting.popleft()
            if waiting:
                self._turns.append((whose, time.monotonic()))
            else:
                del self._waiting[whose]
        return job

    def count(self) -> int:
        """Return how many jobs wait."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def waited_s(self) -> float:
        """Return for how long the tenant has waited whose turn is next, 0 when none does."""
        with self._lock:
            since = self._turns[0][1] if self._turns else None
        return 0.0 if since is None else time.monotonic() - since


class Workers:
    """A bounded thread pool for CPU work without the GIL and for LMDB transactions."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._jobs = _Turns()
        self._running: list[Thread] = []
        self._busy: set[str] = set()  # threads that have a job
        self._behind = ThreadPoolExecutor(1, thread_name_prefix="shardgit-behind")
        self._later: set[Hashable] = set()
        self._lock = Lock()
        self._closed = False

    def _submit(self, job: Callable[[], object]) -> None:
        with self._lock:  # a job behind those that end the threads would never run
            if self._closed:
                raise RuntimeError("workers are closed")
            self._begin_one()
            # Ids of requests, and who they are counted for, go along into the thread.
            self._jobs.put(tenant.get(), partial(copy_context().run, job))

    def _begin_one(self) -> None:
        if len(self._running) < self.threads:
            name = f"shardgit_{len(self._running)}"
            thread = Thread(target=self._work, name=name, daemon=True)
            thread.start()
            self._running.append(thread)

    def begin(self) -> None:
        """Begin all threads now: one that a job begins has the priority of whoever brings that job, for ever."""
        with self._lock:
            if not self._closed:
                for _ in range(self.threads - len(self._running)):
                    self._begin_one()
                self._behind.submit(_nothing)

    def _work(self) -> None:
        me = current_thread().name
        while (job := self._jobs.get()) is not None:
            self._busy.add(me)
            job()
            self._busy.discard(me)
            del job  # what it holds must not wait for the next one

    async def run(self, job: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``job`` in a thread. A cancelled caller waits for the job's end, then is cancelled.

        A job may own a transaction or a buffer of the caller's, so it must never outlive the call.
        """
        made = _Job(lambda: job(*args, **kwargs), asyncio.get_running_loop())
        self._submit(made.run)
        return await made.outcome()

    async def run_through(self, job: Callable[[], T | Later[T]]) -> T:
        """Run ``job`` in a thread, as ``run`` does; its outcome may come from another thread, later."""
        made = _Job(job, asyncio.get_running_loop())
        self._submit(made.run)
        return await made.outcome()

    def map(self, job: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """Run ``job`` over ``items`` side by side from a thread outside the pool, results in order.

        The first error is raised once all jobs have ended.
        """
        outcomes: dict[int, T] = {}
        errors: dict[int, BaseException] = {}
        ended = Semaphore(0)

        def one(number: int, item: S) -> None:
            try:
                outcomes[number] = job(item)
            except BaseException as error:
                errors[number] = error
            finally:
                ended.release()

        count = 0
        for number, item in enumerate(items):
            self._submit(lambda number=number, item=item: one(number, item))  # type: ignore[misc]
            count += 1
        for _ in range(count):
            ended.acquire()
        try:
            if errors:
                raise errors[min(errors)]
            return [outcomes[number] for number in range(count)]
        finally:  # errors, and outcomes that are some, lead to the frames of their jobs, hence to these
            outcomes.clear()
            errors.clear()

    def submit(self, job: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``job`` beside the thread that asks, one outside the pool, which must wait for the result."""
        future: Future[T] = Future()

        def one() -> None:
            try:
                future.set_result(job(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        self._submit(one)
        return future

    def later(self, key: Hashable, job: Callable[[], object]) -> None:
        """Run ``job`` behind all else, in a thread of its own; dropped while one of its key waits.

        For work that may also never run: what it raises is logged, and closing drops what waits.
        """
        with self._lock:
            if key in self._later or self._closed:
                return
            self._later.add(key)
            self._behind.submit(self._run_later, key, job)

    def _run_later(self, key: Hashable, job: Callable[[], object]) -> None:
        with self._lock:
            self._later.discard(key)
        try:
            job()
        except Exception as error:
            telemetry.log().error("background_job_failed", job=str(key), exc_info=error)

    @property
    def busy(self) -> int:
        """Threads that have a job."""
        return len(self._busy)

    def waiting(self) -> tuple[int, int]:
        """Return how many jobs wait for a thread, and how many behind all else."""
        return self._jobs.count(), len(self._later)

    def waited_s(self) -> float:
        """Return for how long the tenant whose turn is next has waited for a thread, in seconds.

        Not the job that waits longest: who brings many waits for its own.
        """
        return self._jobs.waited_s()

    def close(self) -> None:
        """Wait for running jobs and end the threads."""
        with self._lock:
            closed, self._closed = self._closed, True
        self._behind.shutdown(cancel_futures=True)
        if not closed:
            for _ in self._running:
                self._jobs.end()
        for thread in self._running:
            thread.join()


@asynccontextmanager
async def meanwhile(job: Coroutine[object, object, None], name: str) -> AsyncIterator[None]:
    """Run a job that has no end beside the block, on the same event loop; it is cancelled when the block is left."""
    task = asyncio.create_task(job, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@contextmanager
def ahead(items: Iterator[T], count: int) -> Iterator[Iterator[T]]:
    """Give ``items``, made in a thread of their own that is up to ``count`` of them ahead.

    What that thread raises is raised here behind the items before it. It ends with the block, wherever it stands.
    """
    ready: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
    room = Semaphore(count)
    leaving = Event()

    def make() -> None:
        try:
            for item in items:
                room.acquire()
                if leaving.is_set():
                    return
                ready.put((item,))
        except BaseException as error:
            ready.put(error)
        else:
            ready.put(None)

    def taken() -> Iterator[T]:
        while (got := ready.get()) is not None:
            if isinstance(got, BaseException):
                try:
                    raise got
                finally:
                    # An error leads to this frame, hence to itself, and would keep all that its maker held.
                    del got
            room.release()
            yield got[0]

    within = copy_context()
    thread = Thread(target=within.run, args=(make,), name="shardgit-ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        leaving.set()
        room.release()
        thread.join()


def _nothing() -> None:
    """Be a job."""
