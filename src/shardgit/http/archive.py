"""git archive --remote over HTTP, as git 2.44 and later asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from shardgit.http.body import body_pieces
from shardgit.http.edge import NO_CACHE
from shardgit.http.request import repository_name
from shardgit.service.access import Action, authorize, caller
from shardgit.service.archive import upload_archive

if TYPE_CHECKING:
    from shardgit.http.edge import Edge
    from shardgit.service.store import Store

UPLOAD_ARCHIVE = "git-upload-archive"
REQUEST_TYPE = f"application/x-{UPLOAD_ARCHIVE}-request"
RESULT_TYPE = f"application/x-{UPLOAD_ARCHIVE}-result"
BODY_MAX_BYTES = 8 << 20  # 64 arguments of a packet each


class ArchiveRoutes:
    """``/NAME.git/git-upload-archive``."""

    def __init__(self, edge: Edge, store: Store) -> None:
        self.edge = edge
        self.store = store

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the route."""
        router.add_post(f"/{{name:.+}}/{UPLOAD_ARCHIVE}", self.upload_archive)

    async def upload_archive(self, request: web.Request) -> web.StreamResponse:
        """Send an archive. What is wrong is told within the answer, where git shows it."""
        if request.content_type != REQUEST_TYPE:
            raise web.HTTPUnsupportedMediaType(text=f"content type must be {REQUEST_TYPE}")
        limits = self.edge.limits
        body = body_pieces(request, most_bytes=BODY_MAX_BYTES, limits=limits)
        name = repository_name(request)
        authorize(caller(), Action.READ, name)
        source = upload_archive(self.store, name, body, caller())
        headers = {**NO_CACHE, "Content-Type": RESULT_TYPE}
        return await self.edge.send(request, source, headers, tells=True)
