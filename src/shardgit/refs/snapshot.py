"""Ref snapshots: immutable sorted refs in blocks, a root over pages. See docs/formats/refs.md."""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.blocks.block import HEADER_SIZE, BlockKind, block_id, new_header, parse_header
from shardgit.errors import BlockCorrupt, DataLoss, JournalCorrupt
from shardgit.oid import BlockId, HashKind, PoolId
from shardgit.refs.ref import Ref, decode_body, encode_body

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shardgit.blocks.interface import BlockStore

PAGE_FLAG = 1
PAGE_BYTES = 256 << 10  # a page is parsed whole: 256 KiB is about 4,000 refs, 3 ms
_ROOT = struct.Struct("<4sIQ")
_ROOT_PAGE = struct.Struct("<32sIH")
_PAGE = struct.Struct("<4sI")
_NAME = struct.Struct("<H")


def encode_snapshot(
    refs: Iterable[Ref], *, pool: PoolId, hash_kind: HashKind
) -> tuple[BlockId, list[tuple[BlockId, bytes]], int]:
    """Return (root id, blocks to put, number of refs) of a snapshot over refs that are sorted by name."""
    blocks: list[tuple[BlockId, bytes]] = []
    pages: list[tuple[BlockId, int, bytes]] = []
    rows: list[bytes] = []
    first = b""
    size = total = 0

    def finish(kind_flags: int, payload: bytes) -> BlockId:
        length = HEADER_SIZE + len(payload)
        data = new_header(BlockKind.REFS, hash_kind, pool, length, flags=kind_flags) + payload
        made = block_id(data)
        blocks.append((made, data))
        return made

    def close_page() -> None:
        pages.append((finish(PAGE_FLAG, _PAGE.pack(b"SGRP", len(rows)) + b"".join(rows)), len(rows), first))

    for ref in refs:
        row = _NAME.pack(len(ref.name)) + ref.name + encode_body(ref)
        if rows and size + len(row) > PAGE_BYTES:
            close_page()
            rows, size = [], 0
        if not rows:
            first = ref.name
        rows.append(row)
        size += len(row)
        total += 1
    if rows:
        close_page()
    root = _ROOT.pack(b"SGRR", len(pages), total)
    root += b"".join(_ROOT_PAGE.pack(page, count, len(name)) + name for page, count, name in pages)
    return finish(0, root), blocks, total


@dataclass(frozen=True, slots=True)
class RefSnapshot:
    """An opened snapshot: the root; pages are read when a name falls into them."""

    hash_kind: HashKind
    count: int
    pages: tuple[BlockId, ...]
    firsts: tuple[bytes, ...]
    blocks: BlockStore

    @classmethod
    def open(cls, blocks: BlockStore, root: BlockId) -> RefSnapshot:
        """Read the root; DataLoss when it is missing, BlockCorrupt when it is off."""
        data = _read(blocks, root)
        header = parse_header(data, kind=BlockKind.REFS)
        try:
            magic, count, total = _ROOT.unpack_from(data, HEADER_SIZE)
            at = HEADER_SIZE + _ROOT.size
            pages, firsts = [], []
            for _ in range(count):
                page, _, length = _ROOT_PAGE.unpack_from(data, at)
                at += _ROOT_PAGE.size
                pages.append(BlockId(page))
                firsts.append(data[at : at + length])
                at += length
        except struct.error as cause:
            raise BlockCorrupt("ref snapshot does not parse", block=root.hex()) from cause
        if magic != b"SGRR" or header.flags or at != len(data) or any(a >= b for a, b in zip(firsts, firsts[1:], strict=False)):
            raise BlockCorrupt("ref snapshot is off", block=root.hex())
        return cls(header.hash_kind, total, tuple(pages), tuple(firsts), blocks)

    def range(self, low: bytes, high: bytes) -> Iterator[Ref]:
        """Return the refs in low <= name < high, by rising name; only pages that can hold one are read."""
        at = max(bisect_right(self.firsts, low) - 1, 0)
        while at < len(self.pages) and self.firsts[at] < high:
            for ref in self.page(at):
                if ref.name >= high:
                    return
                if ref.name >= low:
                    yield ref
            at += 1

    def get(self, name: bytes) -> Ref | None:
        """Return one ref, None when it is missing."""
        return next(self.range(name, name + b"\0"), None)

    def page(self, number: int) -> list[Ref]:
        """Read and parse one page."""
        data = _read(self.blocks, self.pages[number])
        header = parse_header(data, kind=BlockKind.REFS)
        found: list[Ref] = []
        try:
            magic, count = _PAGE.unpack_from(data, HEADER_SIZE)
            at = HEADER_SIZE + _PAGE.size
            view = memoryview(data)
            for _ in range(count):
                (length,) = _NAME.unpack_from(data, at)
                name = data[at + 2 : at + 2 + length]
                at += 2 + length
                ref, used = decode_body(name, view[at:], self.hash_kind)
                found.append(ref)
                at += used
        except (struct.error, JournalCorrupt) as cause:
            raise BlockCorrupt("ref page does not parse", block=self.pages[number].hex()) from cause
        if magic != b"SGRP" or header.flags != PAGE_FLAG or at != len(data) or not found or found[0].name != self.firsts[number]:
            raise BlockCorrupt("ref page is off", block=self.pages[number].hex())
        return found


def _read(blocks: BlockStore, block: BlockId) -> bytes:
    (data,) = blocks.get_many_sync([block])
    if data is None:
        raise DataLoss("ref snapshot block is missing", block=block.hex())
    return data
