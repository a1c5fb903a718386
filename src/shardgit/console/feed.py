"""What browsers watch: one producer for all of them, server-sent events, and nothing at all while nobody watches.

    event: history    once, the points that the browser does not have: [point, ...]
    event: now        every EVERY_S, all that the page shows
    : here            a comment when nothing else was sent for BEAT_S

The id of an event is RUN-MS: the server's run and the time of its newest point. A browser that comes back sends it, and
gets the points behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from shardgit import telemetry
from shardgit.errors import PermissionRefused, RateLimited, ShardgitError, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shardgit.console.traffic import Point

EVERY_S = 2.0
BEAT_S = 5.0
STALL_S = 10.0  # that a browser may leave what it was sent
LOOK_AGAIN_S = 10.0  # between two looks whether one may still watch
WATCHERS_MAX = 32
RETRY_MS = 2_000


class Feed:
    """Gives what ``make`` returns to all who watch. ``points`` returns the history behind a time in ms."""

    def __init__(
        self,
        make: Callable[[], Awaitable[msgspec.Struct]],
        points: Callable[[int], list[Point]],
    ) -> None:
        self._make = make
        self._points = points
        self._run = secrets.token_hex(4)
        self._watching: set[asyncio.Event] = set()
        self._some = asyncio.Event()
        self._first = asyncio.Event()
        self._frame = b""
        self._closing = False
        self.produced = 0

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._watching)

    async def run(self) -> None:
        """Produce while somebody watches; has no end."""
        while True:
            await self._some.wait()
            begun = time.monotonic()
            try:
                found = await self._make()
            except ShardgitError as error:
                telemetry.log().error("console_not_made", error=str(error))
            except Exception as error:  # once more in a moment
                telemetry.log().error("console_not_made", exc_info=error)
            else:
                self.produced += 1
                self._frame = self._event("now", found)
                for each in self._watching:
                    each.set()
            self._first.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.1, EVERY_S - (time.monotonic() - begun))):
                    await self._first.wait()

    def close(self) -> None:
        """Let everybody go, and nobody in."""
        self._closing = True
        for each in self._watching:
            each.set()

    async def watch(
        self, request: web.Request, still: Callable[[], Awaitable[None]]
    ) -> web.StreamResponse:
        """Answer with events until one of both goes; ``still`` raises once the browser may not watch any more.

        Errors, before the answer: RateLimited when too many watch.
        """
        if len(self._watching) >= WATCHERS_MAX or self._closing:
            raise RateLimited("too many watch; try again", limit=WATCHERS_MAX, retry_after_s=5)
        fresh = asyncio.Event()
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )
        self._watching.add(fresh)
        self._some.set()
        if len(self._watching) == 1:
            self._first.set()
        try:
            async with asyncio.timeout(STALL_S):
                await response.prepare(request)
                begin = self._event("history", self._points(self._seen(request)))
                await response.write(b"retry: %d\n%s" % (RETRY_MS, begin))
            await self._tell(response, fresh, still)
        except ConnectionError:
            pass  # the browser went away
        except TimeoutError:
            telemetry.log().info("console_reader_dropped", address=request.remote)
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._watching.discard(fresh)
            if not self._watching:
                self._some.clear()
                self._frame = b""
        return response

    async def _tell(
        self,
        response: web.StreamResponse,
        fresh: asyncio.Event,
        still: Callable[[], Awaitable[None]],
    ) -> None:
        """Send the newest each time there is one. What comes while a browser is slow is left out for it.

        Errors: TimeoutError for one that takes nothing.
        """
        looked = time.monotonic()
        frame = self._frame
        while not self._closing:
            if frame:
                async with asyncio.timeout(STALL_S):
                    await response.write(frame)
            try:
                async with asyncio.timeout(BEAT_S):
                    await fresh.wait()
            except TimeoutError:
                frame = b": here\n\n"
            else:
                fresh.clear()
                frame = self._frame
            if time.monotonic() - looked >= LOOK_AGAIN_S:
                looked = time.monotonic()
                try:
                    await still()
                except (Unauthenticated, PermissionRefused):
                    return
                except ShardgitError:  # nobody can look now: it was let in before
                    continue

    def _event(self, name: str, body: Any) -> bytes:
        newest = self._points(-1)
        at = newest[-1].time_ms if newest else 0
        data = msgspec.json.encode(body)  # one line: JSON has no bare line ends
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (self._run.encode(), at, name.encode(), data)

    def _seen(self, request: web.Request) -> int:
        """Return up to which time a browser that comes back has the history, 0 for one that has none."""
        run, _, at = request.headers.get("Last-Event-ID", "").partition("-")
        is_ours = run == self._run and at.isascii() and at.isdigit() and len(at) <= 15
        return int(at) if is_ours else 0
