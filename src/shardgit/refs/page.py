"""Pages of a ref snapshot as blocks, and changes to them. See docs/formats/refs.md."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from shardgit._refpage import PageWriter
from shardgit.blocks.block import HEADER_SIZE, BlockKind, new_header, parse_header
from shardgit.errors import BlockCorrupt, JournalCorrupt
from shardgit.formats import check_row
from shardgit.journal.interface import END
from shardgit.refs.ref import VERSION, encode_body

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardgit.journal.interface import Row
    from shardgit.oid import HashKind, PoolId
    from shardgit.refs.ref import Ref

PAGE_FLAG = 1
# 256 KiB, cut to fill LMDB's pages, are about 8,000 refs: a fold rewrites a touched page in a
# millisecond; a lookup costs the same at any size.
PAGE_BYTES = (256 << 10) - 16
_UNBOUNDED = 1 << 40
_COUNT = struct.Struct("<4xI")


def page_block(payload: bytes, pool: PoolId, hash_kind: HashKind) -> bytes:
    """Return a page as a block."""
    length = HEADER_SIZE + len(payload)
    return new_header(BlockKind.REFS, hash_kind, pool, length, flags=PAGE_FLAG) + payload


def page_of(block: memoryview, count: int) -> memoryview:
    """Return the page in a block; BlockCorrupt unless it is one of ``count`` refs."""
    header = parse_header(block, kind=BlockKind.REFS)
    page = block[HEADER_SIZE:]
    if header.flags != PAGE_FLAG or len(page) < _COUNT.size:
        raise BlockCorrupt("block is no page of refs", flags=header.flags)
    if _COUNT.unpack_from(page)[0] != count:
        raise BlockCorrupt("ref page is not the one named", refs=count)
    return page


def changes_of_rows(rows: Iterable[Row], *, start: int, hash_kind: HashKind) -> bytes | None:
    """Return loose rows as changes, None without any; names begin at ``start`` of the keys."""
    writer = PageWriter(hash_kind.size, _UNBOUNDED, deletions=True)
    for row in rows:
        value = row.value
        check_row("loose ref", value, VERSION)
        if len(value) < 3 or value[0] != VERSION or value[1] != hash_kind:
            raise JournalCorrupt("loose ref is off", bytes=len(value))
        writer.add(row.key[start:], value[2:])
    return _only(writer)


def changes_of_refs(refs: Iterable[Ref], hash_kind: HashKind) -> bytes | None:
    """Return refs by rising name as changes; one that does not stand is a deletion."""
    writer = PageWriter(hash_kind.size, _UNBOUNDED, deletions=True)
    for ref in refs:
        writer.add(ref.name, encode_body(ref))
    return _only(writer)


def changes_over(
    older: bytes | None, newer: bytes | None, hash_kind: HashKind, low: bytes, high: bytes
) -> bytes | None:
    """Return two sets of changes as one, from ``low`` to ``high``; the newer ones count."""
    if older is None or newer is None:
        return older or newer
    writer = PageWriter(hash_kind.size, _UNBOUNDED, deletions=True)
    writer.merge(older, newer, low, high)
    return _only(writer)


def without_deletions(changes: bytes, hash_kind: HashKind) -> bytes | None:
    """Return the refs of changes that lie over nothing."""
    writer = PageWriter(hash_kind.size, _UNBOUNDED)
    writer.merge(None, changes, b"", END)
    return _only(writer)


def refs_of(page: bytes) -> int:
    """Return how many refs a page has, deletions among them."""
    return int(_COUNT.unpack_from(page)[0])


def _only(writer: PageWriter) -> bytes | None:
    pages = writer.pages()
    return pages[0][0] if pages else None
