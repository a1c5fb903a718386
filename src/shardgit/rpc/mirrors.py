"""Mirrors over gRPC: a part of ShardService."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from shardgit.errors import Refused
from shardgit.oid import HashKind
from shardgit.rpc.notes import note_of
from shardgit.rpc.status import unary
from shardgit.service.access import Action, may
from shardgit.service.mirrors import MirrorPlan, Mirrors
from shardgit.turns import MAINTENANCE
from shardgit.v1 import shard_pb2

if TYPE_CHECKING:
    import grpc

    from shardgit.service.mirrors import Mirror
    from shardgit.service.store import Store


class MirrorMethods:
    """The methods about repositories that follow another."""

    store: Store
    maintains: bool  # whether this process, or one like it, brings mirrors in step

    @unary
    async def AddMirror(
        self, request: shard_pb2.AddMirrorRequest, _: grpc.aio.ServicerContext
    ) -> shard_pb2.AddMirrorResponse:
        may(Action.ADMIN, request.repository)
        plan = MirrorPlan(
            url=request.url,
            interval_s=request.interval_s or 300,
            refs=tuple(request.refs),
            credential=request.credential,
            overwrite=request.overwrite,
            hash_kind=HashKind.from_git_name(request.object_format or "sha1"),
        )
        made = await self.store.workers.run(
            Mirrors(self.store).add, request.repository, plan, note_of("mirror")
        )
        return shard_pb2.AddMirrorResponse(mirror=_mirror(made))

    @unary
    async def ListMirrors(
        self, request: shard_pb2.ListMirrorsRequest, _: grpc.aio.ServicerContext
    ) -> shard_pb2.ListMirrorsResponse:
        may(Action.ADMIN, None)
        mirrors, run = Mirrors(self.store), self.store.workers.run
        if request.repository:
            found = [await run(mirrors.get, request.repository)]
        else:
            found = await run(mirrors.all)
        return shard_pb2.ListMirrorsResponse(mirrors=map(_mirror, found))

    @unary
    async def SyncMirror(
        self, request: shard_pb2.SyncMirrorRequest, _: grpc.aio.ServicerContext
    ) -> shard_pb2.SyncMirrorResponse:
        may(Action.ADMIN, request.repository)
        before = await self.store.workers.run(self._hasten, request.repository)
        return shard_pb2.SyncMirrorResponse(mirror=_mirror(before))

    @unary
    async def RemoveMirror(
        self, request: shard_pb2.RemoveMirrorRequest, _: grpc.aio.ServicerContext
    ) -> shard_pb2.RemoveMirrorResponse:
        may(Action.ADMIN, request.repository)
        await self.store.workers.run(Mirrors(self.store).remove, request.repository)
        return shard_pb2.RemoveMirrorResponse()

    def _hasten(self, name: str) -> Mirror:
        if not self.maintains and self.store.turns.note_of(MAINTENANCE) is None:
            raise Refused("nobody brings mirrors in step: the maintenance is off", repository=name)
        return Mirrors(self.store).hasten(name)


def _mirror(one: Mirror) -> shard_pb2.Mirror:
    return shard_pb2.Mirror(**asdict(one))
