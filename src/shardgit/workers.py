"""The one door to threads: a bounded pool whose jobs are never abandoned."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from shardgit import telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from concurrent.futures import Future

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")


class Workers:
    """A bounded thread pool for CPU work without the GIL and for LMDB transactions."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shardgit")
        self._behind = ThreadPoolExecutor(1, thread_name_prefix="shardgit-behind")
        self._later: set[Hashable] = set()
        self._lock = Lock()
        self._closed = False

    async def run(self, job: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``job`` in a thread. A cancelled caller waits for the job's end, then is cancelled.

        A job may own a transaction or a buffer of the caller's, so it must never outlive the call.
        """
        future = asyncio.get_running_loop().run_in_executor(
            self._pool, lambda: job(*args, **kwargs)
        )
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # retrieved, so that it is not logged as lost
            raise

    def map(self, job: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """Run ``job`` over ``items`` side by side from a thread outside the pool, results in order."""
        return list(self._pool.map(job, items))

    def submit(self, job: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``job`` beside the thread that asks, one outside the pool, which must wait for the result."""
        return self._pool.submit(job, *args, **kwargs)

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

    def close(self) -> None:
        """Wait for running jobs and end the threads."""
        with self._lock:
            self._closed = True
        self._behind.shutdown(cancel_futures=True)
        self._pool.shutdown()
