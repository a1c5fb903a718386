"""TransportService: Git's own protocols, carried by bidirectional calls."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

from shardgit.errors import InvalidArgument, LimitExceeded
from shardgit.rpc.status import bounded_stream, paced
from shardgit.service.access import caller
from shardgit.service.conversation import GitService
from shardgit.service.names import name_in_path
from shardgit.v1 import transport_pb2, transport_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    import grpc

    from shardgit.service.conversation import Conversations

    Request = (
        transport_pb2.UploadPackRequest
        | transport_pb2.ReceivePackRequest
        | transport_pb2.UploadArchiveRequest
    )

VERSIONS = (0, 1, 2)
_R = TypeVar(
    "_R",
    transport_pb2.UploadPackResponse,
    transport_pb2.ReceivePackResponse,
    transport_pb2.UploadArchiveResponse,
)


def _carried(service: GitService, response: type[_R]) -> Callable[..., AsyncIterator[_R]]:
    """Return the method that holds a service's conversations, named as its messages are."""

    async def method(
        self: Transport, requests: AsyncIterator[Request], _: grpc.aio.ServicerContext
    ) -> AsyncIterator[_R]:
        async with aclosing(self.converse(service, requests)) as out:
            async for piece in out:
                yield response(data=piece)

    method.__name__ = response.DESCRIPTOR.name.removesuffix("Response")
    return bounded_stream(method)


class Transport(transport_pb2_grpc.TransportServiceServicer):
    """TransportService."""

    UploadPack = _carried(GitService.UPLOAD_PACK, transport_pb2.UploadPackResponse)
    ReceivePack = _carried(GitService.RECEIVE_PACK, transport_pb2.ReceivePackResponse)
    UploadArchive = _carried(GitService.UPLOAD_ARCHIVE, transport_pb2.UploadArchiveResponse)

    def __init__(self, conversations: Conversations) -> None:
        self.conversations = conversations
        self.store = conversations.store
        self.most = conversations.limits.message_max_bytes

    async def converse(
        self,
        service: GitService,
        requests: AsyncIterator[Request],
    ) -> AsyncGenerator[bytes, None]:
        """Hold a conversation; its bytes come in pieces that fit into a message."""
        requests = paced(requests, self.conversations.limits)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument("stream does not begin with a header")
        asked = first.header.protocol_version
        talk = self.conversations.converse(
            service,
            name_in_path(first.header.repository),
            self._pieces(requests),
            principal=caller(),
            version=asked if asked in VERSIONS else 0,
        )
        async with aclosing(talk) as out:
            async for piece in out:
                if len(piece) <= self.most:
                    yield piece
                    continue
                for at in range(0, len(piece), self.most):
                    yield piece[at : at + self.most]

    async def _pieces(self, requests: AsyncIterator[Request]) -> AsyncIterator[bytes]:
        async for request in requests:
            if request.WhichOneof("part") == "header":
                raise InvalidArgument("stream has two headers")
            if len(request.data) > self.most:
                raise LimitExceeded(
                    "message is too large", bytes=len(request.data), limit=self.most
                )
            yield request.data
