"""Bundles over HTTP: the stable URL of a repository's bundle, and the list that git asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.errors import NotFound
from shardgit.http.request import principal_of, repository_name
from shardgit.http.static import send_file
from shardgit.protocol.bundle_uri import bundle_list
from shardgit.service.access import Action, authorize

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aiohttp import web

    from shardgit.http.edge import Edge
    from shardgit.service.bundles import Bundles

CLONE_BUNDLE = "clone.bundle"
BUNDLE_TYPE = "application/x-git-bundle"
REVALIDATE = "no-cache"  # it may be kept, and must be asked about: refs move and may be hidden


class BundleRoutes:
    """``/NAME.git/clone.bundle``."""

    def __init__(self, edge: Edge, bundles: Bundles) -> None:
        self.edge = edge
        self.bundles = bundles

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get(f"/{{name:.+}}/{CLONE_BUNDLE}", self.clone_bundle)

    async def clone_bundle(self, request: web.Request) -> web.StreamResponse:
        """Send the repository's bundle, made when there is none."""
        name = repository_name(request)
        authorize(principal_of(request), Action.READ, name)
        if (await self.bundles.settings(name)).bundle_uri == "off":
            raise NotFound("bundles of this repository are not served")
        found = await self.bundles.latest(name)
        if found is None:
            raise NotFound("repository has nothing to bundle")
        run = self.bundles.store.workers.run
        try:
            return await send_file(
                self.edge,
                request,
                read=lambda start, length: run(found.file.read, start, length),
                size=found.file.size,
                tag=found.tag,
                headers={"Content-Type": BUNDLE_TYPE, "Cache-Control": REVALIDATE},
            )
        finally:
            found.file.close()

    async def listed(self, name: str) -> AsyncGenerator[bytes, None]:
        """Return the answer to bundle-uri: the bundle's URI, once it is made."""
        uris = {}
        if await self.bundles.offered(name):
            found = await self.bundles.latest(name)
            if found is not None:
                found.file.close()
                uris["clone"] = CLONE_BUNDLE
        yield bundle_list(uris)
