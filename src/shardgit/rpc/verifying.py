"""ShardService's methods that verify and repair."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from shardgit.operate.block_sources import opened_source
from shardgit.operate.repair import Repair, repair_store
from shardgit.operate.verify import VerifyReport, verify_repository
from shardgit.operate.verifying import Verification, verify
from shardgit.rpc.operations import stream_operation
from shardgit.rpc.status import stream
from shardgit.service.access import Action, may
from shardgit.v1 import shard_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from shardgit.operate.findings import Finding
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store


class VerifyMethods:
    """Verify and repair. What is found comes message by message, before the result."""

    store: Store

    @stream
    async def VerifyShards(
        self, request: shard_pb2.VerifyShardsRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.VerifyShardsResponse]:
        may(Action.ADMIN, None)
        shard = request.shard if request.HasField("shard") else None

        def job(control: Control) -> Verification:
            return verify(
                self.store,
                control=control,
                shard=shard,
                objects=request.objects,
                resume=request.resume,
            )

        async for one in stream_operation(self.store, request.pace, job):
            if not isinstance(one, Verification):
                yield shard_pb2.VerifyShardsResponse(progress=one)
                continue
            for finding in one.findings:
                yield shard_pb2.VerifyShardsResponse(finding=finding_message(finding))
            yield shard_pb2.VerifyShardsResponse(
                result=shard_pb2.Verification(
                    counts=one.counts,
                    rows=one.rows,
                    blocks=one.blocks,
                    read_bytes=one.read_bytes,
                    unnamed=one.unnamed,
                    objects=one.objects,
                    resumed=one.resumed,
                    seconds=one.seconds,
                )
            )

    @stream
    async def RepairShards(
        self, request: shard_pb2.RepairShardsRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.RepairShardsResponse]:
        may(Action.ADMIN, None)

        def job(control: Control) -> Repair:
            with ExitStack() as stack:
                sources = (
                    [stack.enter_context(opened_source(request.source))] if request.source else []
                )
                return repair_store(
                    self.store, control=control, sources=sources, dry_run=request.dry_run
                )

        async for one in stream_operation(self.store, request.pace, job):
            if not isinstance(one, Repair):
                yield shard_pb2.RepairShardsResponse(progress=one)
                continue
            for action in one.actions:
                yield shard_pb2.RepairShardsResponse(
                    action=shard_pb2.RepairAction(
                        what=action.what,
                        block=action.block or "",
                        shard=action.shard,
                        pool=action.pool or "",
                    )
                )
            for finding in one.left:
                yield shard_pb2.RepairShardsResponse(left=finding_message(finding))
            for damage in one.damage:
                yield shard_pb2.RepairShardsResponse(
                    damage=shard_pb2.Damage(
                        block=damage.block,
                        what=damage.what,
                        repositories=damage.repositories,
                        objects=damage.objects,
                        object_count=damage.object_count,
                        refs=damage.refs,
                    )
                )
            yield shard_pb2.RepairShardsResponse(
                result=shard_pb2.RepairResult(
                    action_count=one.action_count,
                    left_counts=one.left_counts,
                    dry_run=one.dry_run,
                    seconds=one.seconds,
                )
            )

    @stream
    async def VerifyRepository(
        self, request: shard_pb2.VerifyRepositoryRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.VerifyRepositoryResponse]:
        may(Action.ADMIN, None)

        def job(control: Control) -> VerifyReport:
            return verify_repository(self.store, request.repository, control=control)

        async for one in stream_operation(self.store, request.pace, job):
            if not isinstance(one, VerifyReport):
                yield shard_pb2.VerifyRepositoryResponse(progress=one)
                continue
            for finding in one.findings:
                yield shard_pb2.VerifyRepositoryResponse(
                    finding=shard_pb2.RepositoryFinding(
                        severity=finding.severity,
                        kind=finding.kind,
                        object=finding.object,
                        line=finding.line,
                    )
                )
            yield shard_pb2.VerifyRepositoryResponse(
                result=shard_pb2.RepositoryVerification(
                    objects=one.objects,
                    segments=one.segments,
                    refs=one.refs,
                    log_entries=one.log_entries,
                    counts=one.counts,
                    seconds=one.seconds,
                )
            )


def finding_message(finding: Finding) -> shard_pb2.Finding:
    """Return a finding as it goes over the wire."""
    return shard_pb2.Finding(
        kind=finding.kind.value,
        what=finding.what,
        mend=finding.mend,
        shard=finding.shard,
        block=finding.block or "",
        page=finding.page,
        row=finding.row or "",
        pool=finding.pool or "",
        object=finding.object or "",
        repositories=finding.repositories,
    )
