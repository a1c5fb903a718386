"""The smart-HTTP edge: Git's protocol over aiohttp. Fetches; pushes are refused."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from shardgit import telemetry
from shardgit.errors import (
    Internal,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    PermissionRefused,
    RepositoryMissing,
    ShardgitError,
    Unavailable,
)
from shardgit.http.body import body_pieces
from shardgit.http.stream import PackResponse
from shardgit.protocol.pktline import error_line, one_line
from shardgit.protocol.upload_pack import LsRefs
from shardgit.protocol.upload_pack_v0 import SERVICE_LINE, VERSION_1_LINE, RequestV0
from shardgit.protocol.upload_pack_v2 import RequestV2, advertise_v2
from shardgit.service.access import ANONYMOUS, Action, authorize
from shardgit.service.fetch import FetchService

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from shardgit.protocol.upload_pack import Fetch
    from shardgit.service.store import Store

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

NO_CACHE = {
    "Expires": "Fri, 01 Jan 1980 00:00:00 GMT",
    "Pragma": "no-cache",
    "Cache-Control": "no-cache, max-age=0, must-revalidate",
}
UPLOAD_PACK = "git-upload-pack"
RECEIVE_PACK = "git-receive-pack"
ADVERTISEMENT_TYPE = f"application/x-{UPLOAD_PACK}-advertisement"
REQUEST_TYPE = f"application/x-{UPLOAD_PACK}-request"
RESULT_TYPE = f"application/x-{UPLOAD_PACK}-result"
NO_PUSHES = "pushes are not served by this release"
STATUS = (
    (NotFound, 404),
    (PermissionRefused, 403),
    (LimitExceeded, 413),
    (InvalidArgument, 400),
    (Unavailable, 503),
)


@dataclass(slots=True)
class _Call:
    """A request under way: its id and count, and the answer that is being streamed."""

    seen: telemetry.Request
    streaming: PackResponse | None = None


_call: ContextVar[_Call] = ContextVar("call")


class GitHttp:
    """The routes of one worker."""

    def __init__(self, store: Store, *, version: str, fetches: FetchService | None = None) -> None:
        self.limits = store.limits
        self.version = version
        self.fetches = fetches or FetchService(store, version=version)

    def app(self) -> web.Application:
        """Return the aiohttp application.

        Its runner needs auto_decompress=False (bodies are inflated here, under our limit) and
        handler_cancellation=True (a client that went away must not leave work behind).
        """
        app = web.Application(middlewares=[self._edge])
        app.router.add_get("/{name:.+}/info/refs", self.info_refs)
        app.router.add_post(f"/{{name:.+}}/{UPLOAD_PACK}", self.upload_pack)
        app.router.add_route("*", f"/{{name:.+}}/{RECEIVE_PACK}", self.receive_pack)
        app.router.add_get("/", self.root)
        return app

    @web.middleware
    async def _edge(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give the request an id, count it, bound its time, and turn errors into answers, once."""
        given = request.headers.get("X-Request-Id")
        with telemetry.request("http", request.path, given) as seen:
            call = _Call(seen)
            token = _call.set(call)
            try:
                async with asyncio.timeout(self.limits.request_time_max_s):
                    response = await handler(request)
            except TimeoutError:
                response = _broken_off(request, Unavailable("request took too long"))
            except web.HTTPException as error:
                response = _plain(error)
            except asyncio.CancelledError:
                seen.gone()
                raise
            except ConnectionError:  # nobody is left to answer
                seen.gone()
                response = call.streaming or web.Response(status=400)
            except Exception as error:
                response = _broken_off(request, error)
            finally:
                _call.reset(token)
            if not response.prepared:
                response.headers["X-Request-Id"] = seen.id
            return response

    # ---- handlers ----

    async def root(self, _: web.Request) -> web.Response:
        """Say what this is."""
        return web.Response(text="shardgit: git clone http://HOST:PORT/NAME.git\n")

    async def info_refs(self, request: web.Request) -> web.StreamResponse:
        """Answer the first request of a fetch: capabilities (v2) or refs (v0, v1)."""
        service = request.query.get("service")
        if service is None:
            raise PermissionRefused("the dumb HTTP protocol is not served; use git 1.6.6 or newer")
        if service == RECEIVE_PACK:
            raise PermissionRefused(NO_PUSHES)
        if service != UPLOAD_PACK:
            raise PermissionRefused("service is not known", service=service[:40])
        name = repository_name(request)
        authorize(ANONYMOUS, Action.READ, name)
        kind = await self.fetches.hash_kind(name)
        version = protocol_version(request)
        headers = {**NO_CACHE, "Content-Type": ADVERTISEMENT_TYPE}
        if version == 2:
            return web.Response(body=advertise_v2(kind, self.version), headers=headers)
        head = SERVICE_LINE + (VERSION_1_LINE if version == 1 else b"")
        source = self.fetches.advertisement(name, kind)
        return await self._send(request, source, headers, head=head, whole=True)

    async def upload_pack(self, request: web.Request) -> web.StreamResponse:
        """Answer ls-refs and fetch. What is wrong with them goes out as an ERR packet: git shows
        that to its user, and hides the text of an HTTP error.
        """
        if request.content_type != REQUEST_TYPE:
            raise web.HTTPUnsupportedMediaType(text=f"content type must be {REQUEST_TYPE}")
        name = repository_name(request)
        authorize(ANONYMOUS, Action.READ, name)
        kind = await self.fetches.hash_kind(name)
        reader = (RequestV2 if protocol_version(request) == 2 else RequestV0)(
            kind, limits=self.limits
        )
        headers = {**NO_CACHE, "Content-Type": RESULT_TYPE}
        try:
            command = await self._command(request, reader)
            if command is None:
                return web.Response(headers=headers)
            if isinstance(command, LsRefs):
                refs = self.fetches.ls_refs(name, command)
                return await self._send(request, refs, headers, whole=True)
            source = self.fetches.fetch(name, command)
            return await self._send(request, source, headers, tells=command.sideband > 0)
        except RepositoryMissing:
            raise
        except ShardgitError as error:
            if _call.get().streaming is not None:
                raise
            _note(request, error)
            return web.Response(body=error_line(str(error)), headers=headers)

    async def receive_pack(self, _: web.Request) -> web.Response:
        """Refuse pushes."""
        raise PermissionRefused(NO_PUSHES)

    # ---- parts ----

    async def _command(
        self, request: web.Request, reader: RequestV0 | RequestV2
    ) -> LsRefs | Fetch | None:
        """Read the whole body, even when its start is wrong already: git sends all of it first."""
        wrong: ShardgitError | None = None
        pieces = body_pieces(
            request,
            most_bytes=self.limits.request_body_max_bytes,
            stall_s=self.limits.client_stall_max_s,
        )
        async for piece in pieces:
            try:
                if wrong is None:
                    reader.receive(piece)
            except ShardgitError as error:
                wrong = error
        if wrong is not None:
            raise wrong
        return reader.finish()

    async def _send(
        self,
        request: web.Request,
        source: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        *,
        head: bytes = b"",
        whole: bool = False,
        tells: bool = False,
    ) -> web.StreamResponse:
        """Send what a source yields as the client takes it.

        Errors before the first piece are the caller's. With ``whole`` an answer of one piece gets
        a length; a source that ``tells`` has told its client of an error before raising it.
        """
        async with aclosing(source):
            first = head + await anext(source, b"")
            second = await anext(source, None) if whole else b""
            if second is None or request.method == "HEAD":
                return web.Response(body=first, headers=headers)
            call = _call.get()
            named = {**headers, "X-Request-Id": call.seen.id}
            response = PackResponse(headers=named, stall_s=self.limits.client_stall_max_s)
            call.streaming = response
            try:
                await response.send(request, (first, second), source)
            except (ConnectionError, asyncio.CancelledError):
                raise
            except Exception as error:
                if not tells:
                    raise
                _note(request, error)
            await response.write_eof()
        return response


