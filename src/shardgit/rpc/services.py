"""The gRPC services, thin over service/."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

import grpc

from shardgit.errors import InvalidArgument, LimitExceeded, Unavailable
from shardgit.oid import HashKind, ObjectId
from shardgit.rpc.notes import note_of
from shardgit.rpc.settings import SettingsMethods
from shardgit.rpc.status import bounded_stream, paced, unary
from shardgit.rpc.writes import CommitWrites, ObjectWrites
from shardgit.service.access import Action, caller, may
from shardgit.service.explaining import explain_clone
from shardgit.service.reading import CommitInfo, Reading
from shardgit.service.repositories import Repositories, RepositoryInfo
from shardgit.v1 import (
    commit_pb2,
    commit_pb2_grpc,
    common_pb2,
    object_pb2,
    object_pb2_grpc,
    repository_pb2,
    repository_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from shardgit.objects import Signature
    from shardgit.service.store import Store

T = TypeVar("T")
BATCH_IDS = 256  # objects decoded in one job
BATCH_BYTES = 4 << 20  # of objects that are held for one answer; a larger object is streamed
INFO_IDS = 4_096
MESSAGES_A_JOB = 4  # one costs 8 % more CPU in turns between threads (bench objects)
MESSAGE_ROOM_MAX = (2 << 20) - 1  # of data in one: its length stands before it, in three bytes
MESSAGE_SPARE_BYTES = 1_024  # of a message, for what stands about its columns


class _Service:
    def __init__(self, store: Store) -> None:
        self.store = store

    async def _read(self, repository: str) -> Reading:
        may(Action.READ, repository)
        return await self._run(Reading, self.store, repository)

    async def _run(self, job: Callable[..., T], *words: object) -> T:
        return await self.store.workers.run(job, *words)

    async def _pull(self, source: Iterator[T]) -> AsyncIterator[T]:
        """Pull from an iterator on a worker, one step at a time, as the client takes the answers."""
        while (item := await self._run(lambda: next(source, None))) is not None:
            yield item


def _ids(reading: Reading, raw: Sequence[bytes]) -> list[ObjectId]:
    """Return ids that were asked for; InvalidArgument for a length that would shift the answer's column."""
    size = reading.record.hash_kind.size
    for oid in raw:
        if len(oid) != size:
            raise InvalidArgument("id has another length than the repository's", bytes=len(oid))
    return [ObjectId(oid) for oid in raw]


def _written(answer: bytes | object_pb2.GetObjectsResponse) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def add_objects(servicer: Objects, server: grpc.aio.Server) -> None:
    """Have a server offer ObjectService; GetObjects makes most of its messages itself, as bytes."""
    method = grpc.stream_stream_rpc_method_handler(
        servicer.GetObjects,
        request_deserializer=object_pb2.GetObjectsRequest.FromString,
        response_serializer=_written,
    )
    name = object_pb2.DESCRIPTOR.services_by_name["ObjectService"].full_name
    handlers = {"GetObjects": method}
    # The first generic handler that knows a method wins, and of registered ones the last.
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    object_pb2_grpc.add_ObjectServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    server.add_registered_method_handlers(name, handlers)


