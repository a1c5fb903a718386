"""Long operations as streams: progress, then the result."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, TypeVar

from shardgit.operate.operation import Control, Throttle, step_back, store_probe
from shardgit.v1 import shard_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from shardgit.progress import Progress
    from shardgit.service.store import Store

T = TypeVar("T")
PROGRESS_WAITING_MAX = 16


async def stream_operation(
    store: Store, pace: shard_pb2.Pace, job: Callable[[Control], T]
) -> AsyncIterator[shard_pb2.OperationProgress | T]:
    """Run a long operation on a thread of its own; gives its progress, and its result last.

    A caller that goes away tells it to stop and waits for it. What it raises is raised here.
    """
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[shard_pb2.OperationProgress | None] = asyncio.Queue()
    ended: asyncio.Future[T] = loop.create_future()

    def report(step: Progress) -> None:
        loop.call_soon_threadsafe(tell, step)

    def tell(step: Progress) -> None:
        if waiting.qsize() < PROGRESS_WAITING_MAX:  # a slow reader misses some
            waiting.put_nowait(progress_message(step))

    control = Control(report=report, throttle=throttle_of(store, pace))

    def run() -> None:
        try:
            step_back(store)
            done = job(control)
        except BaseException as error:
            loop.call_soon_threadsafe(finish, None, error)
        else:
            loop.call_soon_threadsafe(finish, done, None)

    def finish(done: T | None, error: BaseException | None) -> None:
        waiting.put_nowait(None)
        if error is not None:
            ended.set_exception(error)
        else:
            ended.set_result(done)  # type: ignore[arg-type]

    # Not one of the workers' threads: an operation runs for hours, and they are few.
    threading.Thread(target=run, name="shardgit-operation", daemon=True).start()
    try:
        while (message := await waiting.get()) is not None:
            yield message
        yield await asyncio.shield(ended)
    finally:
        control.stop()
        while not ended.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([ended])
        if not ended.cancelled():
            ended.exception()  # retrieved, so that it is not logged as lost


def throttle_of(store: Store, pace: shard_pb2.Pace) -> Throttle:
    """Return the throttle that a request asks for."""
    return Throttle(
        float(pace.bytes_per_s) or None, probe=None if pace.ignore_load else store_probe(store)
    )


def progress_message(step: Progress) -> shard_pb2.OperationProgress:
    """Return progress as it goes over the wire."""
    return shard_pb2.OperationProgress(
        stage=step.stage, done=step.done, total=step.total, unit=step.unit
    )
