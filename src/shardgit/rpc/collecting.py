"""ShardService's methods of gc, and of what gc has not dropped yet."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from shardgit.operate.gc import GARBAGE_MIN, GcOptions, GcResult, gc
from shardgit.operate.undeleting import DeletedRepository, list_deleted, undelete_repository
from shardgit.rpc.notes import note_of
from shardgit.rpc.operations import stream_operation
from shardgit.rpc.status import stream, unary
from shardgit.service.access import Action, may
from shardgit.v1 import shard_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

OPTIONAL = ("grace_s", "log_retention_s", "orphan_age_s", "wait_s")


class GcMethods:
    """Collect garbage. The result has the fields of its dataclass."""

    store: Store

    @stream
    async def CollectGarbage(
        self, request: shard_pb2.CollectGarbageRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.CollectGarbageResponse]:
        may(Action.ADMIN, None)
        given = {name: getattr(request, name) for name in OPTIONAL if request.HasField(name)}
        options = GcOptions(
            **given,
            garbage_min=request.garbage_min if request.HasField("garbage_min") else GARBAGE_MIN,
            repository=request.repository or None,
            dry_run=request.dry_run,
        )

        def job(control: Control) -> GcResult:
            return gc(self.store, options, control=control)

        async for one in stream_operation(self.store, request.pace, job):
            if isinstance(one, GcResult):
                result = shard_pb2.GcResult(**asdict(one))
                yield shard_pb2.CollectGarbageResponse(result=result)
            else:
                yield shard_pb2.CollectGarbageResponse(progress=one)

    @unary
    async def ListDeletedRepositories(
        self, _: shard_pb2.ListDeletedRepositoriesRequest, __: grpc.aio.ServicerContext
    ) -> shard_pb2.ListDeletedRepositoriesResponse:
        may(Action.ADMIN, None)
        found = await self.store.workers.run(list_deleted, self.store)
        return shard_pb2.ListDeletedRepositoriesResponse(repositories=map(_deleted, found))

    @unary
    async def UndeleteRepository(
        self, request: shard_pb2.UndeleteRepositoryRequest, _: grpc.aio.ServicerContext
    ) -> shard_pb2.UndeleteRepositoryResponse:
        may(Action.ADMIN, None)
        found = await self.store.workers.run(
            undelete_repository,
            self.store,
            request.name,
            number=request.id,
            new_name=request.new_name,
            note=note_of("undelete"),
        )
        return shard_pb2.UndeleteRepositoryResponse(
            repository=_deleted(found.repository), name=found.name
        )


def _deleted(one: DeletedRepository) -> shard_pb2.DeletedRepository:
    return shard_pb2.DeletedRepository(**asdict(one))
