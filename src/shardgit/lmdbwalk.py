"""A walk over all pages of an LMDB file: is each what its parents say, and has each one owner?

A fault in the free list is one as well: the next commit would write over a page in use.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from shardgit.lmdbpages import (
    BRANCH,
    LEAF,
    NO_PAGE,
    OVERFLOW,
    Entry,
    Fault,
    Meta,
    PageDamaged,
    PageFile,
    Tree,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FAULTS_MAX = 1_000
_FREE, _TREE, _VALUE, _FREED = 1, 2, 3, 4  # what a page was found to be, 0 nothing yet


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk found. ``present`` are the pages that the file has, ``pages`` those that it should know of."""

    transaction: int
    pages: int
    present: int
    free: int
    entries: int
    faults: tuple[Fault, ...]


def walk(file: PageFile, meta: Meta) -> Walk:
    """Walk both trees of a meta page. Ends on any file, with one fault for each page that is off."""
    return _Walk(file, meta).run()


class _Walk:
    def __init__(self, file: PageFile, meta: Meta) -> None:
        self.file = file
        self.meta = meta
        self.faults: list[Fault] = []
        self.present = file.pages
        # A damaged meta page may claim more pages than could be: what is not there cannot be in use.
        self.pages = min(meta.last_page + 1, self.present + (1 << 20))
        self.owner = bytearray(self.pages)
        self.freed: set[int] = set()
        self.entries = 0
        self.lost = 0  # pages whose children are not known

    def fault(self, page: int, what: str) -> None:
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(Fault(page, what))

    def run(self) -> Walk:
        meta = self.meta
        self.take(0, 2, _TREE)
        if meta.last_page + 1 > self.pages:
            self.fault(meta.slot, "tells more pages than the file could have")
        self.entries = self.tree(meta.main, _TREE, lambda key: key)
        self.tree(meta.free, _FREE, _number)
        if not self.lost:
            self.unowned()
        return Walk(
            meta.transaction,
            meta.last_page + 1,
            self.present,
            len(self.freed),
            self.entries,
            tuple(self.faults),
        )

    def take(self, first: int, count: int, owner: int) -> bool:
        """Note whose pages these are; a fault when they are somebody's already, or not to be had."""
        end = first + count
        if end > self.pages:
            self.fault(first, "lies behind the last page in use")
            return False
        if self.owner.count(0, first, end) != count:
            self.fault(first, "belongs to two rows or trees")
            return False
        self.owner[first:end] = bytes([owner]) * count
        return True

    def tree(self, tree: Tree, owner: int, order: Callable[[bytes], object]) -> int:
        """Walk one tree; returns the rows found."""
        if tree.root == NO_PAGE:
            if tree.entries:
                self.fault(self.meta.slot, "tells rows of an empty tree")
            return 0
        counts = {BRANCH: 0, LEAF: 0, OVERFLOW: 0}
        entries = 0
        waiting: list[tuple[int, int, bytes | None, bytes | None]] = [
            (tree.root, tree.depth, None, None)
        ]
        before = self.lost
        while waiting:
            page, depth, low, high = waiting.pop()
            if not self.take(page, 1, owner):
                self.lost += 1
                continue
            kind = BRANCH if depth > 1 else LEAF
            counts[kind] += 1
            try:
                nodes = self.file.branch(page) if kind == BRANCH else self.file.leaf(page)
            except PageDamaged as error:
                self.fault(page, error.message)
                self.lost += 1
                continue
            keys = [node.key for node in nodes[1 if kind == BRANCH else 0 :]]
            self.check_order(page, keys, low, high, order)
            if kind == BRANCH:
                for number in range(len(nodes) - 1, -1, -1):
                    first = nodes[number].key if number else low
                    behind = nodes[number + 1].key if number + 1 < len(nodes) else high
                    waiting.append((nodes[number].page, depth - 1, first, behind))
                continue
            entries += len(nodes)
            for node in nodes:
                entry = Entry(node.key, node.size, node.inline, node.page)
                if node.inline is None:
                    counts[OVERFLOW] += self.value_pages(page, entry)
                if owner == _FREE:
                    self.free_row(page, entry)
        if self.lost == before and (
            counts[BRANCH] != tree.branch_pages
            or counts[LEAF] != tree.leaf_pages
            or counts[OVERFLOW] != tree.overflow_pages
            or entries != tree.entries
        ):
            self.fault(self.meta.slot, "tells other counts than the tree has")
        return entries

    def check_order(
        self,
        page: int,
        keys: list[bytes],
        low: bytes | None,
        high: bytes | None,
        order: Callable[[bytes], object],
    ) -> None:
        try:
            ranked = [order(key) for key in keys]
            bounds = [order(bound) if bound is not None else None for bound in (low, high)]
        except struct.error:
            self.fault(page, "has keys of another length")
            return
        first, behind = bounds
        if any(a >= b for a, b in pairwise(ranked)):  # type: ignore[operator]
            self.fault(page, "has keys out of order")
        elif ranked and (
            (first is not None and ranked[0] < first)  # type: ignore[operator]
            or (behind is not None and ranked[-1] >= behind)  # type: ignore[operator]
        ):
            self.fault(page, "has keys outside of what its parent says")

    def value_pages(self, leaf: int, entry: Entry) -> int:
        try:
            pages = self.file.overflow_pages(entry)
        except PageDamaged as error:
            self.fault(entry.page, f"{error.message} (a row of page {leaf})")
            self.lost += 1
            return 0
        if not self.take(entry.page, pages, _VALUE):
            self.lost += 1
            return 0
        if entry.page + pages > self.present:
            self.fault(entry.page, "lies behind the end of the file")
        return pages

    def free_row(self, page: int, entry: Entry) -> None:
        """Take the pages that one transaction has freed."""
        try:
            data = self.file.value(entry)
            (count,) = struct.unpack_from("<Q", data)
            numbers = struct.unpack_from(f"<{count}Q", data, 8)
            (transaction,) = struct.unpack("<Q", entry.key)
        except (PageDamaged, struct.error) as error:
            self.fault(page, f"has a damaged list of free pages: {error}")
            self.lost += 1
            return
        if transaction > self.meta.transaction:
            self.fault(page, "frees pages in a transaction to come")
        if any(a <= b for a, b in pairwise(numbers)):
            self.fault(page, "has a list of free pages that is out of order")
        for number in numbers:
            if number >= self.pages:
                self.fault(page, "frees a page behind the last one in use")
            elif self.owner[number]:
                self.fault(number, "is in use and free, or free twice")
            else:
                self.owner[number] = _FREED
                self.freed.add(number)

    def unowned(self) -> None:
        """Tell of pages that are neither in use nor free: something that named them has changed."""
        at = self.owner.find(0)
        while at >= 0:
            end = at
            while end < self.pages and not self.owner[end]:
                end += 1
            self.fault(at, f"is neither in use nor free, {end - at} pages in all")
            at = self.owner.find(0, end)


def _number(key: bytes) -> int:
    (number,) = struct.unpack("<Q", key)
    return int(number)
