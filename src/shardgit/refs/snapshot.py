"""Ref snapshots: immutable sorted refs in blocks, a root over pages. See docs/formats/refs.md."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from shardgit.blocks.block import HEADER_SIZE, BlockKind, block_id, new_header, parse_header
from shardgit.errors import BlockCorrupt, DataLoss
from shardgit.journal.interface import END
from shardgit.oid import BlockId, HashKind, PoolId
from shardgit.refs.page import PAGE_BYTES, PageWriter, take

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from shardgit.blocks.interface import BlockStore
    from shardgit.refs.ref import Ref

_ROOT = struct.Struct("<4sIQ")
_ROOT_PAGE = struct.Struct("<32sIH")
_BATCH_FIRST, _BATCH_MAX = 16, 8_192  # refs decoded at once: a lookup wants one, a listing all


@dataclass(frozen=True, slots=True)
class PageEntry:
    """A page as its root names it."""

    id: BlockId
    count: int
    first: bytes


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """A snapshot about to be put: None as its root when it has no ref."""

    root: BlockId | None
    blocks: list[tuple[BlockId, bytes]]
    count: int


@dataclass(frozen=True, slots=True)
class RefSnapshot:
    """An opened snapshot: the root; a page is read when a name falls into it."""

    hash_kind: HashKind
    pages: tuple[PageEntry, ...]
    firsts: tuple[bytes, ...]
    blocks: BlockStore

    @classmethod
    def open(cls, blocks: BlockStore, root: BlockId) -> RefSnapshot:
        """Read the root; DataLoss when it is missing, BlockCorrupt when it is off."""
        (data,) = blocks.get_many_sync([root])
        if data is None:
            raise DataLoss("ref snapshot is missing", block=root.hex())
        header = parse_header(data, kind=BlockKind.REFS)
        pages: list[PageEntry] = []
        try:
            magic, count, total = _ROOT.unpack_from(data, HEADER_SIZE)
            at = HEADER_SIZE + _ROOT.size
            for _ in range(count):
                page, refs, length = _ROOT_PAGE.unpack_from(data, at)
                at += _ROOT_PAGE.size + length
                pages.append(PageEntry(BlockId(page), refs, data[at - length : at]))
        except struct.error as cause:
            raise BlockCorrupt("ref snapshot does not parse", block=root.hex()) from cause
        firsts = tuple(page.first for page in pages)
        rising = all(a < b for a, b in pairwise(firsts))
        summed = sum(page.count for page in pages) == total
        if magic != b"SGRR" or header.flags or at != len(data) or not (rising and summed and pages):
            raise BlockCorrupt("ref snapshot is off", block=root.hex())
        return cls(header.hash_kind, tuple(pages), firsts, blocks)

    def range(self, low: bytes, high: bytes) -> Iterator[Ref]:
        """Return the refs in low <= name < high by rising name; reads pages that can hold one."""
        at = max(bisect_right(self.firsts, low) - 1, 0)
        batch = _BATCH_FIRST
        while at < len(self.pages) and self.firsts[at] < high:
            refs, more = self._take(at, low, high, batch)
            yield from refs
            if more:
                low = refs[-1].name + b"\0"
                batch = min(batch * 8, _BATCH_MAX)
            else:
                at += 1

    def get(self, name: bytes) -> Ref | None:
        """Return one ref, None when it is missing."""
        return next(self.range(name, name + b"\0"), None)

    def page(self, number: int) -> list[Ref]:
        """Read one page whole."""
        refs, _ = self._take(number, b"", END, self.pages[number].count)
        if len(refs) != self.pages[number].count or refs[0].name != self.firsts[number]:
            raise BlockCorrupt("ref page is not the one named", block=self.pages[number].id.hex())
        return refs

    def _take(self, number: int, low: bytes, high: bytes, most: int) -> tuple[list[Ref], bool]:
        page = self.pages[number].id
        found = self.blocks.use(page, lambda view: take(view, low, high, most))
        if found is None:
            raise DataLoss("page of a ref snapshot is missing", block=page.hex())
        return found


class _Writer:
    def __init__(self, pool: PoolId, hash_kind: HashKind) -> None:
        self._pool = pool
        self._hash_kind = hash_kind
        self._page = PageWriter()
        self._pages: list[PageEntry] = []
        self._blocks: list[tuple[BlockId, bytes]] = []

    @property
    def small(self) -> bool:
        """Whether the page begun is too small to be left behind."""
        return self._page.count > 0 and self._page.size < PAGE_BYTES // 4

    def add(self, ref: Ref) -> None:
        if not self._page.add(ref):
            self._close_page()
            self._page.add(ref)

    def keep(self, page: PageEntry) -> None:
        self._close_page()
        self._pages.append(page)

    def _close_page(self) -> None:
        page = self._page
        if page.count:
            made = self._put(page.block(self._pool, self._hash_kind))
            self._pages.append(PageEntry(made, page.count, page.first))
            self._page = PageWriter()

    def _put(self, data: bytes) -> BlockId:
        made = block_id(data)
        self._blocks.append((made, data))
        return made

    def finish(self) -> NewSnapshot:
        self._close_page()
        count = sum(page.count for page in self._pages)
        if not count:
            return NewSnapshot(None, [], 0)
        payload = _ROOT.pack(b"SGRR", len(self._pages), count) + b"".join(
            _ROOT_PAGE.pack(page.id, page.count, len(page.first)) + page.first
            for page in self._pages
        )
        length = HEADER_SIZE + len(payload)
        root = self._put(new_header(BlockKind.REFS, self._hash_kind, self._pool, length) + payload)
        return NewSnapshot(root, self._blocks, count)


def new_snapshot(refs: Iterable[Ref], *, pool: PoolId, hash_kind: HashKind) -> NewSnapshot:
    """Return a snapshot of refs that come by rising name."""
    writer = _Writer(pool, hash_kind)
    for ref in refs:
        writer.add(ref)
    return writer.finish()


def fold(old: RefSnapshot, changes: Sequence[Ref], *, pool: PoolId) -> NewSnapshot:
    """Return ``old`` with ``changes`` by rising name; a ref that does not stand is a deletion.

    Pages that no change falls into are shared, not written anew.
    """
    writer = _Writer(pool, old.hash_kind)
    names = [change.name for change in changes]
    begin = 0
    for number, page in enumerate(old.pages):
        last = number + 1 == len(old.pages)
        end = len(changes) if last else bisect_left(names, old.firsts[number + 1], begin)
        if begin == end and not writer.small:
            writer.keep(page)
            continue
        merged = {ref.name: ref for ref in old.page(number)}
        merged.update((change.name, change) for change in changes[begin:end])
        for name in sorted(merged):
            if merged[name].stands:
                writer.add(merged[name])
        begin = end
    return writer.finish()
