"""The mode of the store and the quotas of its owners over gRPC: a part of ShardService."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from shardgit.rpc.status import unary
from shardgit.service.access import Action, caller, may
from shardgit.service.modes import set_mode, store_mode
from shardgit.service.quotas import Quotas
from shardgit.v1 import shard_pb2

if TYPE_CHECKING:
    import grpc

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
