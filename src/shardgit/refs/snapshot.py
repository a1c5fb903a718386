"""Ref snapshots: immutable sorted refs in blocks, a root over pages. See docs/formats/refs.md."""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from shardgit._refpage import PageWriter, render, take
from shardgit.blocks.block import HEADER_SIZE, BlockKind, named, new_header, parse_header
from shardgit.errors import BlockCorrupt, DataLoss
from shardgit.journal.interface import END
from shardgit.oid import BlockId, HashKind, PoolId
from shardgit.refs.page import (
    PAGE_BYTES,
    changes_over,
    page_block,
    page_of,
    refs_of,
    without_deletions,
)
from shardgit.refs.ref import Ref, encode_body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from shardgit.blocks.block import BlockHeader
    from shardgit.blocks.interface import BlockStore
    from shardgit.kept import Kept

    Loose = Callable[[bytes, bytes], bytes | None]
    """Returns the changes with low <= name < high that lie over a snapshot, None without any."""

T = TypeVar("T")
_ROOT_1 = struct.Struct("<4sIQ")
_ROOT = struct.Struct("<4sIQI")
_ROOT_PAGE = struct.Struct("<32sIH")
_BATCH_FIRST, _BATCH_MAX = 16, 8_192  # refs decoded at once: a lookup wants one, a listing all
# Changes that a root may carry. A fold of 10,000 scattered changes of 1,000,000 refs rewrites 31 MB;
# one that fits here writes 256 KiB.
OVERLAY_BYTES = 256 << 10
ALONE_BYTES = 16 << 10  # refs that a root carries without any page: one block less


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
class Rendered:
    """Lines of refs, the symbolic ref that follows them, and where to go on: None at the end."""

    lines: bytes
    symbolic: Ref | None
    next: bytes | None


