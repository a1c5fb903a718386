"""LMDB's pages read from the file itself, for files that may be damaged.

LMDB trusts what it maps: a damaged page gives wrong answers or kills the process. Here every page
comes through pread and is checked before it is followed, so that any file gives rows and faults and
never more. Only what shardgit writes is known: pages of 4 KiB, one unnamed table, the free list.

Pages of a tree stay as they are only while a reader of their transaction is open: see
lmdbenv.Environment.read. Without one, what another process writes meanwhile looks like damage.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import DataLoss
from shardgit.lmdbenv import META_MAGIC, PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = struct.Struct("<QHHHH")  # number, pad, flags, lower, upper
_OVERFLOW = struct.Struct("<QHHI")  # number, pad, flags, pages
_META = struct.Struct("<IIQQ")  # magic, version, address, map size
_TREE = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, branch, leaf, overflow pages, entries, root
_TAIL = struct.Struct("<QQ")  # last page, transaction
_NODE = struct.Struct("<HHHH")  # size low, size high, flags, key size
_U64 = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size
DATA_VERSION = 1
BRANCH, LEAF, OVERFLOW, META = 1, 2, 4, 8
BIG = 1  # flag of a node whose value lies in overflow pages
INTEGER_KEYS = 8
NO_PAGE = (1 << 64) - 1
DEPTH_MAX = 32  # LMDB's own


class PageDamaged(DataLoss):
    """A page of a database file is not what it must be."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a page; ``what`` goes on where "page N" begins the sentence."""

    page: int
    what: str


@dataclass(frozen=True, slots=True)
class Tree:
    """What a meta page says of a table."""

    pad: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


@dataclass(frozen=True, slots=True)
class Meta:
    """A meta page."""

    slot: int
    transaction: int
    free: Tree
    main: Tree
    last_page: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A row: its key, the length of its value, and where that is: in the node, or from a page on."""

    key: bytes
    size: int
    inline: bytes | None
    page: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf page and what its parents say of its keys: ``low`` <= key < ``high``, None without a bound."""

    page: int
    low: bytes
    high: bytes | None
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class _Node:
    key: bytes
    page: int
    size: int
    inline: bytes | None


