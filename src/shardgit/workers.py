"""The one door to threads: a bounded pool whose jobs are never abandoned."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")


class Workers:
    """A bounded thread pool for CPU work without the GIL and for LMDB transactions."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shardgit")

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

    def close(self) -> None:
        """Wait for running jobs and end the threads."""
        self._pool.shutdown()
