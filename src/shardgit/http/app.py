"""The smart-HTTP edge: Git's protocol over aiohttp."""

from __future__ import annotations

import logging
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from shardgit import telemetry
from shardgit.errors import NotFound, PermissionRefused, RepositoryMissing, ShardgitError
from shardgit.http.archive import ArchiveRoutes
from shardgit.http.body import body_pieces, expecting
from shardgit.http.bundles import BundleRoutes
from shardgit.http.edge import NO_CACHE, Edge, current, note, refusal
from shardgit.http.lfs import LfsHttp
from shardgit.http.request import protocol_version, repository_name, shown_by
from shardgit.protocol.bundle_uri import BundleUriRequest
from shardgit.protocol.pktline import error_line
from shardgit.protocol.receive_pack import SERVICE_LINE as PUSH_SERVICE_LINE
from shardgit.protocol.upload_pack import Fetch
from shardgit.protocol.upload_pack_v0 import SERVICE_LINE, VERSION_1_LINE, RequestV0
from shardgit.protocol.upload_pack_v2 import RequestV2, advertise_v2
from shardgit.service.access import Action, authorize, begin_call, caller
from shardgit.service.bundles import Bundles
from shardgit.service.calls import end_call
from shardgit.service.fetch import FetchService
from shardgit.service.receive import ReceiveService

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from shardgit.http.edge import Handler
    from shardgit.protocol.upload_pack_v2 import Command
    from shardgit.service.conversation import Receives
    from shardgit.service.store import Store

T = TypeVar("T")
UPLOAD_PACK = "git-upload-pack"
RECEIVE_PACK = "git-receive-pack"
ADVERTISEMENT_TYPE = f"application/x-{UPLOAD_PACK}-advertisement"
REQUEST_TYPE = f"application/x-{UPLOAD_PACK}-request"
RESULT_TYPE = f"application/x-{UPLOAD_PACK}-result"


