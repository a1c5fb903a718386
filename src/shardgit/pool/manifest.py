"""The manifest: what a pool consists of. See docs/formats/manifest.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit.blocks.block import (
    HEADER_SIZE,
    BlockKind,
    block_id,
    named,
    new_header,
    parse_header,
)
from shardgit.errors import BlockCorrupt
from shardgit.oid import BlockId, HashKind, PoolId

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MAGIC = b"SGMF"
VERSION = 1
PAGE_FLAG = 1
PAGE_SEGMENTS_MAX = 512
ALONE = 1
EXTERNAL_BASES = 2
_ROOT = struct.Struct("<4sHHQQIIIII28x")
_REF = struct.Struct("<32sII")
_RUN = struct.Struct("<BBHIIIIIIII")
_KEYED = struct.Struct("<8s32sII")
_PAGE_REF = struct.Struct("<32sIII4x")
_PAGE = struct.Struct("<II")
_SEGMENT = struct.Struct("<32sIIIIQBB6x")


@dataclass(frozen=True, slots=True)
class BlockRef:
    """A block: in the store with ``inline`` 0, else embedded in the manifest's root at that offset."""

    id: BlockId
    length: int
    inline: int = 0


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A segment in clone order. ``type`` is 1 commit, 2 tree, 3 blob, 4 tag."""

    ref: BlockRef
    serial: int
    objects: int
    entry_bytes: int
    type: int
    flags: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What one import, push or settle brought."""

    level: int
    first_serial: int
    segments: int
    commits: int
    tags: int
    trees: int
    blobs: int
    index: tuple[tuple[bytes, BlockRef], ...]
    graph: tuple[BlockRef, ...]

    @property
    def objects(self) -> int:
        """Objects of the run."""
        return self.commits + self.tags + self.trees + self.blobs


@dataclass(frozen=True, slots=True)
class Manifest:
    """A pool's manifest with all its pages."""

    hash_kind: HashKind
    generation: int
    next_serial: int
    runs: tuple[RunRecord, ...]
    segments: tuple[SegmentEntry, ...]
    bitmaps: tuple[BlockRef, ...]

    @property
    def objects(self) -> int:
        """Objects of all runs."""
        return sum(run.objects for run in self.runs)

    def blocks(self) -> list[BlockRef]:
        """Return every block that the manifest names directly, pages left out."""
        found = [segment.ref for segment in self.segments]
        for run in self.runs:
            found += [ref for _, ref in run.index]
            found += run.graph
        return found + list(self.bitmaps)


def encode_manifest(
    manifest: Manifest, *, pool: PoolId, embedded: Mapping[BlockId, bytes]
) -> tuple[BlockId, list[tuple[BlockId, bytes]]]:
    """Return (root id, blocks to put): pages, and the root with the blocks of ``embedded`` inside."""
    root, blocks, _ = encode_placed(manifest, pool=pool, embedded=embedded)
    return root, blocks


