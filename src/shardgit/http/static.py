"""Files over HTTP: whole or a range of them, told apart by entity tags."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from shardgit.http.edge import Edge

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*")
_TAG = re.compile(r'(W/)?("[^"]*")')
PIECE_BYTES = 1 << 20


async def send_file(
    edge: Edge,
    request: web.Request,
    *,
    read: Callable[[int, int], Awaitable[bytes]],
    size: int,
    tag: str,
    headers: dict[str, str],
) -> web.StreamResponse:
    """Answer GET or HEAD with a file of ``size`` bytes that ``read`` (start, length) gives.

    ``tag`` names the bytes, and answers If-Match, If-None-Match and If-Range. Of several ranges
    the whole file is sent, as RFC 9110 lets a server do.
    """
    quoted = f'"{tag}"'
    headers = {**headers, "ETag": quoted, "Accept-Ranges": "bytes"}
    if not _matches(request.headers.get("If-Match", "*"), quoted, weak=False):
        return web.Response(status=412, headers=headers)
    none = request.headers.get("If-None-Match")
    if none is not None and _matches(none, quoted, weak=True):
        return web.Response(status=304, headers=headers)
    start, end = 0, size
    status = 200
    asked = _RANGE.fullmatch(request.headers.get("Range", ""))
    if asked and request.headers.get("If-Range", quoted).strip() == quoted:
        span = _span(asked[1], asked[2], size)
        if span is None:
            headers["Content-Range"] = f"bytes */{size}"
            return web.Response(status=416, headers=headers)
        if span != (-1, -1):
            start, end = span
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"

    async def pieces() -> AsyncGenerator[bytes, None]:
        at = start
        while at < end:
            piece = await read(at, min(PIECE_BYTES, end - at))
            if not piece:
                raise ConnectionResetError("file ends early")
            at += len(piece)
            yield piece

    return await edge.send(request, pieces(), headers, status=status, length=end - start)


def _span(first: str, last: str, size: int) -> tuple[int, int] | None:
    """Return (start, end) of a range, None for one outside, (-1, -1) for what is no range."""
    if not first and not last:
        return -1, -1
    if not first:
        length = min(int(last), size)
        return (size - length, size) if length else None
    if last and int(last) < int(first):
        return -1, -1
    if int(first) >= size:
        return None
    return int(first), min(int(last) + 1, size) if last else size


def _matches(header: str, quoted: str, *, weak: bool) -> bool:
    if header.strip() == "*":
        return True
    return any(tag == quoted and (weak or not mark) for mark, tag in _TAG.findall(header))
