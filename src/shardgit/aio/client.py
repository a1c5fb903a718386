"""A client: its connections, and the verbs for repositories and shards."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc

from shardgit.aio.answers import (
    hash_kind_name,
    repository_of,
)
from shardgit.aio.ending import Ending
from shardgit.aio.failure import error_of
from shardgit.aio.repo import Repo
from shardgit.calling import Calling, split_target
from shardgit.oid import HashKind
from shardgit.service.shards import ShardInfo
from shardgit.v1 import (
    repository_pb2,
    repository_pb2_grpc,
    shard_pb2,
    shard_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from shardgit.service.repositories import RepositoryInfo


CHANNELS = 2  # a connection stays with one worker, so a client opens several
MESSAGE_MAX_BYTES = 8 << 20
NOTHING = Calling()


class Client:
    """A store, seen through one server. Errors are those of shardgit.errors."""

    def __init__(
        self, target: str, token: str | None = None, *, calling: Calling = NOTHING
    ) -> None:
        options = [
            ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if token:
            calling = replace(calling, token=token)
        place, is_secure = split_target(target)

        def made() -> grpc.aio.Channel:
            if not is_secure:
                return grpc.aio.insecure_channel(place, options=options)
            credentials = grpc.ssl_channel_credentials(
                calling.ca or None, calling.key or None, calling.certificate or None
            )
            return grpc.aio.secure_channel(place, credentials, options=options)

        self._channels = [made() for _ in range(CHANNELS)]
        self._turn = itertools.cycle(self._channels)
        self._metadata = calling.metadata()

    async def __aenter__(self) -> Client:
        """Return self."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        for channel in self._channels:
            await channel.close()

    async def call(self, stub: Any, method: str, request: Any) -> Any:
        """Make one call with one answer."""
        call = getattr(stub(next(self._turn)), method)(request, metadata=self._metadata)
        ending = Ending(call)
        try:
            return await call
        except grpc.RpcError as error:
            raise error_of(await ending.of(error)) from error

    async def stream(self, stub: Any, method: str, request: Any) -> AsyncIterator[Any]:
        """Make one call with a stream of answers."""
        call = getattr(stub(next(self._turn)), method)(request, metadata=self._metadata)
        ending = Ending(call)
        try:
            async for answer in call:
                yield answer
        except grpc.RpcError as error:
            raise error_of(await ending.of(error)) from error

    # ---- repositories ----

    def repo(self, name: str) -> Repo:
        """Return a repository; nothing is asked before its first use."""
        return Repo(self, name)

    async def create(self, name: str, *, object_format: str = "sha1") -> RepositoryInfo:
        """Make an empty repository."""
        request = repository_pb2.CreateRepositoryRequest(
            name=name, hash_kind=hash_kind_name(HashKind.from_git_name(object_format))
        )
        answer = await self.call(
            repository_pb2_grpc.RepositoryServiceStub, "CreateRepository", request
        )
        return repository_of(answer.repository)

    async def repository(self, name: str) -> RepositoryInfo:
        """Return what is known of a repository."""
        request = repository_pb2.GetRepositoryRequest(name=name)
        answer = await self.call(
            repository_pb2_grpc.RepositoryServiceStub, "GetRepository", request
        )
        return repository_of(answer.repository)

    async def repositories(self, prefix: str = "") -> AsyncIterator[RepositoryInfo]:
        """Return all repositories by rising name."""
        token = ""
        while True:
            request = repository_pb2.ListRepositoriesRequest(prefix=prefix, page_token=token)
            answer = await self.call(
                repository_pb2_grpc.RepositoryServiceStub, "ListRepositories", request
            )
            for one in answer.repositories:
                yield repository_of(one)
            token = answer.next_page_token
            if not token:
                return

    async def delete(self, name: str) -> None:
        """Delete a repository."""
        request = repository_pb2.DeleteRepositoryRequest(name=name)
        await self.call(repository_pb2_grpc.RepositoryServiceStub, "DeleteRepository", request)

    async def rename(self, name: str, new_name: str) -> RepositoryInfo:
        """Give a repository another name."""
        request = repository_pb2.RenameRepositoryRequest(name=name, new_name=new_name)
        answer = await self.call(
            repository_pb2_grpc.RepositoryServiceStub, "RenameRepository", request
        )
        return repository_of(answer.repository)

    async def fork(self, source: str, target: str) -> RepositoryInfo:
        """Make the repository ``target`` with the refs of ``source``; no objects are copied."""
        request = repository_pb2.ForkRepositoryRequest(source=source, target=target)
        answer = await self.call(
            repository_pb2_grpc.RepositoryServiceStub, "ForkRepository", request
        )
        return repository_of(answer.repository)

    async def shards(self) -> list[ShardInfo]:
        """Return the shards of the store."""
        answer = await self.call(
            shard_pb2_grpc.ShardServiceStub, "ListShards", shard_pb2.ListShardsRequest()
        )
        return [
            ShardInfo(
                s.id,
                s.path,
                s.zone,
                s.weight,
                s.state,
                s.blocks,
                s.bytes,
                s.file_bytes,
                s.partitions,
            )
            for s in answer.shards
        ]
