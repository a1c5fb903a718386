"""What gc is about to drop from a pool: a bitset for each run, in one row of the journal. See docs/formats/gc.md.

Whoever makes something of a pool reachable compares this row, and deletes it where it relies on what is condemned.
"""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit.blocks.block import HEADER_SIZE, BlockKind, named, new_header, parse_header
from shardgit.errors import BlockCorrupt, DataLoss, JournalCorrupt
from shardgit.formats import check_row
from shardgit.limits import DEFAULT
from shardgit.oid import BlockId, HashKind, PoolId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardgit.blocks.interface import BlockStore
    from shardgit.pool.view import PlacedRun, PlacedSegment, PoolView

VERSION = 1
CONDEMNED = b"Z"  # the table
CONDEMNED_FLAG = 2  # of a block of kind PART
INLINE_BYTES = 64 << 10  # a larger body stands in blocks
BODY_MAX_BYTES = 1 << 30
VIEWS_CACHED = 4
_ROW = struct.Struct("<BBHIQ")
_RUN = struct.Struct("<32sI")


def condemned_key(pool: PoolId) -> bytes:
    """Return the key of what is condemned in a pool."""
    return CONDEMNED + pool


def segments_of(view: PoolView, run: PlacedRun) -> list[PlacedSegment]:
    """Return a run's segments by position."""
    found = []
    at, end = run.start, run.start + run.record.objects
    while at < end:
        segment = view.segment_at(at)
        found.append(segment)
        at = segment.base + segment.entry.objects
    return found


def run_key(view: PoolView, run: PlacedRun) -> bytes:
    """Return what tells a run apart in all manifests: its segments. Equal keys have equal objects in equal order.

    A run whose embedded segments get places of their own has another key where these are born anew.
    """
    names = b"".join(segment.entry.ref.id for segment in segments_of(view, run))
    return blake3(names).digest()


@dataclass(frozen=True, slots=True)
class CondemnedRecord:
    """The row: its body, deflated, or the blocks that hold it."""

    hash_kind: HashKind
    time_ms: int
    body: bytes = b""
    blocks: tuple[BlockId, ...] = ()

    def encode(self) -> bytes:
        """Return the row's value."""
        head = _ROW.pack(VERSION, self.hash_kind, 0, len(self.blocks), self.time_ms)
        return head + b"".join(self.blocks) + self.body

    @classmethod
    def decode(cls, data: bytes) -> CondemnedRecord:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("condemned row", data, VERSION)
        if len(data) < _ROW.size or data[0] != VERSION or data[1] not in (1, 2):
            raise JournalCorrupt("condemned row is off", bytes=len(data))
        _, kind, _, blocks, time_ms = _ROW.unpack_from(data)
        end = _ROW.size + 32 * blocks
        if end > len(data) or (blocks and end != len(data)):
            raise JournalCorrupt("condemned row is cut short", bytes=len(data))
        names = tuple(BlockId(data[at : at + 32]) for at in range(_ROW.size, end, 32))
        return cls(HashKind(kind), time_ms, data[end:], names)


def encode_runs(runs: Mapping[bytes, bytes]) -> bytes:
    """Return the body that says what is condemned: bitsets over run-local positions, by run key."""
    return zlib.compress(b"".join(_RUN.pack(key, len(bits)) + bits for key, bits in runs.items()))


def decode_runs(body: bytes) -> dict[bytes, bytes]:
    """Return what a body says; JournalCorrupt when it is off."""
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(body, BODY_MAX_BYTES)
    except zlib.error as cause:
        raise JournalCorrupt("condemned set does not inflate") from cause
    if not inflate.eof or inflate.unused_data:
        raise JournalCorrupt("condemned set is cut short")
    runs: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        if len(data) - at < _RUN.size:
            raise JournalCorrupt("condemned set is cut short")
        key, size = _RUN.unpack_from(data, at)
        at += _RUN.size
        if size > len(data) - at:
            raise JournalCorrupt("condemned set is cut short")
        runs[key] = data[at : at + size]
        at += size
    return runs


def new_record(
    runs: Mapping[bytes, bytes], *, pool: PoolId, hash_kind: HashKind, time_ms: int
) -> tuple[CondemnedRecord, list[tuple[BlockId, bytes]]]:
    """Return the record of what is condemned, and the blocks to be put before it."""
    body = encode_runs(runs)
    if len(body) <= INLINE_BYTES:
        return CondemnedRecord(hash_kind, time_ms, body), []
    room = DEFAULT.block_target_bytes - HEADER_SIZE
    blocks = []
    for at in range(0, len(body), room):
        some = body[at : at + room]
        size = HEADER_SIZE + len(some)
        head = new_header(BlockKind.PART, hash_kind, pool, size, flags=CONDEMNED_FLAG)
        blocks.append(named(head + some))
    names = tuple(name for name, _ in blocks)
    return CondemnedRecord(hash_kind, time_ms, blocks=names), blocks


class Condemned:
    """What is condemned in a pool, as one revision of its row says."""

    def __init__(self, record: CondemnedRecord, revision: int, blocks: BlockStore) -> None:
        self.record = record
        self.revision = revision
        self._blocks = blocks
        self._runs: dict[bytes, bytes] | None = None
        self._bits: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = Lock()

    def runs(self) -> dict[bytes, bytes]:
        """Return the bitsets by run key. Errors: DataLoss when a block is missing."""
        with self._lock:
            if self._runs is None:
                self._runs = decode_runs(self._body())
            return self._runs

    def _body(self) -> bytes:
        body = self.record.body
        for name in self.record.blocks:
            (data,) = self._blocks.get_many_sync([name])
            if data is None:
                raise DataLoss("block of a condemned set is missing", block=name.hex())
            if parse_header(data, kind=BlockKind.PART).flags != CONDEMNED_FLAG:
                raise BlockCorrupt("block is none of a condemned set", block=name.hex())
            body += data[HEADER_SIZE:]
        return body

    def bits(self, view: PoolView) -> bytes:
        """Return the bitset over a view's positions. Runs that others took the place of are not condemned any more."""
        runs = self.runs()
        with self._lock:
            if (known := self._bits.get(view.id)) is not None:
                return known
        found = 0
        for run in view.runs:
            bits = runs.get(run_key(view, run))
            if bits is not None:
                found |= int.from_bytes(bits, "little") << run.start
        made = found.to_bytes((view.objects + 7) // 8 + 1, "little")
        with self._lock:
            self._bits[view.id] = made
            while len(self._bits) > VIEWS_CACHED:
                self._bits.popitem(last=False)
        return made
