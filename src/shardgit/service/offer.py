"""What a repository's settings offer to those who fetch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from shardgit.protocol.upload_pack import Offer

if TYPE_CHECKING:
    from shardgit.oid import HashKind
    from shardgit.service.settings import PromisorRemote, RepositorySettings


@dataclass(frozen=True, slots=True)
class Terms:
    """What an edge must know of a repository before it reads a request."""

    kind: HashKind
    offer: Offer
    packfile_uris: bool = False  # for an edge that serves files
    lists_bundles: bool = False  # by hand; an edge that serves files may offer others


def offer_of(settings: RepositorySettings, *, session_id: bytes) -> Offer:
    """Return what a repository offers; ``session_id`` is ours."""
    fetch = settings.fetch
    return Offer(
        unborn=fetch.unborn,
        filters=fetch.allow_filter,
        denied=frozenset(fetch.denied_filters),
        tree_depth_max=fetch.tree_depth_max,
        ref_in_want=fetch.allow_ref_in_want,
        reachable_wants=fetch.allow_reachable_wants,
        tip_wants=fetch.allow_reachable_wants or fetch.allow_tip_wants,
        sideband_all=fetch.allow_sideband_all,
        packfile_uris=bool(fetch.listed_packs),
        session_id=session_id if fetch.advertise_session_id else b"",
        promisors=";".join(map(_promisor, fetch.promisors)).encode(),
    )


def _promisor(remote: PromisorRemote) -> str:
    """Return one remote as in gitprotocol-v2, "promisor-remote"."""
    fields = [("name", remote.name), ("url", remote.url)]
    if remote.filter:
        fields.append(("partialCloneFilter", remote.filter))
    return ",".join(f"{key}={quote(value, safe='/:')}" for key, value in fields)
