"""The smart-HTTP edge: Git's protocol over aiohttp. Fetch only, so far."""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING

from aiohttp import web

from shardgit import telemetry
from shardgit.errors import (
    DataLoss,
    Internal,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    PermissionRefused,
    ShardgitError,
    Unavailable,
)
from shardgit.protocol.pktline import error_line
from shardgit.protocol.upload_pack import (
    Fetch,
    LsRefs,
    advertise_v0,
    advertise_v2,
    answer_ls_refs,
    parse_v0,
    parse_v2,
)
from shardgit.service.access import ANONYMOUS, Action, authorize
from shardgit.service.fetch import advertised, answer_v0, answer_v2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shardgit.oid import HashKind
    from shardgit.service.store import Store

NO_CACHE = {
    "Expires": "Fri, 01 Jan 1980 00:00:00 GMT",
    "Pragma": "no-cache",
    "Cache-Control": "no-cache, max-age=0, must-revalidate",
}
UPLOAD_PACK = "git-upload-pack"
STATUS = (
    (NotFound, 404),
    (PermissionRefused, 403),
    (LimitExceeded, 413),
    (InvalidArgument, 400),
    (Unavailable, 503),
)


class GitHttp:
    """The routes of one worker."""

    def __init__(self, store: Store, *, version: str) -> None:
        self.store = store
        self.version = version

    def app(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(
            middlewares=[self._edge], client_max_size=self.store.limits.request_body_max_bytes
        )
        app.router.add_get("/{name:.+}/info/refs", self.info_refs)
        app.router.add_post("/{name:.+}/git-upload-pack", self.upload_pack)
        app.router.add_route("*", "/{name:.+}/git-receive-pack", self.receive_pack)
        app.router.add_get("/", self.root)
        return app

    @web.middleware
    async def _edge(self, request: web.Request, handler: web.Handler) -> web.StreamResponse:  # type: ignore[name-defined]
        """Give the request an id, count it, and turn errors into answers, once."""
        with telemetry.request("http", request.path, request.headers.get("X-Request-Id")) as seen:
            try:
                response: web.StreamResponse = await handler(request)
            except ShardgitError as error:
                seen.failed(error)
                response = _refusal(error)
            except web.HTTPException as error:
                response = web.Response(
                    status=error.status, text=f"{error.reason}\n", headers=error.headers
                )
            except (ConnectionResetError, asyncio.CancelledError):
                seen.gone()
                raise
            if not response.prepared:
                response.headers["X-Request-Id"] = seen.id
            return response

    # ---- handlers ----

    async def root(self, _: web.Request) -> web.Response:
        """Say what this is."""
        return web.Response(text="shardgit: clone http://HOST:PORT/NAME.git\n")

    async def info_refs(self, request: web.Request) -> web.Response:
        """Answer the first request of a fetch: capabilities (v2) or refs (v0, v1)."""
        service = request.query.get("service")
        if service is None:
            raise PermissionRefused("the dumb HTTP protocol is not served; use git 1.6.6 or newer")
        if service != UPLOAD_PACK:
            raise PermissionRefused("this server does not serve that yet", service=service[:40])
        name = repository_name(request)
        authorize(ANONYMOUS, Action.READ, name)
        kind = await self.store.workers.run(self._hash_kind, name)
        wanted = protocol_version(request)
        if wanted == 2:
            body = advertise_v2(kind, self.version)
        else:
            refs = await self.store.workers.run(advertised, self.store, name)
            body = advertise_v0(refs, kind, self.version, v1=wanted == 1)
        headers = {**NO_CACHE, "Content-Type": f"application/x-{UPLOAD_PACK}-advertisement"}
        return web.Response(body=body, headers=headers)

    async def upload_pack(self, request: web.Request) -> web.StreamResponse:
        """Answer ls-refs and fetch."""
        if request.content_type != f"application/x-{UPLOAD_PACK}-request":
            return web.Response(
                status=415, text=f"content type must be application/x-{UPLOAD_PACK}-request\n"
            )
        name = repository_name(request)
        authorize(ANONYMOUS, Action.READ, name)
        kind = await self.store.workers.run(self._hash_kind, name)
        body = await self._body(request)
        headers = {**NO_CACHE, "Content-Type": f"application/x-{UPLOAD_PACK}-result"}
        try:
            if protocol_version(request) == 2:
                command = parse_v2(body, kind, limits=self.store.limits)
                if isinstance(command, LsRefs):
                    refs = await self.store.workers.run(
                        advertised, self.store, name, command.prefixes
                    )
                    return web.Response(body=answer_ls_refs(refs, command), headers=headers)
                source = (
                    answer_v2(self.store, name, command) if isinstance(command, Fetch) else None
                )
            else:
                fetch = parse_v0(body, kind, limits=self.store.limits)
                source = answer_v0(self.store, name, fetch) if fetch is not None else None
            if source is None:
                return web.Response(body=b"", headers=headers)
            return await self._stream(request, source, headers)
        except (InvalidArgument, LimitExceeded, NotFound) as error:
            # Git shows an ERR line to its user and hides the text of an HTTP error.
            return web.Response(body=error_line(str(error)), headers=headers)

    async def receive_pack(self, _: web.Request) -> web.Response:
        """Refuse pushes."""
        raise PermissionRefused("pushes are not served yet")

    # ---- parts ----

    def _hash_kind(self, name: str) -> HashKind:
        with self.store.journal.snapshot() as snapshot:
            return self.store.repository(snapshot, name).hash_kind

    async def _body(self, request: web.Request) -> bytes:
        """Read the request's body, inflated, bounded before and after."""
        most = self.store.limits.request_body_max_bytes
        encoding = request.headers.get("Content-Encoding", "identity").lower()
        if encoding not in ("identity", "gzip", "x-gzip"):
            raise InvalidArgument("content encoding is not known", encoding=encoding[:40])
        inflate = zlib.decompressobj(31) if encoding != "identity" else None
        out = bytearray()
        async with asyncio.timeout(self.store.limits.client_stall_max_s):
            async for piece in request.content.iter_any():
                try:
                    out += (
                        piece if inflate is None else inflate.decompress(piece, most + 1 - len(out))
                    )
                except zlib.error as cause:
                    raise InvalidArgument("request body is not valid gzip") from cause
                if len(out) > most or (inflate is not None and inflate.unconsumed_tail):
                    raise LimitExceeded("request body is too large", limit=most)
        if inflate is not None and not inflate.eof:
            raise InvalidArgument("request body is not valid gzip")
        return bytes(out)

    async def _stream(
        self, request: web.Request, source: AsyncIterator[bytes], headers: dict[str, str]
    ) -> web.StreamResponse:
        """Send pieces as the client takes them. Errors before the first piece are the caller's."""
        first = await anext(source, b"")
        response = web.StreamResponse(headers=headers)
        try:
            await response.prepare(request)
            if request.transport is not None:
                # The producer waits whenever more than this is not yet with the kernel.
                request.transport.set_write_buffer_limits(high=1 << 20)  # type: ignore[attr-defined]
            stall = self.store.limits.client_stall_max_s
            piece: bytes | None = first
            while piece is not None:
                if piece:
                    async with asyncio.timeout(stall):
                        await response.write(piece)
                piece = await anext(source, None)
            await response.write_eof()
        finally:
            await source.aclose()  # type: ignore[attr-defined]
        return response


def protocol_version(request: web.Request) -> int:
    """Return the version that the Git-Protocol header asks for: 0, 1 or 2."""
    versions = [
        word[8:]
        for word in request.headers.get("Git-Protocol", "").split(":")
        if word.startswith("version=")
    ]
    known = [int(text) for text in versions if text in ("0", "1", "2")]
    return max(known, default=0)


def repository_name(request: web.Request) -> str:
    """Return the repository's name in a URL: the path without .git."""
    return request.match_info["name"].removesuffix(".git")


def _refusal(error: ShardgitError) -> web.Response:
    status = next((code for kind, code in STATUS if isinstance(error, kind)), 500)
    text = str(error) if not isinstance(error, DataLoss | Internal) else error.message
    return web.Response(status=status, text=f"{text}\n", headers=NO_CACHE)
