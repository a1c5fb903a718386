"""Answers that are streamed: sent as the client takes them, never faster."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

WRITE_BYTES = 1 << 20
HIGH_WATER_BYTES = 1 << 20


class PackResponse(web.StreamResponse):
    """A response whose pieces come from an iterator that is pulled by the client's pace.

    At most 1 MiB waits for the client here, beside the pieces that the iterator holds. A client
    that takes nothing for ``stall_s`` is cut off.
    """

    def __init__(
        self,
        *,
        headers: dict[str, str],
        stall_s: float,
        status: int = 200,
        length: int | None = None,
    ) -> None:
        super().__init__(headers=headers, status=status)
        if length is not None:
            self.content_length = length
        self._stall_s = stall_s
        self._sent = 0

    async def send(
        self, request: web.Request, first: Iterable[bytes], source: AsyncIterator[bytes]
    ) -> None:
        """Send ``first`` and then the source to its end. What it raises goes through."""
        await self.prepare(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("client is gone")
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        with _Watch(self, transport, self._stall_s):
            for piece in first:
                await self._piece(piece)
            async for piece in source:
                await self._piece(piece)

    async def _piece(self, piece: bytes) -> None:
        """Send one piece, waiting after each MiB that the client has not taken."""
        if len(piece) <= WRITE_BYTES:
            await self.write(piece)
            self._sent += len(piece)
            return
        view = memoryview(piece)
        for at in range(0, len(piece), WRITE_BYTES):
            await self.write(view[at : at + WRITE_BYTES])
            self._sent += WRITE_BYTES

    @property
    def sent(self) -> int:
        """Bytes handed to the transport so far."""
        return self._sent


class _Watch:
    """Cuts a connection that waits for its client and makes no progress between two looks."""

    def __init__(
        self, response: PackResponse, transport: asyncio.BaseTransport, stall_s: float
    ) -> None:
        self._response = response
        self._transport = transport
        self._stall_s = stall_s
        self._seen = (-1, -1)
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._look()

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        waiting = self._transport.get_write_buffer_size()  # type: ignore[attr-defined]
        now = (self._response.sent, waiting)
        if waiting and now == self._seen:
            self._transport.abort()  # type: ignore[attr-defined]
            return
        self._seen = now
        self._timer = asyncio.get_running_loop().call_later(self._stall_s, self._look)
