"""The modes of the store and its shards, and the quotas of its owners over gRPC: a part of ShardService."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from shardgit.operate.holding import ShardMode, set_shard_mode
from shardgit.rpc.operations import stream_operation
from shardgit.rpc.status import stream, unary
from shardgit.service.access import Action, caller, may
from shardgit.service.modes import set_mode, store_mode
from shardgit.service.quotas import Quotas
from shardgit.v1 import shard_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from shardgit.operate.operation import Control
    from shardgit.service.modes import StoreMode
    from shardgit.service.quotas import OwnerQuota
    from shardgit.service.store import Store


class ModeMethods:
    """The methods that say what is taken from whom."""

    store: Store

    @unary
    async def GetMode(
        self, _: shard_pb2.GetModeRequest, __: grpc.aio.ServicerContext
    ) -> shard_pb2.GetModeResponse:
        may(Action.READ, None)
        return shard_pb2.GetModeResponse(mode=_mode(store_mode(self.store)))

    @unary
    async def SetMode(
        self, request: shard_pb2.SetModeRequest, _: grpc.aio.ServicerContext
    ) -> shard_pb2.SetModeResponse:
        may(Action.ADMIN, None)
        job = partial(set_mode, read_only=request.read_only, why=request.why, by=caller().name)
        return shard_pb2.SetModeResponse(mode=_mode(await self.store.workers.run(job, self.store)))

    @stream
    async def SetShardMode(
        self, request: shard_pb2.SetShardModeRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.SetShardModeResponse]:
        may(Action.ADMIN, None)
        who = caller().name

        def job(control: Control) -> ShardMode:
            return set_shard_mode(
                self.store,
                request.id,
                read_only=request.read_only,
                why=request.why,
                by=who,
                control=control,
            )

        async for one in stream_operation(self.store, request.pace, job):
            if isinstance(one, ShardMode):
                yield shard_pb2.SetShardModeResponse(result=shard_pb2.ShardMode(**asdict(one)))
            else:
                yield shard_pb2.SetShardModeResponse(progress=one)

    @unary
    async def ListQuotas(
        self, request: shard_pb2.ListQuotasRequest, _: grpc.aio.ServicerContext
    ) -> shard_pb2.ListQuotasResponse:
        may(Action.ADMIN, None)
        quotas, run = Quotas(self.store), self.store.workers.run
        found = [await run(quotas.get, request.owner)] if request.owner else await run(quotas.list)
        return shard_pb2.ListQuotasResponse(quotas=map(_quota, found))

    @unary
    async def SetQuota(
        self, request: shard_pb2.SetQuotaRequest, _: grpc.aio.ServicerContext
    ) -> shard_pb2.SetQuotaResponse:
        may(Action.ADMIN, None)
        bounds = {
            f"{name}_max": getattr(request, name)
            for name in ("bytes", "objects", "repositories")
            if request.HasField(name)
        }
        job = partial(Quotas(self.store).set, **bounds)
        return shard_pb2.SetQuotaResponse(
            quota=_quota(await self.store.workers.run(job, request.owner))
        )

    @unary
    async def RemoveQuota(
        self, request: shard_pb2.RemoveQuotaRequest, _: grpc.aio.ServicerContext
    ) -> shard_pb2.RemoveQuotaResponse:
        may(Action.ADMIN, None)
        await self.store.workers.run(Quotas(self.store).remove, request.owner)
        return shard_pb2.RemoveQuotaResponse()


def _mode(one: StoreMode) -> shard_pb2.StoreMode:
    return shard_pb2.StoreMode(**asdict(one))


def _quota(one: OwnerQuota) -> shard_pb2.Quota:
    return shard_pb2.Quota(**asdict(one))
