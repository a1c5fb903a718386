"""The HTTP edge served in this process, for tests that look inside or set limits."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shardgit.http.app import GitHttp


@asynccontextmanager
async def listening(service: GitHttp, *, lingering_s: float = 0.1) -> AsyncIterator[str]:
    """Serve; yields the URL without a slash at its end."""
    runner = web.AppRunner(
        service.app(),
        access_log=None,
        auto_decompress=False,
        handler_cancellation=True,
        shutdown_timeout=5,
        lingering_time=lingering_s,
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def host_and_port(url: str) -> tuple[str, int]:
    """Return the address in such a URL."""
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)
