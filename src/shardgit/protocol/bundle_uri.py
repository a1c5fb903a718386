"""The v2 command bundle-uri, without I/O: a list of bundles as keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument
from shardgit.protocol.pktline import FLUSH_BYTES, line
from shardgit.protocol.upload_pack import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

CAPABILITY = b"bundle-uri"


@dataclass(frozen=True, slots=True)
class BundleUriRequest:
    """A v2 bundle-uri command, which has no arguments."""


def refuse_argument(text: bytes) -> InvalidArgument:
    """Return the error for an argument, in git's words."""
    return InvalidArgument(f"bundle-uri: unexpected argument: '{shown(text)}'")


def bundle_list(uris: Mapping[str, str]) -> bytes:
    """Return the answer: all of the bundles by id, none of which needs another.

    A relative URI counts from the URL of the repository.
    """
    if not uris:
        return FLUSH_BYTES
    lines = ["bundle.version=1", "bundle.mode=all"]
    lines += [f"bundle.{name}.uri={uri}" for name, uri in uris.items()]
    return b"".join(line(text.encode()) for text in lines) + FLUSH_BYTES