@dataclass(frozen=True, slots=True)
class RefSnapshot:
    """An opened snapshot: the root; a page is read when a name falls into it.

    The overlay is a page of changes, deletions among them, that lies over the other pages.
    """

    hash_kind: HashKind
    pages: tuple[PageEntry, ...]
    firsts: tuple[bytes, ...]
    overlay: bytes | None
    count: int
    blocks: BlockStore

    @classmethod
    def empty(cls, blocks: BlockStore, hash_kind: HashKind) -> RefSnapshot:
        """Return a snapshot without refs; it has no root."""
        return cls(hash_kind, (), (), None, 0, blocks)

    @classmethod
    def open(cls, blocks: BlockStore, root: BlockId) -> RefSnapshot:
        """Read the root; DataLoss when it is missing, BlockCorrupt when it is off."""
        (data,) = blocks.get_many_sync([root])
        if data is None:
            raise DataLoss("ref snapshot is missing", block=root.hex())
        header, pages, overlay, total = _parse_root(root, data)
        firsts = tuple(page.first for page in pages)
        return cls(header.hash_kind, pages, firsts, overlay, total, blocks)

    # ---- reading ----

    def range(self, low: bytes, high: bytes, loose: Loose | None = None) -> Iterator[Ref]:
        """Return the refs in low <= name < high by rising name; reads pages that can hold one.

        ``loose`` lies over the snapshot.
        """
        batch = _BATCH_FIRST
        for page, changes, start, stop in self._spans(low, high, loose):
            at, more = start, True
            while more:
                refs, more = self._take(page, changes, at, stop, batch)
                yield from refs
                if more:
                    at = refs[-1].name + b"\0"
                    batch = min(batch * 8, _BATCH_MAX)

    def get(self, name: bytes) -> Ref | None:
        """Return one ref, None when it is missing."""
        return next(self.range(name, name + b"\0"), None)

    def firsts_of(
        self, ranges: Sequence[tuple[bytes, bytes]], loose: Loose | None = None
    ) -> list[Ref | None]:
        """Return the first ref of each range low <= name < high; ranges rise and do not meet.

        A page is opened once for all that fall into it.
        """
        found: list[Ref | None] = []
        at = 0
        if not ranges:
            return found
        over = loose(ranges[0][0], ranges[-1][1]) if loose is not None else None
        changes = changes_over(self.overlay, over, self.hash_kind, b"", END)
        while at < len(ranges):
            number = max(bisect_right(self.firsts, ranges[at][0]) - 1, 0)
            last = number + 1 >= len(self.pages)
            stop = END if last else self.firsts[number + 1]
            end = at
            while end < len(ranges) and ranges[end][0] < stop:
                end += 1
            page = self.pages[number] if self.pages else None
            inside = [(low, min(high, stop)) for low, high in ranges[at:end]]
            found += self._firsts_in(page, changes, inside)
            if not last and found[-1] is None and ranges[end - 1][1] > stop:
                # The last one goes on behind its page.
                found[-1] = next(self.range(stop, ranges[end - 1][1], loose), None)
            at = end
        return found

    def _firsts_in(
        self, page: PageEntry | None, changes: bytes | None, ranges: Sequence[tuple[bytes, bytes]]
    ) -> list[Ref | None]:
        size = self.hash_kind.size

        def job(view: memoryview | None) -> list[Ref | None]:
            taken = (take(view, changes, size, low, high, 1, Ref)[0] for low, high in ranges)
            return [one[0] if one else None for one in taken]

        return self._use(page, job)

    def render(
        self, low: bytes, high: bytes, loose: Loose | None, *, v0: bool, peel: bool, kept: Kept
    ) -> Iterator[Rendered]:
        """Return the pkt-lines of the refs in low <= name < high, a page at a time.

        Those of a page without changes over it are ``kept``: a million refs take 0.13 s to write.
        """
        for page, changes, start, stop in self._spans(low, high, loose):
            key = None
            if page is not None and not self._any(changes, start, stop):
                key = (page.id, start, stop, v0, peel)
                if (known := kept.get(key)) is not None:
                    yield Rendered(known, None, stop if stop < high else None)
                    continue
            name: bytes | None = start
            while name is not None:
                at = name
                lines, name, target = self._lines(page, changes, at, stop, v0=v0, peel=peel)
                if key is not None and at == start and name is None:
                    kept.put(key, lines, len(start) + len(stop))
                if name is not None:
                    symbolic = Ref(name, symbolic=target)
                    name += b"\0"
                    yield Rendered(lines, symbolic, name)
                else:
                    yield Rendered(lines, None, stop if stop < high else None)

    def _any(self, changes: bytes | None, low: bytes, high: bytes) -> bool:
        """Say whether there is a change with low <= name < high."""
        if changes is None:
            return False
        return bool(take(None, changes, self.hash_kind.size, low, high, 1, Ref, deletions=True)[0])

    def _take(
        self, page: PageEntry | None, changes: bytes | None, low: bytes, high: bytes, most: int
    ) -> tuple[list[Ref], bool]:
        size = self.hash_kind.size
        return self._use(page, lambda view: take(view, changes, size, low, high, most, Ref))

    def _lines(
        self,
        page: PageEntry | None,
        changes: bytes | None,
        low: bytes,
        high: bytes,
        *,
        v0: bool,
        peel: bool,
    ) -> tuple[bytes, bytes | None, bytes | None]:
        size = self.hash_kind.size
        return self._use(
            page, lambda view: render(view, changes, size, low, high, v0=v0, peel=peel)
        )

    def _spans(
        self, low: bytes, high: bytes, loose: Loose | None
    ) -> Iterator[tuple[PageEntry | None, bytes | None, bytes, bytes]]:
        """Return each page that can hold such names: page, changes over it, and its part of the range."""
        at = max(bisect_right(self.firsts, low) - 1, 0)
        while low < high:
            stop = min(high, self.firsts[at + 1]) if at + 1 < len(self.pages) else high
            over = loose(low, stop) if loose is not None else None
            changes = changes_over(self.overlay, over, self.hash_kind, low, stop)
            yield (self.pages[at] if self.pages else None), changes, low, stop
            low, at = stop, at + 1

    def _use(self, page: PageEntry | None, job: Callable[[memoryview | None], T]) -> T:
        if page is None:
            return job(None)
        found = self.blocks.use(page.id, lambda block: job(page_of(block, page.count)))
        if found is None:
            raise DataLoss("page of a ref snapshot is missing", block=page.id.hex())
        return found

    # ---- changing ----

    def with_changes(self, changes: bytes | None, *, count: int, pool: PoolId) -> NewSnapshot:
        """Return this snapshot under more changes, of ``count`` refs in all.

        Only the root is new while its overlay is small, and small beside the pages that it touches.
        Then those are rewritten; the others are shared.
        """
        overlay = changes_over(self.overlay, changes, self.hash_kind, b"", END)
        writer = _Writer(pool, self.hash_kind)
        if count and overlay is not None:
            if not self.pages and len(overlay) <= ALONE_BYTES:
                return writer.finish((), without_deletions(overlay, self.hash_kind), count)
            touched = sum(page.count for page, _, _, yes in self._touched(overlay) if yes)
            if len(overlay) <= OVERLAY_BYTES and touched > 2 * refs_of(overlay):
                return writer.finish(self.pages, overlay, count)
        return self._folded(overlay, writer, count)

    def _touched(self, overlay: bytes) -> Iterator[tuple[PageEntry, bytes, bytes, bool]]:
        """Return each page, its range of names and whether a change falls into it."""
        for at, page in enumerate(self.pages):
            low = page.first if at else b""
            high = self.firsts[at + 1] if at + 1 < len(self.pages) else END
            yield page, low, high, self._any(overlay, low, high)

    def _folded(self, overlay: bytes | None, writer: _Writer, count: int) -> NewSnapshot:
        if overlay is None:
            return writer.finish(self.pages, None, count)
        if not self.pages:
            writer.merge(None, overlay, b"", END)
        for page, low, high, touched in self._touched(overlay):
            if not touched and not writer.small:
                writer.keep(page)
                continue
            (block,) = self.blocks.get_many_sync([page.id])
            if block is None:
                raise DataLoss("page of a ref snapshot is missing", block=page.id.hex())
            writer.merge(page_of(memoryview(block), page.count), overlay, low, high)
        made = writer.finish((), None, None)
        if made.count != count:
            raise BlockCorrupt("ref snapshot has not as many refs as it says", refs=count)
        return made


