"""Connections on which nobody ever asks: aiohttp gives a first request all the time in the world."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

LOOKS = 4  # within the time that a connection has


class SilentConnections:
    """Cuts a connection whose first request's head is not whole within ``most_s``.

    Between requests aiohttp's own keep-alive time counts.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._since: dict[object, float] = {}
        self._asked: set[object] = set()

    @web.middleware
    async def heard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Note that a connection brought a request, and pass that on."""
        self._asked.add(request.protocol)
        return await handler(request)

    @contextlib.asynccontextmanager
    async def cutting(self, server: web.Server) -> AsyncIterator[None]:
        """Look after a server's connections until the block is left."""
        task = asyncio.create_task(self._look(server), name="silent-connections")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _look(self, server: web.Server) -> None:
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._most_s / LOOKS)
            here = server.connections
            self._asked.intersection_update(here)
            self._since = {each: self._since.get(each, now()) for each in here}
            for connection in here:
                late = now() - self._since[connection] >= self._most_s
                if late and connection not in self._asked:
                    connection.force_close()
