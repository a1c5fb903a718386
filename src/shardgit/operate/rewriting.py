"""Stored entries of consecutive runs, resolved again and laid out as one run. What settle, compact and gc share.

The entries go as one pack through the same kernel as an import: every id is computed anew, so a run that is written
anew is also a run that was verified.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import tempfile
from array import array
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

from shardgit import _segment
from shardgit.pool.manifest import ALONE
from shardgit.service.incoming import HOPS_MAX, resolve_thin
from shardgit.service.resolving import new_ingest, spills

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shardgit._layout import Ingest
    from shardgit.oid import ObjectId
    from shardgit.pool.view import PlacedRun, PlacedSegment, PoolView
    from shardgit.service.store import Store

MEMORY_BYTES = 32 << 20  # of entries held at once; more go through a file
LEVEL_0_BYTES = 8 << 20  # a run of up to so many bytes is of level 0, of up to 8 times as many of 1
LEVEL_MAX = 12
THREADS_MAX = 32  # an ingest has room for the edges of 64 threads: those that resolve, and those that choose bases


def level_of(size: int) -> int:
    """Return the level of a run of so many bytes."""
    level = 0
    while size > LEVEL_0_BYTES << (3 * level) and level < LEVEL_MAX:
        level += 1
    return level


@contextmanager
def merged(
    store: Store,
    view: PoolView,
    runs: Sequence[PlacedRun],
    *,
    bases_max_bytes: int,
    keep: bytes | None = None,
    choose: Callable[[Ingest], None] | None = None,
    more: Sequence[int] = (),
) -> Iterator[tuple[Ingest, int, bytes]]:
    """Resolve and lay out the objects of consecutive runs; gives the ingest, its segments and its graph stream.

    ``keep`` is a bitset over pool positions: objects of the runs that it lacks are left out, and deltas on what
    it lacks, inside the runs or outside, are written whole. ``choose`` may give the objects other bases before they
    are laid out; ``more`` are positions of objects that these may be.
    Errors: LimitExceeded when bases outside the runs take more than ``bases_max_bytes``.
    """
    limits = store.limits
    with _entries(store, view, runs) as (pack, offsets):
        scratch = store.scratch if spills([pack]) else None
        ingest = new_ingest(view.hash_kind, limits, scratch=scratch)
        if choose is not None:
            ingest.note_names()
        ingest.scan(pack, offsets)
        own = [range(run.start, run.start + run.record.objects) for run in runs]

        def elsewhere(ids: Sequence[ObjectId]) -> list[int]:
            # What is merged is not a base from outside, though the pool has it still.
            return [-1 if any(at in span for span in own) else at for at in view.positions(ids)]

        threads = min(store.workers.threads, THREADS_MAX)
        room = replace(limits, thin_bases_max_bytes=bases_max_bytes)
        resolve_thin(ingest, view, elsewhere, threads=threads, limits=room, keep=keep, more=more)
        if keep is not None:
            _leave_out(ingest, view, runs, keep)
        if choose is not None:
            choose(ingest)
        segments = ingest.layout(
            target=limits.block_target_bytes,
            most=limits.block_max_bytes,
            count_most=limits.segment_objects_max,
            hops_most=HOPS_MAX,
        )
        outside = ingest.externals()
        graph = view.graph()
        generations = {
            oid: graph.generation_at(at)
            for oid, at in zip(outside, view.positions(outside), strict=True)  # type: ignore[arg-type]
            if at >= 0 and graph.type_at(at) == 1
        }
        stream = ingest.graph(generations)
        yield ingest, segments, stream


def _leave_out(ingest: Ingest, view: PoolView, runs: Sequence[PlacedRun], keep: bytes) -> None:
    """Take the objects that ``keep`` lacks out of the ingest."""
    size = view.hash_kind.size
    gone: set[bytes] = set()
    for segment in _segments(view, runs):
        at = segment.base
        count = segment.entry.objects
        if _segment.range_count(keep, at, count) == count:
            continue
        flat = view.use_segment(segment, lambda block: _segment.ids_of(block, size))
        gone.update(
            flat[number * size : (number + 1) * size]
            for number in range(count)
            if (at + number) >> 3 >= len(keep)
            or not keep[(at + number) >> 3] >> ((at + number) & 7) & 1
        )
    if not gone:
        return
    flat = ingest.sorted_ids()
    ranks = bytearray(len(flat) // size)
    for rank in range(len(ranks)):
        if flat[rank * size : (rank + 1) * size] in gone:
            ranks[rank] = 255  # nobody has it: deltas on it are written whole
    ingest.drop(ranks)


def _segments(view: PoolView, runs: Sequence[PlacedRun]) -> list[PlacedSegment]:
    """Return the segments of runs by position."""
    spans = [range(run.start, run.start + run.record.objects) for run in runs]
    return [
        segment
        for span in spans
        for segment in sorted(
            (one for one in view.segments if one.base in span), key=lambda one: one.base
        )
    ]


@contextmanager
def _entries(
    store: Store, view: PoolView, runs: Sequence[PlacedRun]
) -> Iterator[tuple[bytes | mmap.mmap, array[int]]]:
    """Give the stored entries of runs as one pack, and where they start in it."""
    segments = _segments(view, runs)
    total = sum(segment.entry.entry_bytes for segment in segments)
    with tempfile.TemporaryFile(dir=store.scratch) as file:
        offsets = _write_pack(file, view, segments)
        if total <= MEMORY_BYTES:
            file.seek(0)
            yield file.read(), offsets
        else:
            # Not closed here: the ingest over it may live a little longer.
            yield mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), offsets


def _write_pack(file: BinaryIO, view: PoolView, segments: Sequence[PlacedSegment]) -> array[int]:
    size = view.hash_kind.size
    digest = hashlib.new(view.hash_kind.git_name, usedforsecurity=False)
    count = sum(segment.entry.objects for segment in segments)
    head = b"PACK" + struct.pack(">II", 2, count)
    file.write(head)
    digest.update(head)
    at = len(head)
    offsets: array[int] = array("Q")

    def cut(block: memoryview) -> tuple[bytes, list[int]]:
        start, end = _segment.entries_span(block, size)
        return bytes(block[start:end]), _segment.offsets_of(block, size)

    for segment in segments:
        if segment.entry.flags & ALONE:
            offsets.append(at)
            for part in view.parts(segment):
                file.write(part)
                digest.update(part)
                at += len(part)
            continue
        entries, starts = view.use_segment(segment, cut)
        offsets.extend(at + start for start in starts)
        file.write(entries)
        digest.update(entries)
        at += len(entries)
    file.write(digest.digest())
    file.flush()
    return offsets
