"""Answers that are streamed: sent as the client takes them, never faster."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web

from shardgit import telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from aiohttp.abc import AbstractStreamWriter

    from shardgit.limits import Limits

WRITE_BYTES = 1 << 20
HIGH_WATER_BYTES = 256 << 10  # that wait for a client before the next piece is asked for
DIRECT_BYTES = 64 << 10


class PackResponse(web.StreamResponse):
    """A response whose pieces come from an iterator that is pulled by the client's pace.

    At most 256 KiB and a piece wait for the client here, beside those that the iterator holds. A client
    that takes less than ``limits.client_slowest_bytes_s`` over ``limits.client_stall_max_s`` is cut off.
    """

    def __init__(
        self,
        *,
        headers: dict[str, str],
        limits: Limits,
        status: int = 200,
        length: int | None = None,
    ) -> None:
        super().__init__(headers=headers, status=status)
        if length is not None:
            self.content_length = length
        self._limits = limits
        self._sent = 0

    async def send(
        self, request: web.Request, first: Iterable[bytes], source: AsyncIterator[bytes]
    ) -> None:
        """Send ``first`` and then the source to its end. What it raises goes through."""
        writer = await self.prepare(request)
        transport = request.transport
        if transport is None or writer is None:
            raise ConnectionResetError("client is gone")
        # The next piece is asked for when the last is gone: the socket has more than enough to go on with meanwhile.
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES, low=0)
        chunked = self.content_length is None and request.version >= HttpVersion11
        taking_s = 0.0
        try:
            with _Watch(self, transport, self._limits):
                for piece in first:
                    await self._piece(piece)
                async for piece in source:
                    begun = time.monotonic()
                    if chunked and len(piece) >= DIRECT_BYTES:
                        await self._chunk(piece, writer, transport)
                    else:
                        await self._piece(piece)
                    taking_s += time.monotonic() - begun
        finally:
            telemetry.spend("client", taking_s)

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

    async def _chunk(
        self, piece: bytes, writer: AbstractStreamWriter, transport: asyncio.WriteTransport
    ) -> None:
        """Send one piece as a chunk, without the copy that aiohttp makes of it for Python 3.11.

        The transport holds the piece itself, which other answers may be sending too.
        """
        view = memoryview(piece)
        for at in range(0, len(piece), WRITE_BYTES):
            part = view[at : at + WRITE_BYTES]
            if transport.is_closing():
                raise ConnectionResetError("client is gone")
            transport.write(b"%x\r\n" % len(part))
            transport.write(part)
            transport.write(b"\r\n")
            self._sent += len(part)
            await writer.drain()

    @property
    def sent(self) -> int:
        """Bytes handed to the transport so far."""
        return self._sent


class _Watch:
    """Cuts a connection that waits for its client and makes next to no progress between two looks."""

    def __init__(
        self, response: PackResponse, transport: asyncio.BaseTransport, limits: Limits
    ) -> None:
        self._response = response
        self._transport = transport
        self._stall_s = limits.client_stall_max_s
        self._least = int(self._stall_s * limits.client_slowest_bytes_s)
        self._taken: int | None = None  # as of the last look, when something waited then
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._look()

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        waiting = self._transport.get_write_buffer_size()  # type: ignore[attr-defined]
        taken = self._response.sent - waiting
        if waiting and self._taken is not None and taken - self._taken < self._least:
            self._transport.abort()  # type: ignore[attr-defined]
            return
        self._taken = taken if waiting else None
        self._timer = asyncio.get_running_loop().call_later(self._stall_s, self._look)
