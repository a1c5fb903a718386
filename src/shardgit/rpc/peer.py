"""PeerService: blocks for the other nodes of a cluster, on a port of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from shardgit.blocks.block import BLOCK_MAX_BYTES
from shardgit.errors import InvalidArgument, LimitExceeded, RingStale
from shardgit.oid import BlockId
from shardgit.rpc.credentials import server_credentials
from shardgit.rpc.status import bounded_stream, paced, unary
from shardgit.v1 import peer_pb2, peer_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from shardgit.blocks.clustered import ClusteredBlocks
    from shardgit.limits import Limits
    from shardgit.tls import TlsFiles

ID_BYTES = 32
MESSAGE_BYTES = 1 << 20
IDS_MAX = MESSAGE_BYTES // ID_BYTES  # of a message
RECEIVE_MAX_BYTES = MESSAGE_BYTES + (64 << 10)  # with what stands beside the bytes
COLUMN_BYTES = ID_BYTES + 5  # of a block in a message, beside its bytes
# With frames of 16 KiB a MiB cost 6.1 ms of CPU on both ends and 11 ms of time, with these 5.2 and 7.6.
WIDE_FRAMES = (("grpc.http2.max_frame_size", 1 << 20), ("grpc.http2.lookahead_bytes", 4 << 20))
TOGETHER = 4  # blocks that are fetched for one call at once, 8 MiB each at most
CALLS_AT_ONCE = (
    8  # of either kind that hold blocks; callers have a deadline, so a slow one is soon gone
)


class PeerServicer(peer_pb2_grpc.PeerServiceServicer):
    """PeerService."""

    admits_peers = True  # who calls has shown a certificate, or is on this machine

    def __init__(self, blocks: ClusteredBlocks, limits: Limits) -> None:
        self.blocks = blocks
        self.limits = limits
        self.store = self  # whose limits streams keep to
        # Apart: calls that may wait for other nodes must not keep out those that these wait for.
        self._room = {here: asyncio.Semaphore(CALLS_AT_ONCE) for here in (False, True)}

    def _check(self, epoch: int) -> None:
        if epoch < self.blocks.nodes.epoch:
            raise RingStale("caller goes by an older ring", epoch=self.blocks.nodes.epoch)

    @bounded_stream
    async def GetBlocks(
        self,
        requests: AsyncIterator[peer_pb2.GetBlocksRequest],
        _: grpc.aio.ServicerContext,
    ) -> AsyncIterator[peer_pb2.GetBlocksResponse]:
        source = paced(requests, self.limits)
        first = await anext(source, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument("stream does not begin with a header")
        only_here = first.header.only_here
        async for request in source:
            self._check(first.header.ring_epoch)
            ids = ids_of(request.data.ids)
            for at in range(0, len(ids), TOGETHER):
                some = ids[at : at + TOGETHER]
                async with self._room[only_here]:
                    found = await self.blocks.serve(some, only_here=only_here)
                    for answer in answers(some, found):
                        yield answer
                    del found

    @unary
    async def HasBlocks(
        self, request: peer_pb2.HasBlocksRequest, _: grpc.aio.ServicerContext
    ) -> peer_pb2.HasBlocksResponse:
        self._check(request.ring_epoch)
        ids = ids_of(request.ids)
        here = await self.blocks.has_here(ids)
        return peer_pb2.HasBlocksResponse(here=bytes(here))

    @unary
    async def PutBlocks(
        self,
        requests: AsyncIterator[peer_pb2.PutBlocksRequest],
        _: grpc.aio.ServicerContext,
    ) -> peer_pb2.PutBlocksResponse:
        source = paced(requests, self.limits)
        first = await anext(source, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument("stream does not begin with a header")
        self._check(first.header.ring_epoch)
        joining, taken = Joining(), 0
        async for request in source:
            data = request.data
            whole = [
                (block, found)
                for block, found in joining.take(ids_of(data.ids), data.sizes, data.data)
                if found is not None
            ]
            if whole:
                taken += await self.blocks.take(whole)
        joining.end()
        return peer_pb2.PutBlocksResponse(taken=taken)

    @unary
    async def DropBlocks(
        self, request: peer_pb2.DropBlocksRequest, _: grpc.aio.ServicerContext
    ) -> peer_pb2.DropBlocksResponse:
        self._check(request.ring_epoch)
        ids = ids_of(request.ids)
        await self.blocks.drop(ids)
        return peer_pb2.DropBlocksResponse()

    @unary
    async def GetRing(
        self, _: peer_pb2.GetRingRequest, __: grpc.aio.ServicerContext
    ) -> peer_pb2.GetRingResponse:
        return peer_pb2.GetRingResponse(ring=self.blocks.nodes.ring.encode())


def ids_of(flat: bytes) -> list[BlockId]:
    """Return the ids that stand one after another. Errors: InvalidArgument, LimitExceeded."""
    if len(flat) % ID_BYTES:
        raise InvalidArgument("ids of blocks are cut short", bytes=len(flat))
    if len(flat) > MESSAGE_BYTES:
        raise LimitExceeded("too many ids in a message", most=IDS_MAX)
    return [BlockId(flat[at : at + ID_BYTES]) for at in range(0, len(flat), ID_BYTES)]


def answers(
    ids: Sequence[BlockId], found: Sequence[bytes | None]
) -> Iterator[peer_pb2.GetBlocksResponse]:
    """Return messages of at most MESSAGE_BYTES of blocks."""
    for columns in in_messages(ids, found):
        yield peer_pb2.GetBlocksResponse(ids=columns[0], sizes=columns[1], data=columns[2])


def in_messages(
    ids: Sequence[BlockId], found: Sequence[bytes | None]
) -> Iterator[tuple[bytes, list[int], bytes]]:
    """Return columns of ids, sizes and bytes, of at most MESSAGE_BYTES bytes each; a block may go on in the next."""
    names: list[bytes] = []
    sizes: list[int] = []
    pieces: list[memoryview | bytes] = []
    room = MESSAGE_BYTES
    for block, data in zip(ids, found, strict=True):
        if room <= COLUMN_BYTES:
            yield b"".join(names), sizes, b"".join(pieces)
            names, sizes, pieces, room = [], [], [], MESSAGE_BYTES
        room -= COLUMN_BYTES
        names.append(block)
        sizes.append(0 if data is None else len(data))
        view = memoryview(data or b"")
        while len(view) >= room:
            pieces.append(view[:room])
            yield b"".join(names), sizes, b"".join(pieces)
            view, names, sizes, pieces, room = view[room:], [], [], [], MESSAGE_BYTES
        pieces.append(view)
        room -= len(view)
    if names or any(pieces):
        yield b"".join(names), sizes, b"".join(pieces)


class Joining:
    """Joins the columns of messages to blocks again, as they come."""

    def __init__(self) -> None:
        self._waiting: list[tuple[BlockId, int]] = []  # told, in order, the first perhaps in part
        self._pieces: list[bytes] = []
        self._got = 0  # bytes of pieces

    def take(
        self, ids: Sequence[BlockId], sizes: Sequence[int], data: bytes
    ) -> Iterator[tuple[BlockId, bytes | None]]:
        """Return the blocks that are whole now, None for absent ones. Errors: InvalidArgument."""
        if len(ids) != len(sizes) or any(size > BLOCK_MAX_BYTES for size in sizes):
            raise InvalidArgument("columns of blocks are impossible")
        self._waiting += zip(ids, sizes, strict=True)
        if len(self._waiting) > IDS_MAX:
            raise InvalidArgument("bytes of blocks do not come")
        at = 0
        while self._waiting:
            block, size = self._waiting[0]
            if size == 0:
                del self._waiting[0]
                yield block, None
                continue
            piece = data[at : at + size - self._got]
            if not piece:
                break
            self._pieces.append(piece)
            self._got += len(piece)
            at += len(piece)
            if self._got == size:
                whole = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                del self._waiting[0]
                self._pieces, self._got = [], 0
                yield block, whole
        if at != len(data):
            raise InvalidArgument("bytes of blocks belong to none")

    def end(self) -> None:
        """Raise InvalidArgument when a block was not sent whole."""
        if self._waiting:
            raise InvalidArgument("block was not sent whole", block=self._waiting[0][0].hex())


async def make_peer_server(
    blocks: ClusteredBlocks,
    limits: Limits,
    address: str,
    *,
    tls: TlsFiles | None = None,
) -> tuple[grpc.aio.Server, int]:
    """Return a server for peers and its port, not yet started; workers of a node may share an address.

    It gives any block to who asks: without ``tls``, which demands a client's certificate, it belongs on loopback
    or a network of the nodes' own. Errors: RuntimeError when the address is taken.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 1),
            *WIDE_FRAMES,
            ("grpc.max_receive_message_length", RECEIVE_MAX_BYTES),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    servicer = PeerServicer(blocks, limits)
    peer_pb2_grpc.add_PeerServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    if tls is None:
        return server, server.add_insecure_port(address)
    return server, server.add_secure_port(address, server_credentials(tls))
