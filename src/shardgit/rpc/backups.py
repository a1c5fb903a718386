"""ShardService's methods of backups."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from shardgit.backup.create import BackupMade, create_backup
from shardgit.backup.prune import WASTE, BackupsPruned, prune_backups
from shardgit.backup.repository import RepositoryRestored, restore_repository
from shardgit.backup.target import Target
from shardgit.backup.verify import BackupsVerified, verify_backups
from shardgit.rpc.operations import stream_operation
from shardgit.rpc.status import stream, unary
from shardgit.service.access import Action, may
from shardgit.v1 import shard_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from shardgit.backup.cut import CutFacts
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store


class BackupMethods:
    """Take, list, verify and prune backups. Results have the fields of their dataclasses."""

    store: Store

    @stream
    async def CreateBackup(
        self, request: shard_pb2.CreateBackupRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.CreateBackupResponse]:
        may(Action.ADMIN, None)

        def job(control: Control) -> BackupMade:
            return create_backup(self.store, request.target, control=control)

        async for one in stream_operation(self.store, request.pace, job):
            if isinstance(one, BackupMade):
                result = shard_pb2.BackupMade(**asdict(one))
                yield shard_pb2.CreateBackupResponse(result=result)
            else:
                yield shard_pb2.CreateBackupResponse(progress=one)

    @unary
    async def ListBackups(
        self, request: shard_pb2.ListBackupsRequest, _: grpc.aio.ServicerContext
    ) -> shard_pb2.ListBackupsResponse:
        may(Action.ADMIN, None)

        def look() -> list[CutFacts]:
            target = Target.open(request.target)
            return [target.facts(name) for name in target.cut_ids()]

        found = await self.store.workers.run(look)
        return shard_pb2.ListBackupsResponse(
            backups=[shard_pb2.Backup(**asdict(one)) for one in found]
        )

    @stream
    async def VerifyBackups(
        self, request: shard_pb2.VerifyBackupsRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.VerifyBackupsResponse]:
        may(Action.ADMIN, None)

        def job(control: Control) -> BackupsVerified:
            return verify_backups(
                Target.open(request.target),
                backup=request.backup or None,
                deep=request.deep,
                drop_damaged=request.drop_damaged,
                control=control,
            )

        async for one in stream_operation(self.store, request.pace, job):
            if isinstance(one, BackupsVerified):
                result = shard_pb2.BackupsVerified(**asdict(one))
                yield shard_pb2.VerifyBackupsResponse(result=result)
            else:
                yield shard_pb2.VerifyBackupsResponse(progress=one)

    @stream
    async def PruneBackups(
        self, request: shard_pb2.PruneBackupsRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.PruneBackupsResponse]:
        may(Action.ADMIN, None)

        def job(control: Control) -> BackupsPruned:
            return prune_backups(
                Target.open(request.target),
                keep=request.keep if request.HasField("keep") else None,
                older_ms=request.older_ms if request.HasField("older_ms") else None,
                waste=request.waste if request.HasField("waste") else WASTE,
                control=control,
            )

        async for one in stream_operation(self.store, request.pace, job):
            if isinstance(one, BackupsPruned):
                result = shard_pb2.BackupsPruned(**asdict(one))
                yield shard_pb2.PruneBackupsResponse(result=result)
            else:
                yield shard_pb2.PruneBackupsResponse(progress=one)

    @stream
    async def RestoreRepository(
        self, request: shard_pb2.RestoreRepositoryRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.RestoreRepositoryResponse]:
        may(Action.ADMIN, request.repository)

        def job(control: Control) -> RepositoryRestored:
            return restore_repository(
                self.store,
                Target.open(request.target) if request.target else None,
                request.repository,
                new_name=request.new_name or None,
                backup=request.backup or None,
                at_ms=request.at_ms if request.HasField("at_ms") else None,
                control=control,
            )

        async for one in stream_operation(self.store, request.pace, job):
            if isinstance(one, RepositoryRestored):
                result = shard_pb2.RepositoryRestored(**asdict(one))
                yield shard_pb2.RestoreRepositoryResponse(result=result)
            else:
                yield shard_pb2.RestoreRepositoryResponse(progress=one)
