"""How many HTTP connections there may be, and how long one may be silent."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from moved import Moved

from shardgit.http import connections as module
from shardgit.http.connections import Connections
from shardgit.limits import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
WAIT = b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def served(
    *, most: int = 100, silence_s: float = 60.0, of_address_max: int | None = None
) -> AsyncIterator[tuple[tuple[str, int], asyncio.Event]]:
    """Serve / and /wait, which answers once the event is set."""
    limits = Limits(http_connections_max=most, client_stall_max_s=silence_s)
    connections = Connections(limits, of_address_max=of_address_max)
    go_on = asyncio.Event()
    app = web.Application(middlewares=[connections.heard])

    async def root(_: web.Request) -> web.Response:
        return web.Response(text="here")

    async def wait(_: web.Request) -> web.Response:
        await go_on.wait()
        return web.Response(text="here")

    app.router.add_get("/", root)
    app.router.add_get("/wait", wait)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    assert runner.server is not None
    async with connections.looking(runner.server), asyncio.timeout(20):
        loop = asyncio.get_running_loop()
        acceptor = await loop.create_server(connections, "127.0.0.1", 0)
        try:
            yield acceptor.sockets[0].getsockname()[:2], go_on
        finally:
            go_on.set()
            acceptor.close()
            await runner.cleanup()


async def test_who_does_not_end_the_head_of_a_request_is_cut() -> None:
    async with served(silence_s=0.4) as (address, _):
        quiet, quiet_out = await asyncio.open_connection(*address)
        half, half_out = await asyncio.open_connection(*address)
        asks, asks_out = await asyncio.open_connection(*address)
        half_out.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ")
        asks_out.write(ASK)
        assert b"200 OK" in await asks.readuntil(b"here")
        assert await quiet.read() == b""
        assert await half.read() == b""
        await asyncio.sleep(0.6)
        asks_out.write(ASK)
        assert b"200 OK" in await asks.readuntil(b"here")
        late, late_out = await asyncio.open_connection(*address)
        late_out.write(ASK)
        assert b"200 OK" in await late.readuntil(b"here")
        for each in (quiet_out, half_out, asks_out, late_out):
            each.close()
            await each.wait_closed()


async def test_the_connection_that_idles_longest_makes_room() -> None:
    async with served(most=2) as (address, _):
        outs = []
        first, out = await asyncio.open_connection(*address)
        outs.append(out)
        out.write(ASK)
        await first.readuntil(b"here")
        for _number in range(3):
            reader, out = await asyncio.open_connection(*address)
            outs.append(out)
            out.write(ASK)
            assert b"200 OK" in await reader.readuntil(b"here")
        assert await first.read() == b""
        for out in outs:
            out.close()


async def test_a_connection_too_many_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_MAX", 1)
    moved = Moved()
    async with served(most=2) as (address, go_on):
        busy = [await asyncio.open_connection(*address) for _ in range(2)]
        for _, out in busy:
            out.write(WAIT)
        await asyncio.sleep(0.05)
        third, third_out = await asyncio.open_connection(*address)
        fourth, fourth_out = await asyncio.open_connection(*address)
        assert await fourth.read() == b""  # far past the bound: closed at once
        assert moved("shardgit_http_connections_refused_total") == {"": 1}
        third_out.write(ASK)
        answer = await third.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in answer
        assert b"too many connections" in answer
        assert moved("shardgit_http_connections_refused_total") == {"": 2}
        go_on.set()
        for reader, _out in busy:
            assert b"200 OK" in await reader.readuntil(b"here")
        fifth, fifth_out = await asyncio.open_connection(*address)
        fifth_out.write(ASK)
        assert b"200 OK" in await fifth.readuntil(b"here")
        assert moved("shardgit_http_connections_refused_total") == {"": 2}
        for out in (*(out for _, out in busy), third_out, fourth_out, fifth_out):
            out.close()


async def test_a_second_head_has_as_long_as_the_first() -> None:
    """The connection itself may idle for longer than a head may take."""
    async with served(silence_s=0.4) as (address, _):
        half, half_out = await asyncio.open_connection(*address)
        rests, rests_out = await asyncio.open_connection(*address)
        for reader, out in ((half, half_out), (rests, rests_out)):
            out.write(ASK)
            assert b"200 OK" in await reader.readuntil(b"here")
        half_out.write(b"GET / HT")
        assert await half.read() == b""
        rests_out.write(ASK)
        assert b"200 OK" in await rests.readuntil(b"here")
        for out in (half_out, rests_out):
            out.close()


async def test_where_addresses_are_bounded_who_is_silent_for_longest_makes_room() -> None:
    for most, of_address in ((2, 100), (100, 2)):
        async with served(most=most, of_address_max=of_address) as (address, go_on):
            busy, busy_out = await asyncio.open_connection(*address)
            busy_out.write(WAIT)
            first, first_out = await asyncio.open_connection(*address)
            second, second_out = await asyncio.open_connection(*address)
            assert await first.read() == b""
            third, third_out = await asyncio.open_connection(*address)
            assert await second.read() == b""
            third_out.write(ASK)
            assert b"200 OK" in await third.readuntil(b"here")
            go_on.set()
            assert b"200 OK" in await busy.readuntil(b"here")
            for out in (busy_out, first_out, second_out, third_out):
                out.close()


async def test_an_address_with_too_many_requests_under_way_is_told_so_and_others_are_not() -> None:
    async with served(of_address_max=2) as ((_, number), go_on):
        busy = [await asyncio.open_connection("127.0.0.1", number) for _ in range(2)]
        for _, out in busy:
            out.write(WAIT)
        await asyncio.sleep(0.05)
        reader, surplus = await asyncio.open_connection("127.0.0.1", number)
        surplus.write(ASK)
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        reader, other = await asyncio.open_connection(
            "127.0.0.1", number, local_addr=("127.0.0.2", 0)
        )
        other.write(ASK)
        assert b"200 OK" in await reader.readuntil(b"here")
        go_on.set()
        for each, _ in busy:
            assert b"200 OK" in await each.readuntil(b"here")
        for out in (*(out for _, out in busy), surplus, other):
            out.close()
