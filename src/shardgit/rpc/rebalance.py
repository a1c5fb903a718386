"""The methods of ShardService that change the ring and move blocks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shardgit.errors import InvalidArgument, LimitExceeded
from shardgit.operate import membership
from shardgit.operate.operation import is_running
from shardgit.operate.rebalance import KIND, abort, rebalance, status
from shardgit.operate.receipt import (
    RECEIPT_MAX_BYTES,
    ReceiptCheck,
    check_receipt,
    decode_receipt,
    encode_receipt,
    receipt_of,
)
from shardgit.operate.shrinking import ShardsCompacted, compact_shards
from shardgit.rpc.operations import stream_operation
from shardgit.rpc.status import paced, stream, unary
from shardgit.service.access import Action, may
from shardgit.v1 import shard_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from shardgit.operate.membership import ShardChanged
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

PIECE_BYTES = 512 << 10


class RebalanceMethods:
    """Adding, weighing and removing shards; rebalances and their receipts."""

    store: Store

    @unary
    async def AddShard(
        self, request: shard_pb2.AddShardRequest, _: grpc.aio.ServicerContext
    ) -> shard_pb2.AddShardResponse:
        may(Action.ADMIN, None)
        path = Path(request.path) if request.path else None
        if path is not None and not path.is_absolute():
            raise InvalidArgument(
                "path of a shard on a server is absolute", path=request.path[:500]
            )
        done = await self.store.workers.run(
            membership.add_shard,
            self.store,
            path,
            weight=request.weight or 1.0,
            zone=request.zone if request.HasField("zone") else None,
        )
        return shard_pb2.AddShardResponse(shard=_changed(done))

    @unary
    async def SetShardWeight(
        self, request: shard_pb2.SetShardWeightRequest, _: grpc.aio.ServicerContext
    ) -> shard_pb2.SetShardWeightResponse:
        may(Action.ADMIN, None)
        done = await self.store.workers.run(
            membership.set_weight, self.store, request.id, request.weight
        )
        return shard_pb2.SetShardWeightResponse(shard=_changed(done))

    @unary
    async def RemoveShard(
        self, request: shard_pb2.RemoveShardRequest, _: grpc.aio.ServicerContext
    ) -> shard_pb2.RemoveShardResponse:
        may(Action.ADMIN, None)

        def job(control: Control) -> ShardChanged:
            return membership.remove_shard(self.store, request.id, control=control)

        # Not one of the workers' threads, and at the store's pace: it may have many strays to sweep.
        answer = shard_pb2.RemoveShardResponse()
        async for one in stream_operation(self.store, shard_pb2.Pace(), job):
            if isinstance(one, membership.ShardChanged):
                answer = shard_pb2.RemoveShardResponse(shard=_changed(one))
        return answer

    @stream
    async def Rebalance(
        self, request: shard_pb2.RebalanceRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.RebalanceResponse]:
        may(Action.ADMIN, None)
        keep_s = request.keep_s if request.HasField("keep_s") else None

        def job(control: Control) -> bytes:
            (abort if request.abort else rebalance)(self.store, control=control, keep_s=keep_s)
            return encode_receipt(receipt_of(self.store))

        async for one in stream_operation(self.store, request.pace, job):
            if isinstance(one, bytes):
                for at in range(0, len(one), PIECE_BYTES):
                    yield shard_pb2.RebalanceResponse(receipt=one[at : at + PIECE_BYTES])
            else:
                yield shard_pb2.RebalanceResponse(progress=one)

    @unary
    async def GetRebalance(
        self, _: shard_pb2.GetRebalanceRequest, __: grpc.aio.ServicerContext
    ) -> shard_pb2.GetRebalanceResponse:
        may(Action.ADMIN, None)

        def look() -> shard_pb2.GetRebalanceResponse:
            now = status(self.store)
            return shard_pb2.GetRebalanceResponse(
                rebalance=msgspec.json.encode(now) if now is not None else b"",
                running=is_running(self.store, KIND),
            )

        return await self.store.workers.run(look)

    @stream
    async def CheckReceipt(
        self,
        requests: AsyncIterator[shard_pb2.CheckReceiptRequest],
        _: grpc.aio.ServicerContext,
    ) -> AsyncIterator[shard_pb2.CheckReceiptResponse]:
        may(Action.ADMIN, None)
        pieces: list[bytes] = []
        pace: shard_pb2.Pace | None = None
        held = 0
        async for request in paced(requests, self.store.limits):
            pace = pace or request.pace
            pieces.append(request.receipt)
            held += len(request.receipt)
            if held > RECEIPT_MAX_BYTES:
                raise LimitExceeded("receipt is too large", limit=RECEIPT_MAX_BYTES)

        def job(control: Control) -> ReceiptCheck:
            return check_receipt(self.store, decode_receipt(b"".join(pieces)), control=control)

        async for one in stream_operation(self.store, pace or shard_pb2.Pace(), job):
            if isinstance(one, ReceiptCheck):
                yield shard_pb2.CheckReceiptResponse(
                    result=shard_pb2.ReceiptCheck(
                        operation=one.operation,
                        ok=one.ok,
                        partitions=one.partitions,
                        unchanged=one.unchanged,
                        blocks=one.blocks,
                        bytes=one.bytes,
                        gone=one.gone,
                        problems=one.problems,
                        bad=one.bad,
                    )
                )
            else:
                yield shard_pb2.CheckReceiptResponse(progress=one)

    @stream
    async def CompactShards(
        self, request: shard_pb2.CompactShardsRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.CompactShardsResponse]:
        may(Action.ADMIN, None)

        def job(control: Control) -> ShardsCompacted:
            return compact_shards(
                self.store, list(request.ids), force=request.force, control=control
            )

        async for one in stream_operation(self.store, request.pace, job):
            if isinstance(one, ShardsCompacted):
                shards = [shard_pb2.ShardCompacted(**asdict(shard)) for shard in one.shards]
                yield shard_pb2.CompactShardsResponse(
                    result=shard_pb2.ShardsCompacted(shards=shards)
                )
            else:
                yield shard_pb2.CompactShardsResponse(progress=one)


def _changed(one: ShardChanged) -> shard_pb2.ShardChanged:
    return shard_pb2.ShardChanged(
        id=one.id, path=one.path, zone=one.zone, weight=one.weight, epoch=one.epoch
    )
