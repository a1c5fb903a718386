"""Bundles over HTTP: the stable URL of a repository's bundle, and the list that git asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from shardgit.errors import NotFound
from shardgit.http.request import base_url, repository_name
from shardgit.http.static import send_file
from shardgit.protocol.bundle_uri import ListedBundle, bundle_list
from shardgit.service.access import Action, authorize, caller
from shardgit.service.static_packs import StaticPack, StaticPacks

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aiohttp import web

    from shardgit.http.edge import Edge
    from shardgit.service.bundles import Bundle, Bundles
    from shardgit.service.negotiation import FetchSession

CLONE_BUNDLE = "clone.bundle"
PACK_TYPE = "application/x-git-packed-objects"
BUNDLE_TYPE = "application/x-git-bundle"
REVALIDATE = "no-cache"  # it may be kept, and must be asked about: refs move and may be hidden


class BundleRoutes:
    """``/NAME.git/clone.bundle``, and ``/NAME.git/packs/*.pack``: the packs in bundles."""

    def __init__(self, edge: Edge, bundles: Bundles) -> None:
        self.edge = edge
        self.bundles = bundles
        self.packs = StaticPacks(bundles)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get(f"/{{name:.+}}/{CLONE_BUNDLE}", self.clone_bundle)
        pack = r"{key:[0-9a-f]{48}}-{trailer:[0-9a-f]{40,64}}.pack"
        router.add_get("/{name:.+}/packs/" + pack, self.pack)

    async def clone_bundle(self, request: web.Request) -> web.StreamResponse:
        """Send the repository's bundle, made when there is none."""
        name = repository_name(request)
        authorize(caller(), Action.READ, name)
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

    async def pack(self, request: web.Request) -> web.StreamResponse:
        """Send the pack in a bundle, as long as the repository's refs reach all of it."""
        name = repository_name(request)
        authorize(caller(), Action.READ, name)
        found = None
        if (await self.bundles.settings(name)).packfile_uris:
            found = await self.bundles.kept(name, request.match_info["key"])
        if found is None:
            raise NotFound("pack is not there any more")
        start, run = found.head, self.bundles.store.workers.run
        try:
            if found.trailer.hex() != request.match_info["trailer"]:
                raise NotFound("pack is not there any more")
            return await send_file(
                self.edge,
                request,
                read=lambda at, length: run(found.file.read, start + at, length),
                size=found.pack_bytes,
                tag=f"{found.tag}-pack",
                headers={"Content-Type": PACK_TYPE, "Cache-Control": REVALIDATE},
            )
        finally:
            found.file.close()

    async def uri_for(self, request: web.Request, session: FetchSession) -> StaticPack | None:
        """Return a pack that the client of a fetch may ask for here."""
        root = base_url(request, self.edge.url)
        if root is None or root.partition(":")[0] not in session.request.uri_protocols:
            return None
        base = f"{root}/{quote(session.record.name)}.git/packs/"

        def address(bundle: Bundle) -> str:
            return f"{base}{bundle.tag}.pack"

        return await self.packs.offer(session, address)

    async def listed(self, name: str) -> AsyncGenerator[bytes, None]:
        """Return the answer to bundle-uri: the bundle's URI, once it is made."""
        made = []
        if await self.bundles.offered(name):
            found = await self.bundles.at_hand(name)
            if found is not None:
                found.file.close()
                made = [ListedBundle("clone", CLONE_BUNDLE)]
        yield bundle_list(made)
