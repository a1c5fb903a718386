"""Hooks that are called over gRPC, and the endpoint at which hooks read what was pushed."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from shardgit import telemetry
from shardgit.errors import HookFailed, RepositoryMissing
from shardgit.rpc.services import Commits, Objects
from shardgit.service.doorkeeper import Doorkeeper
from shardgit.service.hooks import PRE_RECEIVE, UPDATE, Answer
from shardgit.v1 import (
    commit_pb2_grpc,
    hook_pb2,
    hook_pb2_grpc,
    object_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from shardgit.protocol.receive_pack import Command
    from shardgit.service.hooks import HookEvent, Tell
    from shardgit.service.reading import Reading
    from shardgit.service.settings import Hook
    from shardgit.service.store import Store
    from shardgit.workers import Workers

SOCKET_PATH_MAX = 100  # the kernel takes 107 bytes
# Only these: a hook reads, and nothing but the repository that is pushed to.
READS = frozenset(
    f"/shardgit.v1.{service}/{method}"
    for service, methods in (
        ("ObjectService", ("GetObjects", "GetObject", "GetObjectInfo", "ListObjects")),
        (
            "CommitService",
            ("GetCommit", "ListCommits", "IsAncestor", "MergeBase", "GetTree", "ReadPath"),
        ),
    )
    for method in methods
)


class GrpcCaller:
    """Calls HookService at HOST:PORT, without TLS."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    async def call(self, hook: Hook, event: HookEvent, _: Tell) -> Answer:
        """See HookCaller."""
        request = await self._workers.run(_request, event)
        try:
            async with grpc.aio.insecure_channel(hook.target) as channel:
                stub = hook_pb2_grpc.HookServiceStub(channel)  # type: ignore[no-untyped-call]
                carried = tuple(telemetry.carry_trace().items())
                if event.event == PRE_RECEIVE:
                    answer = await stub.PreReceive(request, metadata=carried)
                elif event.event == UPDATE:
                    answer = await stub.Update(request, metadata=carried)
                else:
                    told = await stub.PostReceive(request, metadata=carried)
                    return Answer(accepted=True, text=told.message)
        except grpc.aio.AioRpcError as cause:
            raise HookFailed("hook did not answer", code=cause.code().name) from cause
        return Answer(answer.accepted, answer.message)


def _request(event: HookEvent) -> Any:
    push = _push(event)
    if event.event == UPDATE:
        (command,) = event.commands()
        return hook_pb2.UpdateRequest(push=push, command=_command(command))
    commands = [_command(each) for each in event.first_commands()]
    if event.event == PRE_RECEIVE:
        return hook_pb2.PreReceiveRequest(push=push, commands=commands, commands_total=event.count)
    return hook_pb2.PostReceiveRequest(
        push=push,
        commands=commands,
        commands_total=event.count,
        sequence=event.sequence,
        time_ms=event.time_ms,
        reason=event.reason,
    )


def _push(event: HookEvent) -> hook_pb2.Push:
    facts = event.certificate
    certificate = None
    if facts is not None:
        certificate = hook_pb2.PushCertificate(
            text=facts.certificate,
            signer=facts.signer,
            key=facts.key,
            status=facts.status,
            nonce=facts.nonce,
            nonce_status=facts.nonce_status.value,
            nonce_slop_s=facts.slop_s,
        )
    return hook_pb2.Push(
        request_id=event.request_id,
        repository=event.repository.name,
        repository_id=event.repository.id,
        actor=event.principal.name,
        address=event.principal.address,
        options=event.options,
        certificate=certificate,
        server=event.server,
    )


def _command(command: Command) -> hook_pb2.RefCommand:
    return hook_pb2.RefCommand(
        ref=command.name, old_id=command.old or b"", new_id=command.new or b""
    )


class QuarantineEndpoint:
    """Serves the reads of ObjectService and CommitService over what one push would make."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @asynccontextmanager
    async def __call__(self, read: Reading, folder: Path) -> AsyncIterator[str]:
        """See Endpoint."""
        async with AsyncExitStack() as held:
            path = folder / "socket"
            if len(bytes(path)) > SOCKET_PATH_MAX:  # a deep store: a short folder of its own
                short = await asyncio.to_thread(tempfile.mkdtemp, prefix="shardgit-")
                held.callback(shutil.rmtree, short, ignore_errors=True)
                path = Path(short) / "socket"
            server = grpc.aio.server(interceptors=[_OnlyReads()])
            object_pb2_grpc.add_ObjectServiceServicer_to_server(  # type: ignore[no-untyped-call]
                _PushedObjects(self._store, read), server
            )
            commit_pb2_grpc.add_CommitServiceServicer_to_server(  # type: ignore[no-untyped-call]
                _PushedCommits(self._store, read), server
            )
            server.add_insecure_port(f"unix:{path}")
            await server.start()
            try:
                yield f"unix:{path}"
            finally:
                await server.stop(None)


class _OnlyReads(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Answers UNIMPLEMENTED to all but reads."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Pass a read on."""
        if handler_call_details.method not in READS:
            return None
        return await continuation(handler_call_details)


class _PushedObjects(Objects):
    def __init__(self, store: Store, read: Reading) -> None:
        super().__init__(store)
        self.doorkeeper = Doorkeeper(
            store.journal
        )  # who reaches the socket may read, whoever that is
        self._pushed = read

    async def _read(self, repository: str) -> Reading:
        return _only(self._pushed, repository)


class _PushedCommits(Commits):
    def __init__(self, store: Store, read: Reading) -> None:
        super().__init__(store)
        self.doorkeeper = Doorkeeper(store.journal)
        self._pushed = read

    async def _read(self, repository: str) -> Reading:
        return _only(self._pushed, repository)


def _only(read: Reading, repository: str) -> Reading:
    if repository != read.record.name:
        raise RepositoryMissing("only the pushed repository is read here", repository=repository)
    return read
