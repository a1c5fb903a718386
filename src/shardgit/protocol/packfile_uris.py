"""packfile-uris of protocol v2, without I/O: what a client takes, and the section that names packs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument
from shardgit.protocol.pktline import DELIM_BYTES, line
from shardgit.protocol.upload_pack import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

FEATURE = b"packfile-uris"


@dataclass(frozen=True, slots=True)
class PackUri:
    """A pack that stands at a URI: its trailer, which index-pack prints, names it."""

    trailer: bytes
    uri: str


def parse_protocols(text: bytes) -> tuple[str, ...]:
    """Return the URI schemes of an argument such as ``https,http``; InvalidArgument without any."""
    words = [word.strip() for word in text.decode("ascii", "replace").split(",")]
    found = tuple(word for word in words if word)
    if not found:
        raise InvalidArgument("packfile-uris names no protocol", argument=shown(text))
    return found


def packfile_uris(uris: Sequence[PackUri], *, sideband_all: bool) -> bytes:
    """Return the packfile-uris section, b"" when there is nothing to tell."""
    if not uris:
        return b""
    lines = [b"packfile-uris\n"]
    lines += [b"%s %s\n" % (each.trailer.hex().encode(), each.uri.encode()) for each in uris]
    mark = b"\x01" if sideband_all else b""
    return b"".join(line(mark + text) for text in lines) + DELIM_BYTES