def no_http(record: logging.LogRecord) -> bool:
    """Let what a client sends that is no HTTP be a line for information, and no error of ours with its traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        record.exc_info = None
        record.msg, record.args = f"{record.getMessage()}: {type(error).__name__}", ()
    return True


async def begun(make: Callable[[], AsyncGenerator[bytes, None]]) -> AsyncGenerator[bytes, None]:
    """Return what a source yields once its first piece is there. Errors: those that come before it."""
    source = make()
    return _behind(await anext(source, None), source)


async def _behind(
    first: bytes | None, source: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(source):
        if first is not None:
            yield first
        async for piece in source:
            yield piece


class GitHttp:
    """The routes of one worker."""

    def __init__(
        self,
        store: Store,
        *,
        version: str,
        fetches: FetchService | None = None,
        url: str = "",
        is_private: bool = False,
    ) -> None:
        self.limits = store.limits
        self.store = store
        self.journal = store.journal
        self.version = version
        self.edge = Edge(store.limits, url=url, is_private=is_private)
        self.fetches = fetches or FetchService(store, version=version)
        self.receives: Receives = ReceiveService(store, version=version)
        self.lfs = LfsHttp(store, url=url)
        self.archives = ArchiveRoutes(self.edge, store)
        self.bundles = BundleRoutes(self.edge, Bundles(store))

    def app(self) -> web.Application:
        """Return the aiohttp application.

        Its runner needs auto_decompress=False (bodies are inflated here, under our limit) and
        handler_cancellation=True (a client that went away must not leave work behind).
        """
        logging.getLogger("aiohttp.server").addFilter(no_http)
        app = web.Application(middlewares=[self.edge.middleware, self.admit, self.look])
        fetch = partial(self.expecting, most_bytes=self.limits.request_body_max_bytes)
        add = app.router
        add.add_get("/{name:.+}/info/refs", self.info_refs)
        add.add_post(f"/{{name:.+}}/{UPLOAD_PACK}", self.upload_pack, expect_handler=fetch)
        most = self.limits.push_pack_max_bytes + self.limits.push_head_max_bytes
        push = partial(self.expecting, most_bytes=most)
        add.add_post(f"/{{name:.+}}/{RECEIVE_PACK}", self.receive_pack, expect_handler=push)
        self.lfs.add_routes(add)
        self.bundles.add_to(add)
        self.archives.add_to(add)
        add.add_get("/", self.root)
        return app

    # ---- handlers ----

    @web.middleware
    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Find out who asks, before anything is done for it. Errors: Unauthenticated, RateLimited."""
        store = self.store
        if request.match_info.http_exception is None:
            current().seen.method = getattr(request.match_info.handler, "__name__", telemetry.OTHER)
        if request.path == "/":  # says what this is, to anybody
            return await handler(request)
        call = begin_call(await store.doorkeeper.admit(shown_by(request)), store.gate)
        code = None
        try:
            return await handler(request)
        except ShardgitError as error:
            code = error.code
            raise
        finally:
            reads = request.method in {"GET", "HEAD"}
            end_call(store, current().seen, call, code=code, reads=reads)

    async def expecting(
        self, request: web.Request, *, most_bytes: int
    ) -> web.StreamResponse | None:
        """Answer ``Expect: 100-continue``: go on, or turn away before a byte of the body was sent."""
        try:
            await self.store.doorkeeper.admit(shown_by(request))
        except ShardgitError as error:
            return refusal(error)
        return await expecting(request, most_bytes=most_bytes)

    @web.middleware
    async def look(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """See to it that what a request reads was not overtaken by commits of other nodes.

        When these do not answer, fetches go on with what this node has; pushes are Unavailable. What asks for refs or
        packs looks itself: see ``_looking_again``.
        """
        service = request.query.get("service")
        lists = request.path.endswith("/info/refs") and service == UPLOAD_PACK
        if not lists and not request.path.endswith(f"/{UPLOAD_PACK}"):
            is_read = request.method in {"GET", "HEAD"} and service != RECEIVE_PACK
            with telemetry.spending("journal"):
                await self.journal.fresh(stale_ok=is_read)
        return await handler(request)

    async def _looking_again(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read, and where something is missing, look whether other nodes have it, and read again.

        For what the nodes cannot disagree about for long, or at all: ids lead to the same objects for ever.
        """
        before = self.journal.revision()
        try:
            return await read()
        except NotFound:
            await self.journal.fresh(stale_ok=True)
            if self.journal.revision() == before:
                raise
        return await read()

    async def root(self, _: web.Request) -> web.Response:
        """Say what this is."""
        return web.Response(text="shardgit: git clone http://HOST:PORT/NAME.git\n")

    async def info_refs(self, request: web.Request) -> web.StreamResponse:
        """Answer the first request of a fetch: capabilities (v2) or refs (v0, v1)."""
        service = request.query.get("service")
        if service is None:
            raise PermissionRefused("the dumb HTTP protocol is not served; use git 1.6.6 or newer")
        name = repository_name(request)
        if service == RECEIVE_PACK:
            return await self._push_refs(request, name)
        if service != UPLOAD_PACK:
            raise PermissionRefused("service is not known", service=service[:40])
        authorize(caller(), Action.READ, name)
        version = protocol_version(request)
        if version != 2:  # which lists refs
            await self.journal.fresh(stale_ok=True)
        terms = await self._looking_again(partial(self.fetches.terms, name))
        headers = {**NO_CACHE, "Content-Type": ADVERTISEMENT_TYPE}
        if version == 2:
            offered = terms.lists_bundles or await self.bundles.bundles.offered(name)
            offer = replace(terms.offer, packfile_uris=terms.packfile_uris)
            body = advertise_v2(terms.kind, self.version, offer, bundle_uri=offered)
            return web.Response(body=body, headers=headers)
        head = SERVICE_LINE + (VERSION_1_LINE if version == 1 else b"")
        source = self.fetches.advertisement(name, terms)
        return await self.edge.send(request, source, headers, head=head, whole=True)

    async def upload_pack(self, request: web.Request) -> web.StreamResponse:
        """Answer ls-refs and fetch. What is wrong with them goes out as an ERR packet: git shows
        that to its user, and hides the text of an HTTP error.
        """
        if request.content_type != REQUEST_TYPE:
            raise web.HTTPUnsupportedMediaType(text=f"content type must be {REQUEST_TYPE}")
        name = repository_name(request)
        authorize(caller(), Action.READ, name)
        terms = await self._looking_again(partial(self.fetches.terms, name))
        reader = (RequestV2 if protocol_version(request) == 2 else RequestV0)(
            terms.kind,
            limits=self.limits,
            offer=replace(terms.offer, packfile_uris=terms.packfile_uris),
        )
        headers = {**NO_CACHE, "Content-Type": RESULT_TYPE}
        send = self.edge.send
        try:
            command = await self._command(request, reader)
            if command is None:
                return web.Response(headers=headers)
            names_refs = isinstance(command, Fetch) and (
                command.want_refs or command.deepening.without
            )
            by_ids = isinstance(command, Fetch) and not names_refs
            if not by_ids:
                await self.journal.fresh(stale_ok=True)
            if isinstance(command, BundleUriRequest) and not terms.lists_bundles:
                source = self.bundles.listed(name)
            elif isinstance(command, Fetch):
                uris = partial(self.bundles.uri_for, request)
                make = partial(self.fetches.fetch, name, command, uris=uris)
                source = await self._looking_again(partial(begun, make)) if by_ids else make()
            else:
                source = self.fetches.answer(name, command)
            tells = isinstance(command, Fetch) and command.sideband > 0
            whole = not isinstance(command, Fetch)
            return await send(request, source, headers, whole=whole, tells=tells)
        except RepositoryMissing:
            raise
        except ShardgitError as error:
            if current().streaming is not None:
                raise
            note(request, error)
            return web.Response(body=error_line(str(error)), headers=headers)

    async def _push_refs(self, request: web.Request, name: str) -> web.StreamResponse:
        """Answer the first request of a push; protocol v2 has no pushes, so its clients get v0."""
        source = self.receives.advertisement(name, principal=caller())
        head = PUSH_SERVICE_LINE + (VERSION_1_LINE if protocol_version(request) == 1 else b"")
        headers = {**NO_CACHE, "Content-Type": f"application/x-{RECEIVE_PACK}-advertisement"}
        return await self.edge.send(request, source, headers, head=head, whole=True)

    async def receive_pack(self, request: web.Request) -> web.StreamResponse:
        """Take a push. Its body may be as large as the repository's settings allow."""
        if request.content_type != f"application/x-{RECEIVE_PACK}-request":
            wanted = f"application/x-{RECEIVE_PACK}-request"
            raise web.HTTPUnsupportedMediaType(text=f"content type must be {wanted}")
        name = repository_name(request)
        authorize(caller(), Action.WRITE, name)
        pieces = body_pieces(
            request,
            most_bytes=self.limits.push_pack_max_bytes + self.limits.push_head_max_bytes,
            limits=self.limits,
            pauses=1,
        )
        headers = {**NO_CACHE, "Content-Type": f"application/x-{RECEIVE_PACK}-result"}
        source = self.receives.receive(name, pieces, principal=caller())
        try:
            return await self.edge.send(request, source, headers, whole=True)
        except RepositoryMissing:
            raise
        except ShardgitError as error:
            if current().streaming is not None:
                raise
            note(request, error)
            return web.Response(body=error_line(str(error)), headers=headers)

    # ---- parts ----

    async def _command(self, request: web.Request, reader: RequestV0 | RequestV2) -> Command | None:
        """Read the whole body, even when its start is wrong already: git sends all of it first."""
        wrong: ShardgitError | None = None
        pieces = body_pieces(
            request,
            most_bytes=self.limits.request_body_max_bytes,
            limits=self.limits,
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
