"""Request bodies: read as they come, inflated in bounded steps, never held whole."""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web

from shardgit import telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from shardgit.limits import Limits

PIECE_BYTES = 64 << 10
# A chunk costs some 10 us, so 1 MB of chunks of a byte each 1.5 s. Of those that wait here at once.
TINY_CHUNKS_MAX = 1_000
TINY_BYTES = 16  # on average
_GZIP = 31  # zlib's window bits for a gzip stream


async def body_pieces(
    request: web.Request, *, most_bytes: int, limits: Limits, pauses: int = 0
) -> AsyncIterator[bytes]:
    """Return the body in pieces of at most 64 KiB once inflated.

    Errors are HTTP's: 413 past ``most_bytes``, as sent or inflated; 415 for an encoding that is not
    known, 400 for broken gzip or chunks, and for a flood of tiny ones, 408 for one that comes too slowly: nothing, or
    less than ``limits.client_slowest_bytes_s``, in ``limits.client_stall_max_s`` of waiting for it. So often as
    ``pauses`` says it may be silent for ``limits.client_pause_max_s``: git makes a pack behind the commands of a push.
    """
    if (request.content_length or 0) > most_bytes:
        raise _too_large(most_bytes)
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", ""):
        raise web.HTTPUnsupportedMediaType(text="content encoding must be gzip or identity")
    inflater = Inflater() if "gzip" in encoding else None
    sent = inflated = 0
    async for data in _received(request, limits, pauses):
        sent += len(data)
        for piece in inflater.receive(data) if inflater else _cut(data):
            inflated += len(piece)
            if max(sent, inflated) > most_bytes:
                raise _too_large(most_bytes)
            yield piece
            if len(piece) == PIECE_BYTES:
                await asyncio.sleep(0)  # 64 KiB of haves is a millisecond of parsing
    if inflater:
        inflater.finish()


async def expecting(request: web.Request, *, most_bytes: int) -> web.StreamResponse | None:
    """Answer ``Expect: 100-continue``: go on, or 413 before a byte of the body was sent."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        raise web.HTTPExpectationFailed(text="expectation must be 100-continue")
    if (request.content_length or 0) > most_bytes:
        return web.Response(status=413, text=f"{_too_large(most_bytes).text}\n")
    if request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # that was no part of the answer
    return None


class Inflater:
    """Inflates one gzip stream in pieces of at most 64 KiB, however small its input."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(_GZIP)

    def receive(self, data: bytes) -> Iterator[bytes]:
        """Return what the data inflates to; HTTP 400 when it is no gzip, or has a tail."""
        while data:
            if self._inflate.eof:
                raise _bad("request body goes on behind its gzip stream")
            try:
                piece = self._inflate.decompress(data, PIECE_BYTES)
            except zlib.error as cause:
                raise _bad("request body is not valid gzip") from cause
            data = self._inflate.unconsumed_tail or self._inflate.unused_data
            if piece:
                yield piece

    def finish(self) -> None:
        """Raise HTTP 400 when the stream is cut."""
        if not self._inflate.eof:
            raise _bad("request body is not valid gzip")


async def _received(request: web.Request, limits: Limits, pauses: int) -> AsyncIterator[bytes]:
    content = request.content
    stall_s = limits.client_stall_max_s
    pause_s = limits.client_pause_max_s
    waited_s, came = 0.0, 0
    while True:
        # aiohttp tells it nowhere else.
        waiting: Sequence[int] | None = getattr(content, "_http_chunk_splits", None)
        if waiting and len(waiting) > TINY_CHUNKS_MAX and _tiny(waiting):
            raise _bad("request body comes in too many too small chunks")
        if data := content.read_nowait():
            came += len(data)
            yield data
            continue
        if content.at_eof():
            return
        begun = time.monotonic()
        try:
            with telemetry.spending("client"):
                async with asyncio.timeout(pause_s if pauses else stall_s):
                    data = await content.readany()
        except TimeoutError:
            raise _too_slow() from None
        if not data:
            return
        waited_s, came = waited_s + time.monotonic() - begun, came + len(data)
        if pauses and waited_s >= stall_s:
            pauses, waited_s, came = pauses - 1, 0.0, 0
        if waited_s >= stall_s:
            if came < stall_s * limits.client_slowest_bytes_s:
                raise _too_slow()
            waited_s, came = 0.0, 0
        yield data


def _tiny(ends: Sequence[int]) -> bool:
    return ends[-1] - ends[0] < len(ends) * TINY_BYTES


def _too_slow() -> web.HTTPException:
    return web.HTTPRequestTimeout(text="request body did not arrive in time")


def _bad(text: str) -> web.HTTPException:
    return web.HTTPBadRequest(text=text)


def _too_large(most_bytes: int) -> web.HTTPException:
    text = f"request body is too large; the limit is {most_bytes} bytes"
    return web.HTTPRequestEntityTooLarge(most_bytes, most_bytes, text=text)


def _cut(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), PIECE_BYTES):
        yield data[at : at + PIECE_BYTES]
