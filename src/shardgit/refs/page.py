"""A page of a ref snapshot: sorted refs with shared prefixes, searched where it lies.

See docs/formats/refs.md.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from shardgit.blocks.block import HEADER_SIZE, BlockKind, new_header, parse_header
from shardgit.errors import BlockCorrupt, JournalCorrupt
from shardgit.refs.ref import Kind, Ref, decode_body, encode_body

if TYPE_CHECKING:
    from shardgit.oid import HashKind, PoolId

PAGE_FLAG = 1
# 256 KiB, cut to fill LMDB's pages, are about 8,000 refs: a fold rewrites a touched page in 20 ms,
# against 80 ms at 1 MiB; a lookup costs the same.
PAGE_BYTES = (256 << 10) - 16
RESTART = 16  # refs between names that stand whole; 1M refs: 31 bytes each, 48 without prefixes
_HEAD = struct.Struct("<4sII")
_ENTRY = struct.Struct("<BH")
_OFFSET = struct.Struct("<I")
_SHARED_MAX = 255


class PageWriter:
    """Collects refs by rising name until a page is full."""

    def __init__(self) -> None:
        self.first = self.last = b""
        self.count = 0
        self.size = HEADER_SIZE + _HEAD.size
        self._entries: list[bytes] = []
        self._restarts: list[int] = []
        self._at = 0

    def add(self, ref: Ref) -> bool:
        """Add a ref; False, and nothing is added, when the page is full."""
        name, shared = ref.name, 0
        restart = self.count % RESTART == 0
        if not restart:
            most = min(len(name), len(self.last), _SHARED_MAX)
            while shared < most and name[shared] == self.last[shared]:
                shared += 1
        entry = _ENTRY.pack(shared, len(name) - shared) + name[shared:] + encode_body(ref)
        more = len(entry) + _OFFSET.size * restart
        if self.count and self.size + more > PAGE_BYTES:
            return False
        if restart:
            self._restarts.append(self._at)
        self._entries.append(entry)
        self._at += len(entry)
        self.size += more
        if not self.count:
            self.first = name
        self.last = name
        self.count += 1
        return True

    def block(self, pool: PoolId, hash_kind: HashKind) -> bytes:
        """Return the page as a block."""
        offsets = struct.pack(f"<{len(self._restarts)}I", *self._restarts)
        head = _HEAD.pack(b"SGRP", self.count, len(self._restarts))
        payload = b"".join((head, offsets, *self._entries))
        length = HEADER_SIZE + len(payload)
        return new_header(BlockKind.REFS, hash_kind, pool, length, flags=PAGE_FLAG) + payload


def take(view: memoryview, low: bytes, high: bytes, most: int) -> tuple[list[Ref], bool]:
    """Return up to ``most`` refs with low <= name < high of a page, and whether it may hold more.

    The page is searched from the last whole name that is not behind ``low``. Errors: BlockCorrupt.
    """
    header = parse_header(view, kind=BlockKind.REFS)
    try:
        return _take(view, header.hash_kind.size, header.flags, low, high, most)
    except (struct.error, IndexError, JournalCorrupt) as cause:
        raise BlockCorrupt("ref page does not parse", bytes=len(view)) from cause


def _take(
    view: memoryview, size: int, flags: int, low: bytes, high: bytes, most: int
) -> tuple[list[Ref], bool]:
    magic, count, restarts = _HEAD.unpack_from(view, HEADER_SIZE)
    offsets_at = HEADER_SIZE + _HEAD.size
    start = offsets_at + _OFFSET.size * restarts
    if magic != b"SGRP" or flags != PAGE_FLAG or not count or restarts != -(-count // RESTART):
        raise BlockCorrupt("ref page is off", refs=count, restarts=restarts)
    if start >= len(view):
        raise BlockCorrupt("ref page is too short", bytes=len(view))
    left, right = 0, restarts - 1
    while left < right:  # the last restart whose name is not behind low
        middle = (left + right + 1) // 2
        if _whole_name(view, offsets_at, start, middle) <= low:
            left = middle
        else:
            right = middle - 1
    (offset,) = _OFFSET.unpack_from(view, offsets_at + _OFFSET.size * left)
    data = bytes(view[start + offset :])
    found: list[Ref] = []
    at, name = 0, b""
    unpack = _ENTRY.unpack_from
    for number in range(left * RESTART, count):
        shared, rest = unpack(data, at)
        at += 3 + rest
        if shared > len(name) or (shared and not number % RESTART):
            raise BlockCorrupt("ref page shares what is not there", ref=number)
        last, name = name, name[:shared] + data[at - rest : at]
        if name <= last:
            raise BlockCorrupt("ref page is not sorted", ref=number)
        if name >= high:
            return found, False
        if len(found) == most:
            return found, True
        ref, at = decode_body(name, data, at, size)
        if not ref.stands:
            raise BlockCorrupt("ref page holds a deletion", kind=int(Kind.DELETED))
        if name >= low:
            found.append(ref)
    if at != len(data):
        raise BlockCorrupt("ref page has bytes behind its refs", bytes=len(data) - at)
    return found, False


def _whole_name(view: memoryview, offsets_at: int, start: int, restart: int) -> bytes:
    (offset,) = _OFFSET.unpack_from(view, offsets_at + _OFFSET.size * restart)
    shared, length = _ENTRY.unpack_from(view, start + offset)
    if shared:
        raise BlockCorrupt("ref page has a restart that is none", restart=restart)
    at = start + offset + _ENTRY.size
    return bytes(view[at : at + length])
