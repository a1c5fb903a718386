"""A client for operators: what ``shardgit shard`` and ``shardgit backup`` do, over one gRPC channel.

Long calls report progress to a callback and return their result. Errors are those of shardgit.errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from shardgit.aio import MESSAGE_MAX_BYTES, error_of
from shardgit.operate.planning import Flow, RingChange, RingPlan, ShardChange
from shardgit.progress import Progress, Report, silent
from shardgit.v1 import shard_pb2, shard_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType


class Operators:
    """The verbs of operators, seen through one server."""

    def __init__(self, target: str, token: str | None = None) -> None:
        self._channel = grpc.insecure_channel(
            target, options=[("grpc.max_receive_message_length", MESSAGE_MAX_BYTES)]
        )
        self._stub = shard_pb2_grpc.ShardServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def __enter__(self) -> Operators:
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def call(self, method: str, request: Any) -> Any:
        """Make one call with one answer."""
        try:
            return getattr(self._stub, method)(request, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of(error) from error

    def stream(self, method: str, request: Any, report: Report = silent) -> Iterator[Any]:
        """Make one call that answers with progress, which is reported, and results, which are given.

        Leaving the iterator early stops the operation.
        """
        answers = getattr(self._stub, method)(request, metadata=self._metadata)
        try:
            for answer in answers:
                if answer.WhichOneof("part") == "progress":
                    report(_progress(answer.progress))
                else:
                    yield answer
        except grpc.RpcError as error:
            raise error_of(error) from error
        finally:
            answers.cancel()

    def plan(
        self,
        change: RingChange | None = None,
        *,
        pace: shard_pb2.Pace | None = None,
        report: Report = silent,
    ) -> RingPlan:
        """Return what the ring's weights, and ``change`` on top, would move."""
        change = change or RingChange()
        request = shard_pb2.PlanRingRequest(
            pace=pace, add_weights=change.add, weights=change.weights
        )
        (answer,) = self.stream("PlanRing", request, report)
        return _plan(answer.result)


def _progress(step: shard_pb2.OperationProgress) -> Progress:
    total = step.total if step.HasField("total") else None
    return Progress(step.stage, step.done, total, step.unit)  # type: ignore[arg-type]


def _plan(one: shard_pb2.RingPlan) -> RingPlan:
    return RingPlan(
        epoch=one.epoch,
        replicas=one.replicas,
        bytes=one.bytes,
        moved_bytes=one.moved_bytes,
        moved_share=one.moved_share,
        moved_partitions=one.moved_partitions,
        shards=tuple(
            ShardChange(
                id=shard.id,
                zone=shard.zone,
                weight=shard.weight,
                partitions_before=shard.partitions_before,
                partitions_after=shard.partitions_after,
                bytes_before=shard.bytes_before,
                bytes_after=shard.bytes_after,
                share_after=shard.share_after,
                share_wanted=shard.share_wanted,
            )
            for shard in one.shards
        ),
        flows=tuple(
            Flow(flow.source, flow.target, flow.partitions, flow.bytes) for flow in one.flows
        ),
    )
