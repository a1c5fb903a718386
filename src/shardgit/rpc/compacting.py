"""ShardService's method of compactions."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from shardgit.operate.compact import Compacted, compact_repository
from shardgit.rpc.operations import stream_operation
from shardgit.rpc.status import stream
from shardgit.service.access import Action, may
from shardgit.v1 import shard_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from shardgit.operate.operation import Control
    from shardgit.service.store import Store


class CompactMethods:
    """Compact one repository's pool. The result has the fields of its dataclass."""

    store: Store

    @stream
    async def CompactRepository(
        self, request: shard_pb2.CompactRepositoryRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.CompactRepositoryResponse]:
        may(Action.ADMIN, None)

        def job(control: Control) -> Compacted:
            return compact_repository(
                self.store, request.repository, control=control, full=request.full
            )

        async for one in stream_operation(self.store, request.pace, job):
            if isinstance(one, Compacted):
                result = shard_pb2.Compacted(**asdict(one))
                yield shard_pb2.CompactRepositoryResponse(result=result)
            else:
                yield shard_pb2.CompactRepositoryResponse(progress=one)
