"""Answers that are whole before they are sent: watched as streams are, and nothing is copied."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from shardgit.http.connections import Connections
from shardgit.http.edge import SMALL_BYTES, Edge
from shardgit.limits import Limits
from shardgit.service.answers import Whole

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

HEAD = b"head"
LARGE = bytes(range(256)) * 2_000  # 500 KiB
SMALL = b"x" * (SMALL_BYTES - len(HEAD))


async def whole(body: bytes) -> AsyncGenerator[bytes, None]:
    yield Whole(body)


async def piece(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


async def pieces(body: bytes) -> AsyncGenerator[bytes, None]:
    for at in range(0, len(body), 100_000):
        yield body[at : at + 100_000]


SOURCES = {"whole": whole, "piece": piece, "pieces": pieces}


@asynccontextmanager
async def served(*, most: int = 100) -> AsyncIterator[tuple[tuple[str, int], Connections]]:
    """Serve each source as /NAME/large and /NAME/small; sockets take little at a time."""
    limits = Limits(http_connections_max=most, client_stall_max_s=0.5)
    edge, connections = Edge(limits), Connections(limits)

    async def handler(request: web.Request) -> web.StreamResponse:
        _, name, size = request.path.split("/")
        source = SOURCES[name](LARGE if size == "large" else SMALL)
        return await edge.send(request, source, {}, head=HEAD, whole=name == "piece")

    app = web.Application(middlewares=[connections.heard, edge.middleware])
    app.router.add_get("/{name}/{size}", handler)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    assert runner.server is not None
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    async with connections.looking(runner.server), asyncio.timeout(30):
        acceptor = await asyncio.get_running_loop().create_server(connections, sock=listener)
        try:
            yield listener.getsockname(), connections
        finally:
            acceptor.close()
            await runner.cleanup()


async def asked(address: tuple[str, int], path: str, head: str = "HTTP/1.1") -> socket.socket:
    """Ask for something with a socket that takes little."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, address)
    await loop.sock_sendall(client, f"GET {path} {head}\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return client


async def read_to_end(client: socket.socket) -> bytes:
    out = b""
    while data := await asyncio.get_running_loop().sock_recv(client, 1 << 16):
        out += data
    return out


@pytest.mark.parametrize("size", ["large", "small"])
@pytest.mark.parametrize("name", ["whole", "piece"])
async def test_who_reads_gets_all_with_its_length(name: str, size: str) -> None:
    want = HEAD + (LARGE if size == "large" else SMALL)
    async with served() as (address, _):
        reader, writer = await asyncio.open_connection(*address)
        for _ in range(2):  # the connection stays
            writer.write(f"GET /{name}/{size} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert f"Content-Length: {len(want)}\r\n".encode() in head
            assert b"chunked" not in head
            assert await reader.readexactly(len(want)) == want
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("name", ["whole", "piece"])
async def test_who_takes_nothing_is_cut(name: str) -> None:
    async with served() as (address, connections):
        client = await asked(address, f"/{name}/large")
        while not connections.count():
            await asyncio.sleep(0.01)
        while connections.count():
            await asyncio.sleep(0.05)
        client.close()


async def test_who_takes_nothing_of_a_small_answer_makes_room_for_others() -> None:
    async with served(most=2) as (address, connections):
        held = [await asked(address, "/whole/small") for _ in range(2)]
        while connections.count() < 2 or len(connections._idle) < 2:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /whole/small HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        for client in held:
            client.close()


async def test_the_end_of_the_connection_is_that_of_an_answer_without_length() -> None:
    async with served() as (address, _):
        head = "HTTP/1.0\r\nConnection: keep-alive"
        client = await asked(address, "/pieces/large", head)
        answer = await read_to_end(client)
        assert answer.endswith(HEAD + LARGE)
        assert b"connection: close" in answer.split(b"\r\n\r\n")[0].lower()
        client.close()