def _parse_root(
    root: BlockId, data: bytes
) -> tuple[BlockHeader, tuple[PageEntry, ...], bytes | None, int]:
    """Return header, pages, overlay and count of refs in a root block; BlockCorrupt when it is off."""
    header = parse_header(data, kind=BlockKind.REFS)
    pages: list[PageEntry] = []
    try:
        magic, count, total = _ROOT_1.unpack_from(data, HEADER_SIZE)
        at, size = HEADER_SIZE + _ROOT_1.size, 0
        if magic == b"SGR2":
            _, _, _, size = _ROOT.unpack_from(data, HEADER_SIZE)
            at = HEADER_SIZE + _ROOT.size
        for _ in range(count):
            page, refs, length = _ROOT_PAGE.unpack_from(data, at)
            at += _ROOT_PAGE.size + length
            pages.append(PageEntry(BlockId(page), refs, data[at - length : at]))
    except struct.error as cause:
        raise BlockCorrupt("ref snapshot does not parse", block=root.hex()) from cause
    overlay = data[at:] if magic == b"SGR2" else b""
    rising = all(a.first < b.first for a, b in pairwise(pages))
    summed = sum(page.count for page in pages)
    known = magic == b"SGR2" or (magic == b"SGRR" and at == len(data) and summed == total)
    if not known or header.flags or len(overlay) != size or not rising or not (pages or size):
        raise BlockCorrupt("ref snapshot is off", block=root.hex())
    return header, tuple(pages), overlay or None, total


def snapshot_pages(root: BlockId, data: bytes) -> tuple[PageEntry, ...]:
    """Return the pages that a root block names; BlockCorrupt when it is off."""
    return _parse_root(root, data)[1]


class _Writer:
    def __init__(self, pool: PoolId, hash_kind: HashKind) -> None:
        self._pool = pool
        self._hash_kind = hash_kind
        self._writer = PageWriter(hash_kind.size, PAGE_BYTES)
        self._pages: list[PageEntry] = []
        self._blocks: list[tuple[BlockId, bytes]] = []

    @property
    def small(self) -> bool:
        """Whether the page begun is too small to be left behind."""
        return 0 < self._writer.open_bytes < PAGE_BYTES // 4

    def add(self, ref: Ref) -> None:
        self._writer.add(ref.name, encode_body(ref))

    def merge(
        self, page: memoryview | None, changes: bytes | None, low: bytes, high: bytes
    ) -> None:
        self._writer.merge(page, changes, low, high)

    def keep(self, page: PageEntry) -> None:
        self._take_pages()
        self._pages.append(page)

    def _take_pages(self) -> None:
        for payload, count, first in self._writer.pages():
            made = self._put(page_block(payload, self._pool, self._hash_kind))
            self._pages.append(PageEntry(made, count, first))

    def _put(self, data: bytes) -> BlockId:
        made, data = named(data)
        self._blocks.append((made, data))
        return made

    def finish(
        self, pages: tuple[PageEntry, ...], overlay: bytes | None, count: int | None
    ) -> NewSnapshot:
        self._take_pages()
        entries = [*pages, *self._pages]
        if count is None:
            count = sum(page.count for page in entries)
        if not count:
            return NewSnapshot(None, [], 0)
        payload = _ROOT.pack(b"SGR2", len(entries), count, len(overlay or b"")) + b"".join(
            _ROOT_PAGE.pack(page.id, page.count, len(page.first)) + page.first for page in entries
        )
        payload += overlay or b""
        length = HEADER_SIZE + len(payload)
        root = self._put(new_header(BlockKind.REFS, self._hash_kind, self._pool, length) + payload)
        return NewSnapshot(root, self._blocks, count)


def new_snapshot(refs: Iterable[Ref], *, pool: PoolId, hash_kind: HashKind) -> NewSnapshot:
    """Return a snapshot of refs that come by rising name."""
    writer = _Writer(pool, hash_kind)
    for ref in refs:
        writer.add(ref)
    return writer.finish((), None, None)
