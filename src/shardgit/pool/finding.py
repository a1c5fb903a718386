"""Many ids looked up at once: a kernel call for each run and segment, none for each id."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

from shardgit._objects import confirm
from shardgit._segment import index_find_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.pool.view import PlacedRun, PoolView

UNSURE = -2  # in place of a position: several rows of an index may be the id's


def find_many(view: PoolView, runs: Sequence[PlacedRun], ids: bytes, out: array[int]) -> list[int]:
    """Write the positions of those of the flat ``ids`` whose ``out`` is -1, from the newest of ``runs`` on.

    Returns the numbers of ids that have to be looked up one by one: their keys are not their own.
    """
    waiting = array("q", (number for number, at in enumerate(out) if at == -1))
    for run in reversed(runs):
        if not waiting:
            break
        index = run.record.index
        pieces = [view.piece(ref, run.root) for _, ref in index]
        firsts = b"".join(key for key, _ in index)
        found = array("q", waiting)
        size = view.hash_kind.size
        left, hits = index_find_all(pieces, firsts, ids, size, run.start, waiting, found, out)
        del waiting[left:]
        for number in _wrong(view, ids, found[:hits], out):
            out[number] = -1
            waiting.append(number)
    # Older runs did not look for these: one by one it is the newest that counts, too.
    unsure = [number for number, at in enumerate(out) if at == UNSURE]
    for number in unsure:
        out[number] = -1
    return unsure


def _wrong(view: PoolView, ids: bytes, found: array[int], out: array[int]) -> list[int]:
    """Return the numbers of those ``found`` ids of which another stands at its place."""
    order = sorted(found, key=out.__getitem__)
    numbers = array("q", order)
    places = array("q", map(out.__getitem__, order))
    wrong: list[int] = []
    at, size = 0, view.hash_kind.size
    while at < len(places):
        segment = view.segment_at(places[at])
        stop = bisect_left(places, segment.base + segment.entry.objects, at)

        def look(
            block: memoryview, base: int = segment.base, at: int = at, stop: int = stop
        ) -> list[int]:
            return confirm(block, size, base, places, numbers, at, stop, ids)

        wrong += view.use_segment(segment, look)
        at = stop
    return wrong
