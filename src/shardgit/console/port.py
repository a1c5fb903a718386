"""The admin port, which the supervisor serves: metrics, health, and the page with its events."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from shardgit import telemetry
from shardgit.accepting import Acceptor, Loads
from shardgit.console.desks import DeskRefused, Desks
from shardgit.console.feed import Feed
from shardgit.console.gauges import tell_store
from shardgit.console.health import readiness
from shardgit.console.page import HEADERS, PAGE, static_files
from shardgit.console.snapshot import Snapshots
from shardgit.console.visitors import Sight, Visitors
from shardgit.door import tls_files
from shardgit.errors import Internal, InvalidArgument, NotFound, ShardgitError, Unavailable
from shardgit.http.connections import Connections
from shardgit.http.edge import refusal
from shardgit.limits import DEFAULT
from shardgit.workers import meanwhile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from shardgit.config import ServeConfig
    from shardgit.console.health import Served

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CONNECTIONS_MAX = 256
OF_ADDRESS_MAX = 64
HEAD_MAX_S = 5.0  # for the head of a request: who asks here is a browser, a probe or Prometheus
BODY_MAX_BYTES = 4_096  # nothing here takes one
CLOSE_MAX_S = 1.0


class AdminPort:
    """Serves the admin port of ``served``, whose workers' metrics, reports and desks are in ``folder``."""

    def __init__(self, config: ServeConfig, served: Served, folder: Path) -> None:
        self._served = served
        self._files = static_files()
        self.desks = Desks(folder, served.serving)
        self._visitors = Visitors(config, self.desks)
        self._snapshots = Snapshots(served, self.desks, folder)
        self.feed = Feed(self._snapshots.make, self._snapshots.points)
        # On loopback nobody listens in, and who asks may be a probe that knows no certificate.
        self._tls = None if config.admin_on_loopback else tls_files(config)

    @contextlib.asynccontextmanager
    async def serving(self, listeners: Sequence[socket.socket]) -> AsyncIterator[None]:
        """Serve on sockets that listen until the block is left."""
        limits = replace(
            DEFAULT, http_connections_max=CONNECTIONS_MAX, client_stall_max_s=HEAD_MAX_S
        )
        connections = Connections(limits, of_address_max=OF_ADDRESS_MAX)
        runner = web.AppRunner(
            self._app(connections),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=CLOSE_MAX_S,
        )
        await runner.setup()
        assert runner.server is not None
        loads = Loads.make(1)
        acceptors = [
            Acceptor(
                socket.socket(fileno=each.detach()),
                connections,
                loads=loads,
                number=0,
                count=connections.count,
                tls=self._tls,
                hurries=True,
            )
            for each in listeners
        ]
        async with (
            connections.looking(runner.server),
            meanwhile(self._snapshots.keep_history(), "console-history"),
            meanwhile(self.feed.run(), "console-feed"),
        ):
            for acceptor in acceptors:
                acceptor.start()
            try:
                yield
            finally:
                for acceptor in acceptors:
                    acceptor.close()
                self.feed.close()
                await runner.cleanup()
                await self.desks.close()
                loads.close()

    def _app(self, connections: Connections) -> web.Application:
        app = web.Application(
            client_max_size=BODY_MAX_BYTES, middlewares=[connections.heard, self._answering]
        )
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/", self._page)
        app.router.add_get("/static/{name}", self._static)
        app.router.add_get("/events", self._events, allow_head=False)
        app.router.add_get("/repositories", self._repositories)
        app.router.add_get("/size", self._size)
        return app

    @web.middleware
    async def _answering(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer with an error's words, and with the headers that all answers have."""
        try:
            response = await handler(request)
        except ShardgitError as error:
            response = refusal(error)
        except web.HTTPException as error:
            response = web.Response(status=error.status, text=f"{error.reason.lower()}\n")
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except Exception as error:
            telemetry.log().error("admin_port_failed", what=request.path[:200], exc_info=error)
            response = refusal(Internal("internal error"))
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    # ---- for machines ----

    async def _livez(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        """Say to everybody whether the server is ready, and to who may know it why."""
        is_ready, words = readiness(self._served, self._served.reports())
        if not await self._visitors.is_known(request):
            words = "ready\n" if is_ready else "not ready\n"
        return web.Response(status=200 if is_ready else 503, text=words)

    async def _metrics(self, request: web.Request) -> web.Response:
        await self._visitors.check(request, Sight.METRICS)
        tell_store(await self._snapshots.survey())
        return web.Response(
            body=self._served.metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    # ---- for people ----

    async def _page(self, request: web.Request) -> web.Response:
        return await self._file(request, PAGE)

    async def _static(self, request: web.Request) -> web.Response:
        return await self._file(request, request.match_info["name"])

    async def _file(self, request: web.Request, name: str) -> web.Response:
        await self._visitors.check(request, Sight.ALL)
        found = self._files.get(name)
        if found is None:
            raise NotFound("no such page")
        headers = {"Content-Type": found.type, "ETag": found.etag, "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == found.etag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=found.data, headers=headers)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        await self._visitors.check(request, Sight.ALL)

        async def still() -> None:
            await self._visitors.check(request, Sight.ALL, again=True)

        return await self.feed.watch(request, still)

    async def _repositories(self, request: web.Request) -> web.Response:
        await self._visitors.check(request, Sight.ALL)
        words, after = request.query.get("words", ""), request.query.get("after", "")
        return await _told(self.desks.repositories(words, after))

    async def _size(self, request: web.Request) -> web.Response:
        await self._visitors.check(request, Sight.ALL)
        return await _told(self.desks.size(request.query.get("name", "")))


async def _told(asked: Awaitable[msgspec.Struct]) -> web.Response:
    """Return a desk's answer as JSON."""
    try:
        found = await asked
    except DeskRefused as cause:
        raise _error_of(cause) from cause
    return web.Response(
        body=msgspec.json.encode(found),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _error_of(refused: DeskRefused) -> ShardgitError:
    kinds: tuple[type[ShardgitError], ...] = (NotFound, InvalidArgument, Unavailable)
    for kind in kinds:
        if kind.code == refused.answer.code:
            return kind(refused.answer.message)
    return Internal(refused.answer.message)
