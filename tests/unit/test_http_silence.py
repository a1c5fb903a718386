"""Connections on which nobody asks are cut; those on which somebody did are aiohttp's to keep."""

from __future__ import annotations

import asyncio

from aiohttp import web

from shardgit.http.silence import SilentConnections


async def test_who_does_not_end_the_head_of_a_request_is_cut() -> None:
    silent = SilentConnections(0.4)
    app = web.Application(middlewares=[silent.heard])

    async def root(_: web.Request) -> web.Response:
        return web.Response(text="here")

    app.router.add_get("/", root)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = runner.addresses[0][:2]
    assert runner.server is not None
    try:
        async with silent.cutting(runner.server), asyncio.timeout(10):
            quiet, quiet_out = await asyncio.open_connection(*address)
            half, half_out = await asyncio.open_connection(*address)
            asks, asks_out = await asyncio.open_connection(*address)
            half_out.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ")
            asks_out.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await asks.readuntil(b"here")
            assert await quiet.read() == b""
            assert await half.read() == b""
            await asyncio.sleep(0.6)
            asks_out.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await asks.readuntil(b"here")
            late, late_out = await asyncio.open_connection(*address)
            late_out.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await late.readuntil(b"here")
            for each in (quiet_out, half_out, asks_out, late_out):
                each.close()
                await each.wait_closed()
    finally:
        await runner.cleanup()