def encode_placed(
    manifest: Manifest, *, pool: PoolId, embedded: Mapping[BlockId, bytes]
) -> tuple[BlockId, list[tuple[BlockId, bytes]], Manifest]:
    """Return what ``encode_manifest`` does, and the manifest as it is read back: embedded blocks have their places."""
    extra: list[tuple[BlockId, bytes]] = []
    inline: dict[BlockId, bytes] = dict(embedded)
    pages: list[tuple[BlockRef, int]] = []
    # A page may itself be embedded, but its segments' offsets into the root must be known first: embedded blocks are
    # placed behind a root whose size does not depend on them.
    count = -(-len(manifest.segments) // PAGE_SEGMENTS_MAX)
    fixed = HEADER_SIZE + _ROOT.size
    fixed += sum(
        _RUN.size + _KEYED.size * len(run.index) + _REF.size * len(run.graph)
        for run in manifest.runs
    )
    fixed += _PAGE_REF.size * count + _REF.size * len(manifest.bitmaps)
    places: dict[BlockId, int] = {}
    at = _aligned(fixed)
    for block, data in inline.items():
        places[block] = at
        at = _aligned(at + len(data))

    manifest = _placed(manifest, places)
    for start in range(0, len(manifest.segments), PAGE_SEGMENTS_MAX):
        some = manifest.segments[start : start + PAGE_SEGMENTS_MAX]
        payload = _PAGE.pack(len(some), 0) + b"".join(_segment(s.ref, s) for s in some)
        length = HEADER_SIZE + len(payload)
        data = (
            new_header(BlockKind.MANIFEST, manifest.hash_kind, pool, length, flags=PAGE_FLAG)
            + payload
        )
        page, data = named(data)
        if embedded:
            places[page] = at
            inline[page] = data
            pages.append((BlockRef(page, len(data), at), len(some)))
            at = _aligned(at + len(data))
        else:
            extra.append((page, data))
            pages.append((BlockRef(page, len(data)), len(some)))
    out = bytearray(
        _ROOT.pack(
            MAGIC,
            VERSION,
            0,
            manifest.generation,
            manifest.objects,
            len(manifest.runs),
            len(pages),
            len(manifest.bitmaps),
            len(manifest.segments),
            manifest.next_serial,
        )
    )
    for run in manifest.runs:
        out += _RUN.pack(
            run.level,
            0,
            0,
            run.first_serial,
            run.segments,
            run.commits,
            run.tags,
            run.trees,
            run.blobs,
            len(run.index),
            len(run.graph),
        )
        out += b"".join(_KEYED.pack(key, *_parts(ref)) for key, ref in run.index)
        out += b"".join(_REF.pack(*_parts(ref)) for ref in run.graph)
    out += b"".join(_PAGE_REF.pack(*_parts(ref), segments) for ref, segments in pages)
    out += b"".join(_REF.pack(*_parts(ref)) for ref in manifest.bitmaps)
    for block, data in inline.items():
        out += bytes(places[block] - HEADER_SIZE - len(out)) + data
    data = new_header(BlockKind.MANIFEST, manifest.hash_kind, pool, HEADER_SIZE + len(out)) + bytes(
        out
    )
    root, data = named(data)
    return root, [*extra, (root, data)], manifest


def _placed(manifest: Manifest, places: Mapping[BlockId, int]) -> Manifest:
    """Return a manifest whose references say where in the root embedded blocks lie."""
    if not places:
        return manifest

    def placed(ref: BlockRef) -> BlockRef:
        inside = places.get(ref.id)
        return ref if inside is None else BlockRef(ref.id, ref.length, inside)

    runs = [
        replace(
            run,
            index=tuple((key, placed(ref)) for key, ref in run.index),
            graph=tuple(map(placed, run.graph)),
        )
        for run in manifest.runs
    ]
    segments = [
        SegmentEntry(placed(s.ref), s.serial, s.objects, s.entry_bytes, s.type, s.flags)
        for s in manifest.segments
    ]
    return Manifest(
        manifest.hash_kind,
        manifest.generation,
        manifest.next_serial,
        tuple(runs),
        tuple(segments),
        tuple(map(placed, manifest.bitmaps)),
    )


def decode_manifest(data: bytes, *, read: Callable[[BlockRef], bytes]) -> Manifest:
    """Return the manifest in a root block; ``read`` gets its pages (embedded ones are cut out here).

    BlockCorrupt when any byte is off.
    """
    header = parse_header(data, kind=BlockKind.MANIFEST)
    try:
        return _decode(data, header.hash_kind, read)
    except struct.error as cause:
        raise BlockCorrupt("manifest is cut short", bytes=len(data)) from cause


def embedded_block(root: bytes, ref: BlockRef, *, check: bool = True) -> bytes:
    """Cut an embedded block out of the root; BlockCorrupt when it does not match its id (``check``)."""
    if ref.inline < HEADER_SIZE or ref.inline + ref.length > len(root):
        raise BlockCorrupt("embedded block is out of range", block=ref.id.hex())
    data = root[ref.inline : ref.inline + ref.length]
    if check and block_id(data) != ref.id:
        raise BlockCorrupt("embedded block does not match its id", block=ref.id.hex())
    return data


def _decode(data: bytes, hash_kind: HashKind, read: Callable[[BlockRef], bytes]) -> Manifest:
    magic, version, _, generation, objects, n_runs, n_pages, n_bitmaps, n_segments, next_serial = (
        _ROOT.unpack_from(data, HEADER_SIZE)
    )
    if magic != MAGIC or version != VERSION:
        raise BlockCorrupt("manifest has an unknown magic or version", version=version)
    at = HEADER_SIZE + _ROOT.size

    def ref_at(offset: int) -> BlockRef:
        block, length, inline = _REF.unpack_from(data, offset)
        return BlockRef(BlockId(block), length, inline)

    runs: list[RunRecord] = []
    for _ in range(n_runs):
        level, _, _, first, segments, commits, tags, trees, blobs, pieces, graph = _RUN.unpack_from(
            data, at
        )
        at += _RUN.size
        index = []
        for _ in range(pieces):
            index.append((data[at : at + 8], ref_at(at + 8)))
            at += _KEYED.size
        links = []
        for _ in range(graph):
            links.append(ref_at(at))
            at += _REF.size
        runs.append(
            RunRecord(
                level, first, segments, commits, tags, trees, blobs, tuple(index), tuple(links)
            )
        )
    entries: list[SegmentEntry] = []
    for _ in range(n_pages):
        page, (count,) = ref_at(at), struct.unpack_from("<I", data, at + _REF.size)
        at += _PAGE_REF.size
        found = _decode_page(embedded_block(data, page) if page.inline else read(page))
        if len(found) != count:
            raise BlockCorrupt("manifest page has another count", page=page.id.hex())
        entries += found
    bitmaps = []
    for _ in range(n_bitmaps):
        bitmaps.append(ref_at(at))
        at += _REF.size
    manifest = Manifest(
        hash_kind, generation, next_serial, tuple(runs), tuple(entries), tuple(bitmaps)
    )
    if sum(run.segments for run in runs) != n_segments or len(entries) != n_segments:
        raise BlockCorrupt("manifest does not add up", generation=generation)
    serials = {
        serial
        for run in runs
        for serial in range(run.first_serial, run.first_serial + run.segments)
    }
    if (
        manifest.objects != objects
        or {entry.serial for entry in entries} != serials
        or len(serials) != n_segments
        or any(a[0] >= b[0] for run in runs for a, b in zip(run.index, run.index[1:], strict=False))
    ):
        raise BlockCorrupt("manifest does not add up", generation=generation)
    return manifest


def _decode_page(data: bytes) -> list[SegmentEntry]:
    header = parse_header(data, kind=BlockKind.MANIFEST)
    count, _ = _PAGE.unpack_from(data, HEADER_SIZE)
    if (
        not header.flags & PAGE_FLAG
        or len(data) != HEADER_SIZE + _PAGE.size + count * _SEGMENT.size
    ):
        raise BlockCorrupt("manifest page is off", bytes=len(data))
    found = []
    for at in range(HEADER_SIZE + _PAGE.size, len(data), _SEGMENT.size):
        block, length, inline, serial, objects, entry_bytes, kind, flags = _SEGMENT.unpack_from(
            data, at
        )
        if not 1 <= kind <= 4 or not objects:
            raise BlockCorrupt("manifest page names an impossible segment", serial=serial)
        found.append(
            SegmentEntry(
                BlockRef(BlockId(block), length, inline), serial, objects, entry_bytes, kind, flags
            )
        )
    return found


def _segment(ref: BlockRef, entry: SegmentEntry) -> bytes:
    return _SEGMENT.pack(
        *_parts(ref), entry.serial, entry.objects, entry.entry_bytes, entry.type, entry.flags
    )


def _parts(ref: BlockRef) -> tuple[BlockId, int, int]:
    return ref.id, ref.length, ref.inline


def _aligned(at: int) -> int:
    return (at + 7) & ~7


def runs_in_order(runs: Sequence[RunRecord]) -> list[int]:
    """Return the pool position at which each run begins."""
    starts, at = [], 0
    for run in runs:
        starts.append(at)
        at += run.objects
    return starts
