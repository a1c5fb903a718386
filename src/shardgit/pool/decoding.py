"""Many objects of a pool as messages, read a segment after another."""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

from shardgit._objects import Messages
from shardgit.pool.manifest import ALONE
from shardgit.pool.outside import SHARE_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.oid import ObjectId
    from shardgit.pool.view import PlacedSegment, PoolView


class Decoding:
    """Objects of a pool in the order in which they stand there, as messages of a GetObjectsResponse.

    ``places`` are their positions, -1 for what is answered as absent, in the order of ``ids``. Objects of over
    ``large`` bytes are left out: ``large_places`` has those that were passed so far. Methods run in the calling thread,
    one at a time; a message holds at most ``room`` bytes. Errors: DataLoss as the view's.

    Objects of a segment that are deltas on others' are decoded a share of the bases at a time; a share is let go when
    its objects are made. Between two calls of ``some`` at most SHARE_BYTES of bases are held.
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
        self._segment: PlacedSegment | None = None  # that is being decoded
        self._shares: list[tuple[array[int], dict[bytes, int]]] = []  # of it, that are to come
        self._given: dict[bytes, int] = {}  # the bases that are at hand
        self._given_bytes = 0

    def next(self) -> bytes | None:
        """Return the next message, None behind the last; b"" where much was made and nothing is to be told yet."""
        made = self._made
        if self._absent_told < self._absent_count:
            self._absent_told = made.absent(self._absent, self._absent_told)
            if self._absent_told < self._absent_count:
                return made.take()
        while True:
            if self._segment is None:
                if self._at == len(self._places):
                    return made.take() or None
                self._begin()
            elif not self._view_of().use_segment(self._segment, made.fill):
                return made.take()
            elif self._shares:
                self._turn(self._segment)
            else:
                self._segment = None
                self._given = {}
                self._given_bytes = 0

    def some(self, most: int) -> list[bytes]:
        """Return up to so many messages, none behind the last."""
        if self._given and not self._given_bytes:
            self._give()
        out = list(itertools.islice(iter(self.next, None), most))
        if self._given_bytes > SHARE_BYTES:  # who takes the messages may take long
            self._made.give()
            self._given_bytes = 0
        return out

    def _view_of(self) -> PoolView:
        assert self._view is not None
        return self._view

    def _begin(self) -> None:
        """Turn to the segment of the next place, unless all that is wanted of it is large."""
        view, places, start = self._view_of(), self._places, self._at
        segment = view.segment_at(places[start])
        stop = bisect_left(places, segment.base + segment.entry.objects, start)
        self._at = stop
        if segment.entry.flags & ALONE:
            self.large_places += places[start:stop]
            return
        some = places[start:stop]
        large, missing = self._wanted(segment, some)
        self.large_places += large
        self._segment = segment
        self._given = {}
        self._given_bytes = 0
        if not missing:
            return
        shares = view.base_shares(missing)
        if len(shares) == 1:
            self._given = shares[0]
            self._give()
            return
        share_of = {oid: number for number, share in enumerate(shares) for oid in share}
        parts = [array("q") for _ in shares]
        for place, end in zip(some, self._made.ends(some, 0, len(some)), strict=True):
            parts[share_of[missing[end]] if end >= 0 else 0].append(place)
        self._shares = list(zip(parts, shares, strict=True))
        self._turn(segment)

    def _wanted(self, segment: PlacedSegment, places: array[int]) -> tuple[list[int], list[bytes]]:
        """Say which places of a segment are to be decoded next; returns what Messages.begin does."""

        def begin(block: memoryview) -> tuple[list[int], list[bytes]]:
            return self._made.begin(block, segment.base, places, 0, len(places), self._large)

        return self._view_of().use_segment(segment, begin)

    def _turn(self, segment: PlacedSegment) -> None:
        """Turn to the objects of a segment that the next share of bases is for."""
        places, self._given = self._shares.pop()
        self._wanted(segment, places)
        self._give()

    def _give(self) -> None:
        """Have the bases at hand that are deltas' of the segment."""
        bases = self._view_of().bases(self._given)
        self._given_bytes = sum(map(len, bases.values()))
        self._made.give(bases)
