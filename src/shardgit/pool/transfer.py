"""One pack stream out of a pool: stored entries are copied, whole segments at a time where they are wanted whole."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from blake3 import blake3

from shardgit import _segment
from shardgit._bits import counts
from shardgit.blocks.block import BLOCK_MAX_BYTES
from shardgit.kept import Kept
from shardgit.pool.manifest import ALONE
from shardgit.pool.sharing import Sharing
from shardgit.pool.view import SMALL_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardgit.oid import BlockId
    from shardgit.pool.sharing import SharedPlan
    from shardgit.pool.trailers import Trailers
    from shardgit.pool.view import PlacedSegment, PoolView

# About a MiB, of whole side-band packets, so that pieces are framed as the whole would be. Of 32 clones of a repository
# with segments of up to 6 MiB, the server's memory beyond its idle was 103 MiB with whole segments, 39 with these.
PIECE_PACKETS = 16
PIECE_BYTES = PIECE_PACKETS * 65_515
# A small fetch takes a little of many segments: handing on each bit by itself cost 6 of 8 ms.
CHUNK_BYTES = 256 << 10
CROWD = 4  # transfers of one plan at once

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """What the client takes: OFS_DELTA, thin packs; ``sideband`` frames the stream as packets of band 1."""

    ofs_delta: bool = True
    thin: bool = False
    sideband: bool = False


@dataclass(slots=True)
class Sent:
    """What a pack was made of: bytes of entries of segments that went whole, that were picked, and that were made."""

    whole_segments: int = 0
    whole_bytes: int = 0
    picked_segments: int = 0
    picked_bytes: int = 0
    made_objects: int = 0
    made_bytes: int = 0


def kept_entries(most_bytes: int = 32 << 20) -> Kept:
    """Return what keeps pack entries of whole objects that were made before, by id.

    Deflating what stands as a delta is most of what a shallow clone costs, and clones of one tip come in crowds.
    """
    return Kept(most_bytes, largest_bytes=most_bytes >> 4)


class Transfer:
    """A pack of the objects in ``wanted`` (a bitset over pool positions) for a client that has those in ``have``.

    Pull ``chunks`` from a worker thread, one at a time: about 1 MiB each, no transaction is open between them. Equal
    arguments over one manifest give equal bytes.
    """

    def __init__(
        self,
        view: PoolView,
        wanted: bytes,
        have: bytes = b"",
        *,
        options: TransferOptions,
        trailers: Trailers | None = None,
        entries: Kept | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self.view = view
        self.wanted = wanted
        self.have = have
        self.options = options
        self._plan = [
            (view.segments[number], count) for number, count in counts(wanted, *view.spans())
        ]
        self.objects = sum(count for _, count in self._plan)
        self._trailers = trailers
        self._entries = entries if entries is not None else kept_entries()
        self._sharing = sharing if sharing is not None else Sharing()
        self._shared: SharedPlan | None = None
        self.sent = Sent()

    @property
    def is_crowded(self) -> bool:
        """Whether this is one of several transfers of one plan that are under way."""
        return self._shared is not None and self._shared.active >= CROWD

    def chunks(self) -> Iterator[bytes]:
        """Return the stream, from the pack's header to its trailer."""
        held: list[bytes] = []
        size = 0
        for piece in self._pieces():
            held.append(piece)
            size += len(piece)
            if size >= CHUNK_BYTES:
                yield held[0] if len(held) == 1 else b"".join(held)
                held, size = [], 0
        if held:
            yield b"".join(held)

    def _pieces(self) -> Iterator[bytes]:
        plan = self._key()
        known = self._trailers.get(plan) if self._trailers else None
        if known is None:  # each hashes for itself what it sends
            yield from self._framed(plan, None, None)
            return
        framed = plan + bytes([self.options.sideband])
        self._shared = shared = self._sharing.enter(framed)
        try:
            yield from self._framed(plan, known, shared)
        finally:
            self._sharing.leave(framed)

    def _framed(
        self, plan: bytes, known: bytes | None, shared: SharedPlan | None
    ) -> Iterator[bytes]:
        framer = _segment.PackFramer(
            int(self.view.hash_kind), sideband=self.options.sideband, trailer=known
        )
        head = b"PACK" + struct.pack(">II", 2, self.objects)
        yield framer.frame(head, 0, len(head))
        ahead = [one.entry.ref.id for one, _ in self._plan if not one.entry.ref.inline]
        with self.view.blocks.prefetch(ahead):
            yield from self._segments(framer, shared)
        if self._trailers is not None and known is None:
            self._trailers.put(plan, framer.digest())
        yield framer.trailer()

    def _segments(self, framer: _segment.PackFramer, shared: SharedPlan | None) -> Iterator[bytes]:
        small: list[bytes] = []  # entries of small segments, framed together
        size = 0
        for segment, count in self._plan:
            verbatim = count == segment.entry.objects and self._verbatim(segment)
            if verbatim or segment.entry.flags & ALONE:
                self.sent.whole_segments += 1
                self.sent.whole_bytes += segment.entry.entry_bytes
            if verbatim and segment.entry.entry_bytes <= SMALL_BYTES:
                small.append(self.view.entries(segment))
                size += len(small[-1])
                if size < CHUNK_BYTES:
                    continue
            if small:
                yield framer.frame(b"".join(small), 0, size)
                small, size = [], 0
                if verbatim and segment.entry.entry_bytes <= SMALL_BYTES:
                    continue
            if segment.entry.flags & ALONE:
                yield from self._alone(framer, segment, shared)
            elif verbatim:
                use = partial(self._use_entries, segment)
                yield from self._pieces_of(framer, use, segment.entry.ref.id, shared)
            else:
                yield from self._some(framer, segment)
        if small:
            yield framer.frame(b"".join(small), 0, size)

    def _alone(
        self, framer: _segment.PackFramer, segment: PlacedSegment, shared: SharedPlan | None
    ) -> Iterator[bytes]:
        """Return an object that is a segment of its own, in blocks of their own."""
        parts = self.view.part_ids(segment)
        with self.view.blocks.prefetch(parts):
            for part in parts:
                use = partial(self._use_part, part)
                yield from self._pieces_of(framer, use, part, shared)

    def _use_part(self, part: BlockId, job: Callable[[memoryview, int, int], T]) -> T:
        return self.view.use_part(part, lambda view: job(view, 0, len(view)))

    def _use_entries(self, segment: PlacedSegment, job: Callable[[memoryview, int, int], T]) -> T:
        def entries(view: memoryview) -> T:
            return job(view, *_segment.entries_span(view, self.view.hash_kind.size))

        return self.view.use_segment(segment, entries)

    def _pieces_of(
        self,
        framer: _segment.PackFramer,
        use: Callable[[Callable[[memoryview, int, int], list[bytes]]], list[bytes]],
        block: BlockId,
        shared: SharedPlan | None,
    ) -> Iterator[bytes]:
        """Return what ``use`` shows of a block, framed, in pieces of PIECE_BYTES.

        A lone transfer uses each block once, and so does each where blocks may have to be fetched. Each of a crowd
        holds one piece of its own when it is behind the others, and uses the block again for the next.
        """

        def pieces(view: memoryview, start: int, end: int) -> list[bytes]:
            every = range(start, end, PIECE_BYTES)
            return [framer.frame(view, at, min(at + PIECE_BYTES, end)) for at in every]

        if shared is None:
            yield from _given_away(use(pieces))
            return
        if not self.is_crowded or not self.view.blocks.in_place:
            yield from _given_away(list(shared.frame((block, None), partial(use, pieces))))
            return

        def piece(at: int) -> list[bytes]:
            def cut(view: memoryview, start: int, end: int) -> list[bytes]:
                return [framer.frame(view, start + at, min(start + at + PIECE_BYTES, end))]

            return use(cut)

        whole = PIECE_BYTES + (PIECE_PACKETS * 5 if self.options.sideband else 0)
        for at in range(0, BLOCK_MAX_BYTES + 1, PIECE_BYTES):
            (made,) = shared.frame((block, at), partial(piece, at))
            if made:
                yield made
            if len(made) < whole:
                return
            del made

    def _key(self) -> bytes:
        """Return what the stream's bytes depend on, hashed."""
        flags = bytes([self.options.ofs_delta, self.options.thin])
        sizes = struct.pack("<QQ", len(self.wanted), len(self.have))
        return blake3(b"".join((self.view.id, flags, sizes, self.wanted, self.have))).digest()

    def _verbatim(self, segment: PlacedSegment) -> bool:
        """Return whether a segment that is wanted whole can go as it stands."""
        if not self.options.ofs_delta or segment.entry.flags & ALONE:
            return False
        have = self.have if self.options.thin else b""
        return _segment.holds_all(self.wanted, have, self.view.outside(segment))

    def _some(self, framer: _segment.PackFramer, segment: PlacedSegment) -> Iterator[bytes]:
        outside = self.view.outside(segment)

        def copy(view: memoryview) -> tuple[bytes, list[int]]:
            return _segment.copy_entries(
                view,
                self.view.hash_kind.size,
                segment.base,
                self.wanted,
                self.have,
                outside,
                self.options.ofs_delta,
                self.options.thin,
            )

        entries, whole = self.view.use_segment(segment, copy)
        for at in range(0, len(entries), PIECE_BYTES):
            yield framer.frame(entries, at, min(at + PIECE_BYTES, len(entries)))
        self.sent.picked_segments += 1
        self.sent.picked_bytes += len(entries)
        self.sent.made_objects += len(whole)
        waiting: list[bytes] = []
        size = 0
        for entry in self._whole([segment.base + ordinal for ordinal in whole]):
            waiting.append(entry)
            size += len(entry)
            self.sent.made_bytes += len(entry)
            if size >= PIECE_BYTES:
                yield framer.frame(b"".join(waiting), 0, size)
                waiting, size = [], 0
        if waiting:
            yield framer.frame(b"".join(waiting), 0, size)

    def _whole(self, positions: list[int]) -> Iterator[bytes]:
        """Return an entry of each object as a whole."""
        for at in range(0, len(positions), 64):
            some = positions[at : at + 64]
            ids = self.view.ids_at(some)
            known = [self._entries.get(oid) for oid in ids]
            lacking = [place for place, entry in zip(some, known, strict=True) if entry is None]
            read = iter(self.view.read_positions(lacking))
            for oid, entry in zip(ids, known, strict=True):
                if entry is None:
                    found = next(read)
                    made = _segment.whole_entry(found.type, found.data)
                    self._entries.put(oid, made)
                    yield made
                else:
                    yield entry


def _given_away(pieces: list[bytes]) -> Iterator[bytes]:
    """Return pieces one by one, each held no longer than until the next is asked for."""
    pieces.reverse()
    while pieces:
        yield pieces.pop()
