"""The v2 command bundle-uri, without I/O: a list of bundles as keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument
from shardgit.protocol.pktline import FLUSH_BYTES, line
from shardgit.protocol.upload_pack import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

CAPABILITY = b"bundle-uri"


@dataclass(frozen=True, slots=True)
class BundleUriRequest:
    """A v2 bundle-uri command, which has no arguments."""


def refuse_argument(text: bytes) -> InvalidArgument:
    """Return the error for an argument, in git's words."""
    return InvalidArgument(f"bundle-uri: unexpected argument: '{shown(text)}'")


@dataclass(frozen=True, slots=True)
class ListedBundle:
    """A bundle by its id. A relative URI counts from the URL of the repository.

    ``filter`` is that of a partial bundle; ``token`` rises with age where bundles build on each other, 0 without.
    """

    id: str
    uri: str
    filter: str = ""
    token: int = 0


def bundle_list(bundles: Sequence[ListedBundle], *, mode: str = "all") -> bytes:
    """Return the answer. ``mode`` tells whether "all" are needed or "any" will do."""
    if not bundles:
        return FLUSH_BYTES
    lines = ["bundle.version=1", f"bundle.mode={mode}"]
    if any(one.token for one in bundles):
        lines.append("bundle.heuristic=creationToken")
    for one in bundles:
        lines.append(f"bundle.{one.id}.uri={one.uri}")
        if one.filter:
            lines.append(f"bundle.{one.id}.filter={one.filter}")
        if one.token:
            # As git reads it: in small letters, whatever its documentation says.
            lines.append(f"bundle.{one.id}.creationtoken={one.token}")
    return b"".join(line(text.encode()) for text in lines) + FLUSH_BYTES
