"""Packs made by hand, slowly and obviously: witnesses for the kernels and makers of bad input."""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass

TYPES = {1: b"commit", 2: b"tree", 3: b"blob", 4: b"tag"}
OFS_DELTA, REF_DELTA = 6, 7


def object_id(kind: int, data: bytes, algorithm: str = "sha1") -> bytes:
    """Return the id of an object."""
    return hashlib.new(algorithm, TYPES[kind] + b" %d\0" % len(data) + data).digest()


def entry_header(kind: int, size: int) -> bytes:
    """Return the type-and-size header of an entry."""
    out = bytearray()
    byte = kind << 4 | size & 15
    size >>= 4
    while size:
        out.append(byte | 0x80)
        byte = size & 0x7F
        size >>= 7
    out.append(byte)
    return bytes(out)


def distance(value: int) -> bytes:
    """Return the distance varint of an OFS_DELTA."""
    out = [value & 0x7F]
    value >>= 7
    while value:
        value -= 1
        out.append(0x80 | value & 0x7F)
        value >>= 7
    return bytes(reversed(out))


def varint(value: int) -> bytes:
    """Return a size varint of a delta."""
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


def copy(start: int, size: int) -> bytes:
    """Return a copy instruction; size 1 to 0xffffff."""
    flags, tail = 0x80, bytearray()
    for bit in range(4):
        if start >> 8 * bit & 255:
            flags |= 1 << bit
            tail.append(start >> 8 * bit & 255)
    if size != 0x10000:
        for bit in range(3):
            if size >> 8 * bit & 255:
                flags |= 16 << bit
                tail.append(size >> 8 * bit & 255)
    return bytes([flags]) + bytes(tail)


def insert(data: bytes) -> bytes:
    """Return insert instructions for data of any length."""
    return b"".join(
        bytes([len(data[i : i + 127])]) + data[i : i + 127] for i in range(0, len(data), 127)
    )


def delta(base: bytes, result: bytes) -> bytes:
    """Return a delta: common start and end copied, the middle inserted."""
    start = 0
    while start < min(len(base), len(result), 0xFFFFFF) and base[start] == result[start]:
        start += 1
    end = 0
    while (
        end < min(len(base), len(result), 0xFFFFFF) - start and base[-1 - end] == result[-1 - end]
    ):
        end += 1
    out = varint(len(base)) + varint(len(result))
    if start:
        out += copy(0, start)
    out += insert(result[start : len(result) - end])
    if end:
        out += copy(len(base) - end, end)
    return out


@dataclass
class PackMaker:
    """Builds a pack entry by entry; offsets are counted from the pack's start."""

    algorithm: str = "sha1"

    def __post_init__(self) -> None:
        self.body = b""
        self.count = 0

    @property
    def at(self) -> int:
        """Offset of the next entry."""
        return 12 + len(self.body)

    def add(
        self,
        kind: int,
        data: bytes,
        *,
        before: bytes = b"",
        size: int | None = None,
        level: int = -1,
    ) -> int:
        """Add an entry whose stream inflates to data; return its offset."""
        at = self.at
        self.body += (
            entry_header(kind, len(data) if size is None else size)
            + before
            + zlib.compress(data, level)
        )
        self.count += 1
        return at

    def ofs(self, base_at: int, data: bytes) -> int:
        """Add an OFS_DELTA entry on the entry at base_at."""
        return self.add(OFS_DELTA, data, before=distance(self.at - base_at))

    def ref(self, base: bytes, data: bytes) -> int:
        """Add a REF_DELTA entry."""
        return self.add(REF_DELTA, data, before=base)

    def pack(self, *, version: int = 2, count: int | None = None, extra: bytes = b"") -> bytes:
        """Return the pack with its trailer."""
        data = (
            b"PACK"
            + struct.pack(">II", version, self.count if count is None else count)
            + self.body
            + extra
        )
        return data + hashlib.new(self.algorithm, data).digest()
