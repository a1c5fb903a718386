"""ShardService, for operators: what the shards hold, and long operations as streams of progress."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, TypeVar

from shardgit.operate.operation import Control, Throttle, step_back, store_probe
from shardgit.operate.planning import RingChange, RingPlan, plan_ring
from shardgit.rpc.status import stream, unary
from shardgit.service.access import ANONYMOUS, Action, authorize
from shardgit.service.shards import list_shards
from shardgit.v1 import shard_pb2, shard_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import grpc

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
        step_back()
        try:
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


class PlanMethods:
    """The methods that plan."""

    store: Store

    @stream
    async def PlanRing(
        self, request: shard_pb2.PlanRingRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.PlanRingResponse]:
        authorize(ANONYMOUS, Action.ADMIN, None)
        change = RingChange(tuple(request.add_weights), dict(request.weights))

        def job(control: Control) -> RingPlan:
            return plan_ring(self.store, change, control=control).summary()

        async for one in stream_operation(self.store, request.pace, job):
            if isinstance(one, RingPlan):
                yield shard_pb2.PlanRingResponse(result=_plan(one))
            else:
                yield shard_pb2.PlanRingResponse(progress=one)


class ShardServicer(PlanMethods, shard_pb2_grpc.ShardServiceServicer):
    """ShardService; operations of one noun stand in a mixin of their own."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @unary
    async def ListShards(
        self, _: shard_pb2.ListShardsRequest, __: grpc.aio.ServicerContext
    ) -> shard_pb2.ListShardsResponse:
        authorize(ANONYMOUS, Action.ADMIN, None)
        found = await self.store.workers.run(list_shards, self.store)
        return shard_pb2.ListShardsResponse(
            shards=[
                shard_pb2.Shard(
                    id=one.id,
                    path=one.path,
                    zone=one.zone,
                    weight=one.weight,
                    state=one.state,
                    blocks=one.blocks,
                    bytes=one.bytes,
                    file_bytes=one.file_bytes,
                    partitions=one.partitions,
                )
                for one in found
            ],
            ring_epoch=self.store.blocks.ring.epoch,
            replicas=self.store.blocks.ring.replicas,
        )


def _plan(plan: RingPlan) -> shard_pb2.RingPlan:
    return shard_pb2.RingPlan(
        epoch=plan.epoch,
        replicas=plan.replicas,
        bytes=plan.bytes,
        moved_bytes=plan.moved_bytes,
        moved_share=plan.moved_share,
        moved_partitions=plan.moved_partitions,
        shards=[
            shard_pb2.ShardChange(
                id=one.id,
                zone=one.zone,
                weight=one.weight,
                partitions_before=one.partitions_before,
                partitions_after=one.partitions_after,
                bytes_before=one.bytes_before,
                bytes_after=one.bytes_after,
                share_after=one.share_after,
                share_wanted=one.share_wanted,
            )
            for one in plan.shards
        ],
        flows=[
            shard_pb2.Flow(
                source=one.source, target=one.target, partitions=one.partitions, bytes=one.bytes
            )
            for one in plan.flows
        ],
    )
