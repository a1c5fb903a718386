"""ShardService, for operators: what the shards hold and what the ring would move; the rest in mixins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.operate.planning import RingChange, RingPlan, plan_ring
from shardgit.rpc.backups import BackupMethods
from shardgit.rpc.collecting import GcMethods
from shardgit.rpc.compacting import CompactMethods
from shardgit.rpc.mirrors import MirrorMethods
from shardgit.rpc.modes import ModeMethods
from shardgit.rpc.operations import stream_operation
from shardgit.rpc.rebalance import RebalanceMethods
from shardgit.rpc.status import stream, unary
from shardgit.rpc.verifying import VerifyMethods
from shardgit.service.access import Action, may
from shardgit.service.shards import list_shards
from shardgit.v1 import shard_pb2, shard_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from shardgit.operate.operation import Control
    from shardgit.service.store import Store


class PlanMethods:
    """The method that plans."""

    store: Store

    @stream
    async def PlanRing(
        self, request: shard_pb2.PlanRingRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.PlanRingResponse]:
        may(Action.ADMIN, None)
        change = RingChange(tuple(request.add_weights), dict(request.weights))

        def job(control: Control) -> RingPlan:
            return plan_ring(self.store, change, control=control).summary()

        async for one in stream_operation(self.store, request.pace, job):
            if isinstance(one, RingPlan):
                yield shard_pb2.PlanRingResponse(result=_plan(one))
            else:
                yield shard_pb2.PlanRingResponse(progress=one)


class ShardServicer(
    RebalanceMethods,
    PlanMethods,
    BackupMethods,
    CompactMethods,
    VerifyMethods,
    GcMethods,
    ModeMethods,
    MirrorMethods,
    shard_pb2_grpc.ShardServiceServicer,
):
    """ShardService; operations of one noun stand in a mixin of their own."""

    def __init__(self, store: Store, *, maintains: bool = True) -> None:
        self.store = store
        self.maintains = maintains

    @unary
    async def ListShards(
        self, _: shard_pb2.ListShardsRequest, __: grpc.aio.ServicerContext
    ) -> shard_pb2.ListShardsResponse:
        may(Action.ADMIN, None)
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
            ring_epoch=self.store.routed.ring.epoch,
            replicas=self.store.routed.ring.replicas,
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