class Objects(ObjectWrites, _Service, object_pb2_grpc.ObjectServiceServicer):
    """ObjectService."""

    @bounded_stream
    async def GetObjects(
        self, requests: AsyncIterator[object_pb2.GetObjectsRequest], _: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes | object_pb2.GetObjectsResponse]:
        reading: Reading | None = None
        in_order = False
        asked = 0
        async for request in paced(requests, self.store.limits):
            if request.WhichOneof("part") == "header":
                if reading is not None:
                    raise InvalidArgument("stream has two headers")
                reading = await self._read(request.header.repository)
                in_order = request.header.order == object_pb2.GetObjectsRequest.ORDER_REQUEST
                continue
            if reading is None:
                raise InvalidArgument("stream does not begin with a header")
            ids = _ids(reading, request.data.ids)
            asked += len(ids)
            if asked > self.store.limits.ids_per_request_max:
                raise LimitExceeded(
                    "too many ids in one stream", limit=self.store.limits.ids_per_request_max
                )
            objects = self._in_order(reading, ids) if in_order else self._objects(reading, ids)
            async for answer in objects:
                yield answer

    async def _objects(
        self, reading: Reading, ids: Sequence[ObjectId]
    ) -> AsyncIterator[bytes | object_pb2.GetObjectsResponse]:
        """Answer in the store's order: neighbours share blocks and bases, and are decoded together."""
        room = min(self.store.limits.message_max_bytes - MESSAGE_SPARE_BYTES, MESSAGE_ROOM_MAX)
        decoding = await self._run(lambda: reading.decoding(ids, room=room, large=BATCH_BYTES))
        while messages := await self._run(decoding.some, MESSAGES_A_JOB):
            for message in messages:
                if message:
                    yield message
        for place in decoding.large_places:
            async for answer in self._large(reading, place):
                yield answer

    async def _in_order(
        self, reading: Reading, ids: Sequence[ObjectId]
    ) -> AsyncIterator[object_pb2.GetObjectsResponse]:
        infos = await self._run(reading.infos, ids)
        order = range(len(ids))
        at = 0
        while at < len(order):
            stop, held = at, 0
            while stop < len(order) and stop - at < BATCH_IDS and held < BATCH_BYTES:
                info = infos[order[stop]]
                held += info.size if info else 0
                stop += 1
                if held > BATCH_BYTES and stop - at > 1:
                    stop -= 1
                    break
            some = order[at:stop]
            at = stop
            info = infos[some[0]]
            if len(some) == 1 and info is not None and info.size > BATCH_BYTES:
                position = await self._run(reading.position, info.id)
                async for answer in self._large(reading, position):
                    yield answer
                continue
            found = await self._run(reading.objects, [ids[number] for number in some])
            answer = object_pb2.GetObjectsResponse(
                ids=b"".join(ids[number] for number in some),
                types=bytes(one.type if one else 0 for one in found),
                sizes=[len(one.data) if one else 0 for one in found],
            )
            data = b"".join(one.data for one in found if one)
            most = self.store.limits.message_max_bytes - 64 * 1024
            answer.data = data[:most]
            yield answer
            for rest in range(most, len(data), most):
                yield object_pb2.GetObjectsResponse(data=data[rest : rest + most])

    async def _large(
        self, reading: Reading, position: int
    ) -> AsyncIterator[object_pb2.GetObjectsResponse]:
        info, pieces = await self._run(reading.stream, position)
        yield object_pb2.GetObjectsResponse(
            ids=info.id, types=bytes([info.type]), sizes=[info.size]
        )
        async for piece in self._pull(pieces):
            yield object_pb2.GetObjectsResponse(data=piece)

    @bounded_stream
    async def GetObject(
        self, request: object_pb2.GetObjectRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[object_pb2.GetObjectResponse]:
        reading = await self._read(request.repository)
        position = await self._run(reading.resolve, request.revision)
        info, pieces = await self._run(reading.stream, position)
        header = object_pb2.GetObjectResponse.Header(
            id=info.id, type=common_pb2.ObjectType.Name(info.type), size=info.size
        )
        yield object_pb2.GetObjectResponse(header=header)
        async for piece in self._pull(pieces):
            yield object_pb2.GetObjectResponse(data=piece)

    @bounded_stream
    async def GetObjectInfo(
        self, request: object_pb2.GetObjectInfoRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[object_pb2.GetObjectInfoResponse]:
        reading = await self._read(request.repository)
        wanted = _ids(reading, request.ids)
        for at in range(0, len(wanted), INFO_IDS):
            ids = wanted[at : at + INFO_IDS]
            found = await self._run(reading.infos, ids)
            yield object_pb2.GetObjectInfoResponse(
                ids=b"".join(ids),
                types=bytes(one.type if one else 0 for one in found),
                sizes=[one.size if one else 0 for one in found],
            )

    @bounded_stream
    async def ListObjects(
        self, request: object_pb2.ListObjectsRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[object_pb2.ListObjectsResponse]:
        reading = await self._read(request.repository)
        async for infos in self._pull(reading.all_infos()):
            for at in range(0, len(infos), INFO_IDS):
                some = infos[at : at + INFO_IDS]
                yield object_pb2.ListObjectsResponse(
                    ids=b"".join(info.id for info in some),
                    types=bytes(info.type for info in some),
                    sizes=[info.size for info in some],
                )


def _repository(info: RepositoryInfo) -> repository_pb2.Repository:
    return repository_pb2.Repository(
        id=info.id,
        name=info.name,
        hash_kind=common_pb2.HashKind.Name(int(info.hash_kind)),
        created_ms=info.created_ms,
        head=info.head,
        forked_from=info.forked_from,
    )


class RepositoriesService(SettingsMethods, _Service, repository_pb2_grpc.RepositoryServiceServicer):
    """RepositoryService."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.repositories = Repositories(store)

    @unary
    async def CreateRepository(
        self, request: repository_pb2.CreateRepositoryRequest, _: grpc.aio.ServicerContext
    ) -> repository_pb2.CreateRepositoryResponse:
        may(Action.WRITE, request.name, makes=True)
        if request.hash_kind not in (0, *HashKind):
            raise InvalidArgument("unknown hash kind", hash_kind=request.hash_kind)
        kind = HashKind(request.hash_kind or HashKind.SHA1)
        info = await self._run(self.repositories.create, request.name, kind)
        return repository_pb2.CreateRepositoryResponse(repository=_repository(info))

    @unary
    async def GetRepository(
        self, request: repository_pb2.GetRepositoryRequest, _: grpc.aio.ServicerContext
    ) -> repository_pb2.GetRepositoryResponse:
        may(Action.READ, request.name)
        info = await self._run(self.repositories.get, request.name)
        return repository_pb2.GetRepositoryResponse(repository=_repository(info))

    @unary
    async def ListRepositories(
        self, request: repository_pb2.ListRepositoriesRequest, _: grpc.aio.ServicerContext
    ) -> repository_pb2.ListRepositoriesResponse:
        may(Action.READ, None)
        limit = min(request.page_size or 1_000, self.store.limits.page_size_max)
        infos, token = await self.store.workers.run(
            self.repositories.page,
            caller().rights,
            prefix=request.prefix,
            after=request.page_token,
            limit=limit,
        )
        return repository_pb2.ListRepositoriesResponse(
            repositories=[_repository(info) for info in infos], next_page_token=token
        )

    @unary
    async def DeleteRepository(
        self, request: repository_pb2.DeleteRepositoryRequest, _: grpc.aio.ServicerContext
    ) -> repository_pb2.DeleteRepositoryResponse:
        may(Action.WRITE, request.name)
        await self._run(self.repositories.delete, request.name)
        return repository_pb2.DeleteRepositoryResponse()

    @unary
    async def RenameRepository(
        self, request: repository_pb2.RenameRepositoryRequest, _: grpc.aio.ServicerContext
    ) -> repository_pb2.RenameRepositoryResponse:
        may(Action.WRITE, request.name)
        may(Action.WRITE, request.new_name, makes=True)
        info = await self._run(self.repositories.rename, request.name, request.new_name)
        return repository_pb2.RenameRepositoryResponse(repository=_repository(info))

    @unary
    async def ForkRepository(
        self, request: repository_pb2.ForkRepositoryRequest, _: grpc.aio.ServicerContext
    ) -> repository_pb2.ForkRepositoryResponse:
        may(Action.READ, request.source)
        may(Action.WRITE, request.target, makes=True)
        note = note_of(f"fork of {request.source}")
        info = await self.store.workers.run(
            self.repositories.fork, request.source, request.target, note=note
        )
        return repository_pb2.ForkRepositoryResponse(repository=_repository(info))

    @unary
    async def GetRepositoryStats(
        self, request: repository_pb2.GetRepositoryStatsRequest, _: grpc.aio.ServicerContext
    ) -> repository_pb2.GetRepositoryStatsResponse:
        may(Action.READ, request.name)
        stats = await self._run(self.repositories.stats, request.name)
        return repository_pb2.GetRepositoryStatsResponse(
            objects=stats.objects,
            reachable_objects=stats.reachable_objects,
            stored_bytes=stats.stored_bytes,
            segments=stats.segments,
            runs=stats.runs,
            refs=stats.refs,
            generation=stats.generation,
            shallow_commits=stats.shallow_commits,
            used_bytes=stats.used.bytes,
            used_objects=stats.used.objects,
            quota_bytes=stats.used.bytes_max,
            quota_objects=stats.used.objects_max,
            read_only=stats.read_only,
        )

    @unary
    async def ExplainClone(
        self, request: repository_pb2.ExplainCloneRequest, _: grpc.aio.ServicerContext
    ) -> repository_pb2.ExplainCloneResponse:
        may(Action.READ, request.name)
        steps = explain_clone(
            self.store, request.name, depth=request.depth, filters=request.filters
        )
        made = None
        try:
            async with asyncio.timeout(self.store.limits.request_time_max_s):  # gc waits for it
                while made is None:  # a thread for each part, not one for all of them
                    made = await self.store.workers.run(next, steps)
        except TimeoutError:
            raise Unavailable("request took too long") from None
        facts = asdict(made)
        stages = [repository_pb2.ExplainCloneResponse.Stage(**one) for one in facts.pop("stages")]
        return repository_pb2.ExplainCloneResponse(stages=stages, **facts)


def _signature(one: Signature) -> commit_pb2.Signature:
    return commit_pb2.Signature(name=one.name, email=one.email, seconds=one.seconds, zone=one.zone)


def _commit(info: CommitInfo) -> commit_pb2.Commit:
    commit = info.commit
    return commit_pb2.Commit(
        id=info.id,
        tree=commit.tree,
        parents=commit.parents,
        author=_signature(commit.author),
        committer=_signature(commit.committer),
        message=commit.message,
    )


class Commits(CommitWrites, _Service, commit_pb2_grpc.CommitServiceServicer):
    """CommitService."""

    @unary
    async def GetCommit(
        self, request: commit_pb2.GetCommitRequest, _: grpc.aio.ServicerContext
    ) -> commit_pb2.GetCommitResponse:
        reading = await self._read(request.repository)
        position = reading.peel(await self._run(reading.resolve, request.revision), "commit")
        (info,) = await self._run(reading.commits, [position])
        return commit_pb2.GetCommitResponse(commit=_commit(info))

    @bounded_stream
    async def ListCommits(
        self, request: commit_pb2.ListCommitsRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[commit_pb2.ListCommitsResponse]:
        reading = await self._read(request.repository)
        async for infos in self._pull(
            reading.log(list(request.revisions) or ["HEAD"], limit=request.limit)
        ):
            yield commit_pb2.ListCommitsResponse(commits=[_commit(info) for info in infos])

    @unary
    async def IsAncestor(
        self, request: commit_pb2.IsAncestorRequest, _: grpc.aio.ServicerContext
    ) -> commit_pb2.IsAncestorResponse:
        reading = await self._read(request.repository)
        found = await self._run(reading.is_ancestor, request.ancestor, request.descendant)
        return commit_pb2.IsAncestorResponse(is_ancestor=found)

    @unary
    async def MergeBase(
        self, request: commit_pb2.MergeBaseRequest, _: grpc.aio.ServicerContext
    ) -> commit_pb2.MergeBaseResponse:
        reading = await self._read(request.repository)
        return commit_pb2.MergeBaseResponse(
            ids=await self._run(reading.merge_bases, request.a, request.b)
        )

    @bounded_stream
    async def GetTree(
        self, request: commit_pb2.GetTreeRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[commit_pb2.GetTreeResponse]:
        reading = await self._read(request.repository)
        position = await self._run(reading.resolve, request.revision)
        async for rows in self._pull(reading.walk_tree(position, recursive=request.recursive)):
            entries = [
                commit_pb2.TreeEntry(mode=one.mode, path=path, id=one.id) for path, one in rows
            ]
            yield commit_pb2.GetTreeResponse(entries=entries)

    @bounded_stream
    async def ReadPath(
        self, request: commit_pb2.ReadPathRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[commit_pb2.ReadPathResponse]:
        reading = await self._read(request.repository)
        start = await self._run(reading.resolve, request.revision)
        position, mode = await self._run(reading.entry_at, start, request.path)
        info, pieces = await self._run(reading.stream, position)
        if info.type != 3:
            raise InvalidArgument("path is a folder", path=request.path.decode("utf-8", "replace"))
        header = commit_pb2.ReadPathResponse.Header(id=info.id, mode=mode, size=info.size)
        yield commit_pb2.ReadPathResponse(header=header)
        async for piece in self._pull(pieces):
            yield commit_pb2.ReadPathResponse(data=piece)
