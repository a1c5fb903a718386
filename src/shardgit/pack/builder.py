"""Packs made of whole objects, in memory."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import TYPE_CHECKING

from shardgit.oid import HashKind

if TYPE_CHECKING:
    from shardgit.objects import ObjectType

_HEAD = struct.Struct(">4sII")


class PackBuilder:
    """Collects objects and gives the pack that holds them, each deflated by itself."""

    def __init__(self, kind: HashKind, *, level: int = zlib.Z_DEFAULT_COMPRESSION) -> None:
        self.kind = kind
        self.objects = 0
        self.raw_bytes = 0
        self._level = level
        self._entries = bytearray()

    @property
    def length(self) -> int:
        """How long the pack is by now."""
        return _HEAD.size + len(self._entries) + self.kind.size

    def add(self, kind: ObjectType | int, data: bytes) -> None:
        """Take one object."""
        self._entries += entry_header(int(kind), len(data)) + zlib.compress(data, self._level)
        self.objects += 1
        self.raw_bytes += len(data)

    def finish(self) -> bytes:
        """Return the pack."""
        body = _HEAD.pack(b"PACK", 2, self.objects) + self._entries
        digest = "sha1" if self.kind is HashKind.SHA1 else "sha256"
        return body + hashlib.new(digest, body, usedforsecurity=False).digest()


def entry_header(kind: int, size: int) -> bytes:
    """Return what stands before an entry's deflated bytes: type, and size of the object."""
    out = bytearray()
    byte, size = kind << 4 | size & 15, size >> 4
    while size:
        out.append(byte | 0x80)
        byte, size = size & 0x7F, size >> 7
    out.append(byte)
    return bytes(out)