def _broken_off(request: web.Request, error: Exception) -> web.StreamResponse:
    """Answer with an error; an answer under way can only be cut, so that it looks cut."""
    _note(request, error)
    response = _call.get().streaming
    if response is None:
        return _refusal(error if isinstance(error, ShardgitError) else Internal("internal error"))
    if request.transport is not None:
        request.transport.close()
    return response


def _note(request: web.Request, error: Exception) -> None:
    """Count and log an error; one that nobody expected with its trace."""
    seen = _call.get().seen
    if isinstance(error, ShardgitError):
        seen.failed(error)
    else:
        seen.code = Internal.code
        telemetry.log().error("request_failed", edge="http", what=request.path, exc_info=error)


def protocol_version(request: web.Request) -> int:
    """Return the version that the Git-Protocol header asks for: 0, 1 or 2; the highest known."""
    asked = request.headers.get("Git-Protocol", "").split(":")
    return max((int(word[-1]) for word in asked if word in _VERSIONS), default=0)


_VERSIONS = ("version=0", "version=1", "version=2")


def repository_name(request: web.Request) -> str:
    """Return the repository's name in a URL: the path without .git."""
    name = request.match_info["name"].removesuffix(".git")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise RepositoryMissing("repository does not exist") from None
    return name


def _refusal(error: ShardgitError) -> web.Response:
    """Return an error as text. What we did wrong is told without its facts."""
    status = next((code for kind, code in STATUS if isinstance(error, kind)), 500)
    text = error.message if status == 500 else str(error)
    return _text(status, text)


def _plain(error: web.HTTPException) -> web.Response:
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


def make_app(store: Store, *, version: str) -> web.Application:
    """Return the application that serves a store's repositories."""
    return GitHttp(store, version=version).app()
