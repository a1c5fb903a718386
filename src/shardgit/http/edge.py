"""What every route shares: request ids, counts, time limits, errors as answers, streamed answers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web

from shardgit import telemetry, tracing
from shardgit.errors import (
    Internal,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    Overloaded,
    PermissionRefused,
    RateLimited,
    ShardgitError,
    Unauthenticated,
    Unavailable,
)
from shardgit.http.request import check_head, check_not_rebound
from shardgit.http.stream import PackResponse
from shardgit.protocol.pktline import one_line
from shardgit.service.answers import Whole

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from shardgit.limits import Limits

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

UNREAD = {501, 505}  # where the request ends is not known
SMALL_BYTES = 64 << 10  # of an answer that aiohttp may copy and write by itself
NO_CACHE = {
    "Expires": "Fri, 01 Jan 1980 00:00:00 GMT",
    "Pragma": "no-cache",
    "Cache-Control": "no-cache, max-age=0, must-revalidate",
}
STATUS = (
    (NotFound, 404),
    (Unauthenticated, 401),
    (PermissionRefused, 403),
    (Overloaded, 503),
    (RateLimited, 429),
    (LimitExceeded, 413),
    (InvalidArgument, 400),
    (Unavailable, 503),
)


@dataclass(slots=True)
class Call:
    """A request under way: its id and count, and the answer that is being streamed."""

    seen: telemetry.Request
    streaming: PackResponse | None = None


_call: ContextVar[Call] = ContextVar("call")


def current() -> Call:
    """Return the request under way in this task."""
    return _call.get()


class Edge:
    """The middleware of one worker, and its way to send what a source yields."""

    def __init__(self, limits: Limits, *, url: str = "", is_private: bool = False) -> None:
        self.limits = limits
        self.is_private = is_private  # on loopback, and asks nobody who it is
        self.url = url  # of our root as clients reach it; "": as each calls us

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give the request an id, count it, bound its time, and turn errors into answers, once."""
        given = request.headers.get("X-Request-Id")
        carried = {key: request.headers[key] for key in tracing.HEADERS if key in request.headers}
        with telemetry.Request("http", request.path, given, carried=carried) as seen:
            call = Call(seen)
            token = _call.set(call)
            try:
                check_head(request)
                if self.is_private:
                    check_not_rebound(request, self.url)
                async with asyncio.timeout(self.limits.request_time_max_s):
                    response = await handler(request)
            except TimeoutError:
                response = broken_off(request, Unavailable("request took too long"))
            except web.HTTPException as error:
                response = plain(error)
                if error.status in UNREAD:
                    response.force_close()
            except asyncio.CancelledError:
                seen.gone()
                raise
            except ConnectionError:  # nobody is left to answer
                seen.gone()
                response = call.streaming or web.Response(status=400)
            except Exception as error:
                response = broken_off(request, error)
            finally:
                _call.reset(token)
            if not response.prepared:
                response.headers["X-Request-Id"] = seen.id
            return response

    async def send(
        self,
        request: web.Request,
        source: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        *,
        head: bytes = b"",
        whole: bool = False,
        tells: bool = False,
        status: int = 200,
        length: int | None = None,
    ) -> web.StreamResponse:
        """Send what a source yields as the client takes it.

        Errors before the first piece are the caller's. With ``whole`` an answer of one piece gets
        a length, unless ``length`` tells it before; a source that ``tells`` has told its client of
        an error before raising it.
        """
        async with aclosing(source):
            first = await anext(source, b"")
            pieces = (head, first)
            second: bytes | None = None
            if not isinstance(first, Whole):
                second = await anext(source, None) if whole else b""
            if second is not None:
                pieces = (head + first, second)
            elif len(head) + len(first) <= SMALL_BYTES:
                return web.Response(body=head + first, headers=headers, status=status)
            else:  # as any stream: its client is watched, and what other answers send too is not copied
                length = len(head) + len(first)
            if request.method == "HEAD":
                empty = web.StreamResponse(headers=headers, status=status)
                empty.content_length = length
                return empty
            call = _call.get()
            named = {**headers, "X-Request-Id": call.seen.id}
            if (
                length is None and request.version < HttpVersion11
            ):  # no chunks: the connection's end is the answer's
                named["Connection"] = "close"
            response = PackResponse(headers=named, limits=self.limits, status=status, length=length)
            if "Connection" in named:
                response.force_close()
            call.streaming = response
            try:
                await response.send(request, pieces, source)
            except (ConnectionError, asyncio.CancelledError):
                raise
            except Exception as error:
                if not tells:
                    raise
                note(request, error)
            await response.write_eof()
        return response


def broken_off(request: web.Request, error: Exception) -> web.StreamResponse:
    """Answer with an error; an answer under way can only be cut, so that it looks cut."""
    note(request, error)
    response = _call.get().streaming
    if response is None:
        return refusal(error if isinstance(error, ShardgitError) else Internal("internal error"))
    if request.transport is not None:
        request.transport.close()
    return response


def note(request: web.Request, error: Exception) -> None:
    """Count and log an error; one that nobody expected with its trace."""
    seen = _call.get().seen
    if isinstance(error, ShardgitError):
        seen.failed(error)
    else:
        seen.code = Internal.code
        telemetry.log().error("request_failed", edge="http", what=request.path, exc_info=error)


def refusal(error: ShardgitError) -> web.Response:
    """Return an error as text. What we did wrong is told without its facts."""
    status = next((code for kind, code in STATUS if isinstance(error, kind)), 500)
    text = error.message if status == 500 else str(error)
    return _text(status, text, headers_of(error))


def headers_of(error: ShardgitError) -> dict[str, str]:
    """Return the headers that tell clients what to do about an error."""
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": 'Basic realm="shardgit", charset="UTF-8"'}
    if isinstance(error, RateLimited):
        return {"Retry-After": str(error.facts.get("retry_after_s", 1))}
    return {}


def plain(error: web.HTTPException) -> web.Response:
    """Return aiohttp's own errors, and those of a body, as one line of text."""
    if error.status >= 400:
        _call.get().seen.failed(InvalidArgument(error.text or error.reason, status=error.status))
    kept = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    default = f"{error.status}: {error.reason}"
    text = error.text if error.text and error.text != default else f"{error.reason}".lower()
    return _text(error.status, text, kept)


def _text(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    body = one_line(text).decode() + "\n"
    return web.Response(status=status, text=body, headers={**NO_CACHE, **(headers or {})})
