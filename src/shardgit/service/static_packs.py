"""Packs by URI: what a whole clone wants, once as a file, for protocol v2's packfile-uris."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit._bits import without
from shardgit.protocol.packfile_uris import PackUri
from shardgit.service.bundles import CLONED, tips_of
from shardgit.service.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.service.bundles import Bundle, Bundles
    from shardgit.service.negotiation import FetchSession

PACK_MIN_BYTES = 64 << 10  # a smaller one is not worth a request of its own
MAKE_MAX_BYTES = 2 << 30  # made while a client waits: 2 GiB take some ten seconds


@dataclass(frozen=True, slots=True)
class StaticPack:
    """A pack that a client fetches by its URI, and the bitset of what it holds."""

    uri: PackUri
    holds: bytes


class StaticPacks:
    """Finds the pack that a client may fetch by URI instead of being sent its objects.

    It is the one in the bundle of HEAD, branches and tags: self-contained, shared by all clones of
    these refs. It is offered only to who has nothing yet and wants all that it holds, so nobody is
    told of an object that was not asked for.
    """

    def __init__(self, bundles: Bundles) -> None:
        self.bundles = bundles

    async def offer(
        self, session: FetchSession, address: Callable[[Bundle], str]
    ) -> StaticPack | None:
        """Return the pack for a fetch, None where there is none; ``address`` gives its URI."""
        request = session.request
        run = self.bundles.store.workers.run
        fresh = request.done and not request.haves and not request.filters
        whole = not request.deepening.asked and not request.deepening.shallows
        if not (fresh and whole and request.sideband_all and session.wants):
            return None
        if not settings_of(session.record).fetch.packfile_uris:
            return None
        bundle = await self.bundles.at_hand(
            session.record.name, CLONED, make_max_bytes=MAKE_MAX_BYTES
        )
        if bundle is None:
            return None
        try:
            if bundle.pack_bytes < PACK_MIN_BYTES:
                return None
            holds = await run(self._held, session, bundle)
            if holds is None:
                return None
            return StaticPack(PackUri(bundle.trailer, address(bundle)), holds)
        finally:
            bundle.file.close()

    def _held(self, session: FetchSession, bundle: Bundle) -> bytes | None:
        """Return what a bundle holds, None when that is not all wanted."""
        view, store = session.view, self.bundles.store
        assert view is not None
        tips = session.positions(tips_of(bundle, session.record.hash_kind))
        if min(tips, default=-1) < 0:
            return None
        holds = store.closure_of(view, tips)
        wanted = store.closure_of(view, session.wants)
        return holds if without(holds, wanted).count(0) == len(holds) else None
