"""Closures that were walked before, so that a walk begins where another ended."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from shardgit._bits import union
from shardgit._graph import Walk, split_within
from shardgit.graph.closure import finish
from shardgit.objects import ObjectType

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardgit.oid import BlockId
    from shardgit.pool.view import PoolView

KEPT_BYTES = 64 << 20
KEPT_EACH_LINE = 16
TRIED_MAX = 4  # each try paints the commits between a kept closure and the tips


@dataclass(frozen=True, slots=True)
class _Kept:
    """The closure of commits and other tips, in a line of views over one manifest."""

    last_recent: int
    tips: tuple[int, ...]
    generation: int  # the highest of its commits
    bits: bytes


class Closures:
    """Closures by the manifest that numbers positions and by grafts, the least used dropped first.

    What a client has grows with the branches that it follows: the closure of yesterday's tip and a walk
    over what came since are the closure of today's.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[tuple[BlockId, bytes], list[_Kept]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()
        self.hits = self.misses = 0  # of closures that had to be walked no further

    @property
    def used_bytes(self) -> int:
        """What is kept."""
        return self._bytes

    def of(self, view: PoolView, tips: Iterable[int]) -> bytes:
        """Return the bitset of all that ``tips`` (positions) reach. Errors: DataLoss."""
        wanted = tuple(sorted(set(tips)))
        kept = self._kept(view)
        for each in kept:
            if each.tips == wanted:
                self.hits += 1
                return union(each.bits, bytes((view.objects + 7) >> 3))
        self.misses += 1
        graph = view.graph()
        commits = [tip for tip in wanted if graph.type_at(tip) == ObjectType.COMMIT]
        start = _start(view, commits, kept)
        walk = Walk(graph, start.bits) if start else Walk(graph)
        walk.mark(wanted)
        bits = finish(walk, view)
        if start:
            bits = union(start.bits, bits)
        highest = max(map(graph.generation_at, commits), default=0)
        self._keep(view, _Kept(view.last_recent, wanted, highest, bits))
        return bits

    def _kept(self, view: PoolView) -> list[_Kept]:
        """Return what was kept of earlier views of the same line."""
        if view.manifest_id is None:
            return []
        with self._lock:
            key = (view.manifest_id, view.grafts.key)
            line = self._lines.get(key, [])
            if line:
                self._lines.move_to_end(key)
            return [each for each in line if each.last_recent <= view.last_recent]

    def _keep(self, view: PoolView, made: _Kept) -> None:
        if view.manifest_id is None:
            return
        with self._lock:
            line = self._lines.setdefault((view.manifest_id, view.grafts.key), [])
            line.insert(0, made)
            self._bytes += len(made.bits)
            while len(line) > KEPT_EACH_LINE:
                self._bytes -= len(line.pop().bits)
            while self._bytes > KEPT_BYTES and len(self._lines) > 1:
                _, dropped = self._lines.popitem(last=False)
                self._bytes -= sum(len(each.bits) for each in dropped)


def _start(view: PoolView, commits: list[int], kept: list[_Kept]) -> _Kept | None:
    """Return a closure that lies within that of ``commits``, the nearest of those that were tried."""
    graph = view.graph()
    highest = max(map(graph.generation_at, commits), default=0)
    near = sorted(
        (each for each in kept if 0 < each.generation <= highest), key=lambda each: -each.generation
    )
    for each in near[:TRIED_MAX]:
        if all(graph.type_at(tip) == ObjectType.COMMIT for tip in each.tips):
            beside, _ = split_within(graph, each.tips, commits, each.tips, ())
            if not beside:
                return each
    return None
