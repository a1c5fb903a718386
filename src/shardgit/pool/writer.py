"""Turning an ingest into the blocks of a run: segments, parts, index pieces and the graph.

The order of blocks does not matter to a reader: nothing is reachable before the manifest's pointer is swapped.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardgit import _graph, _segment
from shardgit.blocks.block import HEADER_SIZE, BlockKind, named, new_header
from shardgit.limits import DEFAULT, Limits
from shardgit.pool.manifest import BlockRef, RunRecord, SegmentEntry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit._layout import Ingest
    from shardgit.oid import BlockId, HashKind, ObjectId, PoolId

ALONE = 1
EXTERNAL_BASES = 2
INDEX_ROW_BYTES = 7
INDEX_SPARE_BYTES = 64
GRAPH_PACKED_BYTES = 4_096  # a smaller graph is stored as it is


@dataclass(frozen=True, slots=True)
class NewBlock:
    """A block that is to be put: its id and its bytes."""

    id: BlockId
    data: bytes

    @property
    def ref(self) -> BlockRef:
        """A reference to it as a block of its own."""
        return BlockRef(self.id, len(self.data), 0)


@dataclass(slots=True)
class RunWriter:
    """Makes the blocks of one run out of an Ingest that is laid out.

    Pull ``segments``, ``index`` and ``graph`` in turn.

    Afterwards ``record`` and ``entries`` say what a manifest needs.
    """

    ingest: Ingest
    pool: PoolId
    hash_kind: HashKind
    first_serial: int
    level: int = 0
    limits: Limits = DEFAULT
    entries: list[SegmentEntry] = field(default_factory=list)
    _index: list[tuple[bytes, BlockRef]] = field(default_factory=list)
    _graph: list[BlockRef] = field(default_factory=list)

    def segments(self, count: int) -> Iterator[NewBlock]:
        """Make segment blocks 0 to count - 1, each behind its part blocks."""
        for number in range(count):
            objects, length, entry_bytes, kind, _, alone = self.ingest.segment_facts(number)
            parts: list[NewBlock] = []
            if alone:
                for block in self._parts(number, entry_bytes):
                    parts.append(NewBlock(block.id, b""))  # only the id is kept
                    yield block
            part_ids = b"".join(part.id for part in parts)
            header = new_header(
                BlockKind.SEGMENT, self.hash_kind, self.pool, length + len(part_ids)
            )
            data = self.ingest.segment(number, header, part_ids)
            block = NewBlock(*named(data))
            flags = (ALONE if alone else 0) | (
                EXTERNAL_BASES if self.ingest.segment_facts(number)[4] else 0
            )
            self.entries.append(
                SegmentEntry(
                    ref=block.ref,
                    serial=self.first_serial + number,
                    objects=objects,
                    entry_bytes=entry_bytes,
                    type=kind,
                    flags=flags,
                )
            )
            yield block

    def _parts(self, number: int, entry_bytes: int) -> Iterator[NewBlock]:
        room = self.limits.block_target_bytes - HEADER_SIZE
        for start in range(0, entry_bytes, room):
            payload = self.ingest.alone_entry(number, start, room)
            yield self._block(BlockKind.PART, payload)

    def index(self) -> Iterator[NewBlock]:
        """Make the index pieces."""
        ids, positions = self.ingest.index()
        for key, block in _index_pieces(ids, positions, self.pool, self.hash_kind, self.limits):
            self._index.append((key, block.ref))
            yield block

    def graph(self, stream: bytes) -> Iterator[NewBlock]:
        """Cut the graph stream into blocks."""
        room = self.limits.block_target_bytes - HEADER_SIZE
        if len(stream) >= GRAPH_PACKED_BYTES:
            stream = _graph.pack_stream(stream)
        for start in range(0, len(stream), room):
            block = self._block(BlockKind.GRAPH, stream[start : start + room])
            self._graph.append(block.ref)
            yield block

    def _block(self, kind: BlockKind, payload: bytes) -> NewBlock:
        return _new_block(kind, self.hash_kind, self.pool, payload)

    def record(self) -> RunRecord:
        """Return the run's record for the manifest."""
        commits, tags, trees, blobs = self.ingest.counts_by_type
        return RunRecord(
            level=self.level,
            first_serial=self.first_serial,
            segments=len(self.entries),
            commits=commits,
            tags=tags,
            trees=trees,
            blobs=blobs,
            index=tuple(self._index),
            graph=tuple(self._graph),
        )


def index_blocks(
    ids: Sequence[ObjectId], pool: PoolId, hash_kind: HashKind, limits: Limits
) -> Iterator[tuple[bytes, NewBlock]]:
    """Make the index pieces of a run whose objects, by position, have these ids; each with its first key."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    positions = struct.pack(f"<{len(order)}I", *order)
    sorted_ids = b"".join(ids[at] for at in order)
    return _index_pieces(sorted_ids, positions, pool, hash_kind, limits)


def _index_pieces(
    ids: bytes, positions: bytes, pool: PoolId, hash_kind: HashKind, limits: Limits
) -> Iterator[tuple[bytes, NewBlock]]:
    size = hash_kind.size
    total = len(positions) // 4
    # A row takes 12 bits of its key, a position of 32 bits at most and its part of a bucket.
    room = (limits.block_target_bytes - HEADER_SIZE - INDEX_SPARE_BYTES) // INDEX_ROW_BYTES
    pieces = max(1, -(-total // room))
    each = -(-total // pieces) if total else 0
    for start in range(0, total, each or 1):
        stop = min(start + each, total)
        some = memoryview(ids)[start * size : stop * size]
        payload = _segment.index_payload(some, memoryview(positions)[4 * start : 4 * stop], size)
        yield bytes(some[:8]), _new_block(BlockKind.INDEX, hash_kind, pool, payload)


def _new_block(kind: BlockKind, hash_kind: HashKind, pool: PoolId, payload: bytes) -> NewBlock:
    data = new_header(kind, hash_kind, pool, HEADER_SIZE + len(payload)) + payload
    return NewBlock(*named(data))