class PageFile:
    """A database file, read page by page. Any thread may use it."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    @property
    def pages(self) -> int:
        """Whole pages that the file has now."""
        return os.fstat(self.handle).st_size // PAGE_BYTES

    def read(self, page: int, length: int, skip: int = 0) -> bytes:
        """Return bytes from a page on; PageDamaged where the file ends before."""
        if page >= 1 << 50:
            raise PageDamaged("lies behind the end of the file", page=page)
        try:
            data = os.pread(self.handle, length, page * PAGE_BYTES + skip)
        except OSError as cause:
            raise PageDamaged(
                "the disk does not give it back", page=page, cause=cause.strerror
            ) from cause
        while 0 < len(data) < length:
            more = os.pread(self.handle, length - len(data), page * PAGE_BYTES + skip + len(data))
            if not more:
                break
            data += more
        if len(data) < length:
            raise PageDamaged("lies behind the end of the file", page=page)
        return data

    def metas(self) -> tuple[list[Meta], list[Fault]]:
        """Return the meta pages that are whole, the newest first, and what is wrong with them."""
        found: list[Meta] = []
        faults: list[Fault] = []
        for slot in (0, 1):
            try:
                found.append(self._meta(slot))
            except PageDamaged as error:
                faults.append(Fault(slot, error.message))
        found.sort(key=lambda meta: -meta.transaction)
        if len(found) == 2:
            newer, older = found
            # The first transaction is 1 and goes to page 1; each takes the place of the one before the last.
            if newer.transaction and (
                newer.transaction != older.transaction + 1 or newer.transaction & 1 != newer.slot
            ):
                faults.append(
                    Fault(newer.slot, "the meta pages are of transactions that do not follow")
                )
        return found, faults

    def _meta(self, slot: int) -> Meta:
        data = self.read(slot, PAGE_BYTES)
        number, _, flags, _, _ = _HEADER.unpack_from(data)
        if number != slot or flags != META:
            raise PageDamaged("is no meta page", page=slot)
        at = HEADER_BYTES
        magic, version, _, _ = _META.unpack_from(data, at)
        if magic != META_MAGIC or version != DATA_VERSION:
            raise PageDamaged("meta page has an unknown magic or version", page=slot)
        at += _META.size
        free = Tree(*_TREE.unpack_from(data, at))
        main = Tree(*_TREE.unpack_from(data, at + _TREE.size))
        last, transaction = _TAIL.unpack_from(data, at + 2 * _TREE.size)
        if free.pad != PAGE_BYTES:
            raise PageDamaged("meta page tells another page size", page=slot)
        if free.flags != INTEGER_KEYS or main.flags or main.pad:
            raise PageDamaged("meta page tells tables of another kind", page=slot)
        for tree in (free, main):
            if (tree.root == NO_PAGE) != (tree.depth == 0) or tree.depth > DEPTH_MAX:
                raise PageDamaged("meta page tells an impossible table", page=slot)
        return Meta(slot, transaction, free, main, last)

    # ---- pages of a tree ----

    def branch(self, page: int) -> list[_Node]:
        """Return the children of a branch page; the key of the first means nothing."""
        return self._nodes(page, BRANCH)

    def leaf(self, page: int) -> list[_Node]:
        """Return the rows of a leaf page."""
        return self._nodes(page, LEAF)

    def _nodes(self, page: int, kind: int) -> list[_Node]:
        if page < 2:
            raise PageDamaged("is a meta page where a tree goes on", page=page)
        data = self.read(page, PAGE_BYTES)
        number, _, flags, lower, upper = _HEADER.unpack_from(data)
        if number != page:
            raise PageDamaged("has another number in its header", page=page)
        if flags != kind:
            raise PageDamaged("is of another kind than its depth says", page=page)
        if not HEADER_BYTES <= lower <= upper <= PAGE_BYTES or lower & 1:
            raise PageDamaged("has impossible bounds", page=page)
        count = (lower - HEADER_BYTES) >> 1
        if not count:
            raise PageDamaged("is empty", page=page)
        found: list[_Node] = []
        taken = 0
        for at in struct.unpack_from(f"<{count}H", data, HEADER_BYTES):
            if at < upper or at + _NODE.size > PAGE_BYTES:
                raise PageDamaged("has a row outside of it", page=page)
            low, high, node_flags, key_bytes = _NODE.unpack_from(data, at)
            start = at + _NODE.size + key_bytes
            key = data[at + _NODE.size : start]
            if kind == BRANCH:
                found.append(_Node(key, low | high << 16 | node_flags << 32, 0, None))
                end = start
            elif node_flags == BIG:
                end = start + 8
                if end <= PAGE_BYTES:
                    (first,) = _U64.unpack_from(data, start)
                    found.append(_Node(key, first, low | high << 16, None))
            elif node_flags:
                raise PageDamaged("has a row of a kind that is never written", page=page)
            else:
                size = low | high << 16
                end = start + size
                found.append(_Node(key, 0, size, data[start:end]))
            if end > PAGE_BYTES:
                raise PageDamaged("has a row that reaches out of it", page=page)
            taken += end - at + (end - at & 1)
        # LMDB closes gaps at once, so the rows fill the page's end.
        if taken != PAGE_BYTES - upper:
            raise PageDamaged("has rows that overlap, or gaps", page=page)
        return found

    def overflow_pages(self, node: Entry | _Node) -> int:
        """Return how many pages a large value takes; PageDamaged when its first page says otherwise."""
        if node.page < 2:
            raise PageDamaged("is a meta page where a value goes on", page=node.page)
        number, _, flags, pages = _OVERFLOW.unpack(self.read(node.page, _OVERFLOW.size))
        if number != node.page or flags != OVERFLOW:
            raise PageDamaged("is not the first page of a value", page=node.page)
        if pages != -(-(HEADER_BYTES + node.size) // PAGE_BYTES):
            raise PageDamaged("tells another length of its value", page=node.page)
        return int(pages)

    def value(self, entry: Entry) -> bytes:
        """Return a row's value; PageDamaged when its pages are not its own."""
        if entry.inline is not None:
            return entry.inline
        self.overflow_pages(entry)
        return self.read(entry.page, entry.size, HEADER_BYTES)

    # ---- rows ----

    def leaves(self, tree: Tree, start: bytes = b"", *, faults: list[Fault]) -> Iterator[Leaf]:
        """Return the leaf pages that may hold keys from ``start`` on, by rising key.

        What is damaged is told in ``faults`` and passed over. Ends on any file: no page is taken twice.
        """
        if tree.root == NO_PAGE:
            return
        seen: set[int] = set()
        waiting: list[tuple[int, int, bytes, bytes | None]] = [(tree.root, tree.depth, b"", None)]
        while waiting:
            page, depth, low, high = waiting.pop()
            if page in seen:
                faults.append(Fault(page, "is named twice"))
                continue
            seen.add(page)
            try:
                nodes = self.branch(page) if depth > 1 else self.leaf(page)
            except PageDamaged as error:
                faults.append(Fault(page, error.message))
                continue
            if depth == 1:
                rows = (Entry(node.key, node.size, node.inline, node.page) for node in nodes)
                yield Leaf(page, low, high, tuple(rows))
                continue
            for number in range(len(nodes) - 1, -1, -1):
                first = nodes[number].key if number else low
                behind = nodes[number + 1].key if number + 1 < len(nodes) else high
                if behind is None or behind > start:
                    waiting.append((nodes[number].page, depth - 1, first, behind))

    def lookup(self, tree: Tree, key: bytes) -> Entry | None:
        """Return a row, None when the tree has none; PageDamaged when that cannot be told."""
        page = tree.root
        if page == NO_PAGE:
            return None
        for _ in range(tree.depth - 1):
            nodes = self.branch(page)
            page = next((n.page for n in reversed(nodes[1:]) if n.key <= key), nodes[0].page)
        for node in self.leaf(page):
            if node.key == key:
                return Entry(node.key, node.size, node.inline, node.page)
        return None
