"""Many objects of a pool as messages, read a segment after another."""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

from shardgit._objects import Messages
from shardgit.errors import DataLoss
from shardgit.pool.manifest import ALONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.oid import ObjectId
    from shardgit.pool.view import PlacedSegment, PoolView


class Decoding:
    """Objects of a pool in the order in which they stand there, as messages of a GetObjectsResponse.

    ``places`` are their positions, -1 for what is answered as absent, in the order of ``ids``. Objects of over
    ``large`` bytes are left out: ``large_places`` has those that were passed so far. Methods run in the calling thread,
    one at a time; a message holds at most ``room`` bytes. Errors: DataLoss as the view's.
    """

    def __init__(
        self,
        view: PoolView | None,
        ids: Sequence[ObjectId],
        places: Sequence[int],
        *,
        room: int,
        large: int,
    ) -> None:
        self.large_places: list[int] = []
        self._view = view
        self._large = large
        self._places = array("q", sorted(at for at in places if at >= 0))
        self._absent = b"".join(oid for oid, at in zip(ids, places, strict=True) if at < 0)
        self._absent_told = 0
        size = view.hash_kind.size if view is not None else len(ids[0]) if ids else 20
        self._absent_count = len(self._absent) // size
        self._made = Messages(size, room)
        self._at = 0
        self._segment: PlacedSegment | None = None

    def next(self) -> bytes | None:
        """Return the next message, None behind the last."""
        made = self._made
        if self._absent_told < self._absent_count:
            self._absent_told = made.absent(self._absent, self._absent_told)
            if self._absent_told < self._absent_count:
                return made.take()
        while self._segment is not None or self._at < len(self._places):
            if self._segment is None:
                self._segment = self._begin()
                continue
            if not self._view_of().use_segment(self._segment, made.fill):
                return made.take()
            self._segment = None
        return made.take() or None

    def some(self, most: int) -> list[bytes]:
        """Return up to so many messages, none behind the last."""
        return list(itertools.islice(iter(self.next, None), most))

    def _view_of(self) -> PoolView:
        assert self._view is not None
        return self._view

    def _begin(self) -> PlacedSegment | None:
        """Turn to the segment of the next place; None where all that is wanted of it is large."""
        view, places, start = self._view_of(), self._places, self._at
        segment = view.segment_at(places[start])
        stop = bisect_left(places, segment.base + segment.entry.objects, start)
        self._at = stop
        if segment.entry.flags & ALONE:
            self.large_places += places[start:stop]
            return None
        bases: dict[bytes, bytes] | None = None
        while True:

            def begin(
                block: memoryview, bases: dict[bytes, bytes] | None = bases
            ) -> tuple[list[int], list[bytes]]:
                return self._made.begin(
                    block, segment.base, places, start, stop, self._large, bases
                )

            large, missing = view.use_segment(segment, begin)
            if not missing:
                self.large_places += large
                return segment
            if bases is not None:
                raise DataLoss("delta base is not in the pool", oid=missing[0].hex())
            bases = view.bases(missing)
