"""What tips reach in a pool, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit._fastpack import tree_children
from shardgit._graph import LevelWalk, Walk
from shardgit.errors import DataLoss
from shardgit.oid import ObjectId

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardgit._graph import PoolGraph
    from shardgit.pool.view import PoolView


def finish(walk: Walk, view: PoolView) -> bytes:
    """Run a walk to its end, reading the trees that it asks for; returns its bitset.

    DataLoss when it reached an object that the pool lacks.
    """
    _read(walk, view)
    return walk.bitset()


def _read(walk: Walk | LevelWalk, view: PoolView) -> None:
    while waiting := walk.run():
        for tree in view.read_positions(waiting):
            children = [ObjectId(oid) for oid in tree_children(tree.data, view.hash_kind.size)]
            walk.expand(view.positions(children))
    if walk.incomplete:
        raise DataLoss("pool lacks an object that a ref reaches", manifest=view.id.hex())


def closure(view: PoolView, tips: Iterable[int]) -> bytes:
    """Return the bitset over pool positions of all that ``tips`` (positions) reach, themselves included."""
    walk = Walk(view.graph())
    walk.mark(tips)
    return finish(walk, view)


def levels(
    view: PoolView,
    trees: Iterable[int],
    depth: int,
    *,
    above: Iterable[int] = (),
    have: bytes = b"",
) -> bytes:
    """Return the bitset of trees and blobs that stand less than ``depth`` levels below ``trees``, which are at level 0.

    ``above`` are a level higher. What ``have`` holds is left out.
    """
    walk = LevelWalk(view.graph(), have)
    walk.start(above)
    walk.descend()
    for level in range(depth):
        _read(walk, view)
        if level == 0:
            walk.start(trees)
        if not walk.descend():
            break
    return walk.bitset()


def bit(bits: bytes, position: int) -> bool:
    """Return whether a bitset holds a position."""
    return position >> 3 < len(bits) and bool(bits[position >> 3] >> (position & 7) & 1)


def bits_of(positions: Iterable[int], objects: int) -> bytes:
    """Return the bitset of positions in a pool of so many objects."""
    out = bytearray((objects + 7) >> 3)
    for at in positions:
        out[at >> 3] |= 1 << (at & 7)
    return bytes(out)


@dataclass(frozen=True, slots=True)
class Move:
    """What became of a ref: its target before and now, None without."""

    old: ObjectId | None
    new: ObjectId | None


CARRIED_MAX = 100_000  # objects that are looked up one by one; with more a walk is cheaper


def carried(before: PoolView, now: PoolView, bits: bytes) -> bytes | None:
    """Return a bitset over positions of ``before`` as one over positions of ``now``, a later manifest of the pool.

    Runs that both begin with keep their positions; the objects behind them are looked up by id. None when they are too
    many. Objects that ``before`` did not have are not in the result.
    """
    same = 0
    for old, new in zip(before.runs, now.runs, strict=False):
        if [ref.id for ref in old.record.graph] != [ref.id for ref in new.record.graph]:
            break
        same = new.start + new.record.objects
    rest = range(same, now.objects)
    if len(rest) > CARRIED_MAX:
        return None
    out = bytearray((now.objects + 7) // 8)
    whole = same >> 3
    out[:whole] = bits[:whole]
    moved = before.positions(now.ids_at(rest))
    kept = [(at, at) for at in range(whole * 8, same)]
    for to, at in [*kept, *zip(rest, moved, strict=True)]:
        if at >= 0 and bit(bits, at):
            out[to >> 3] |= 1 << (to & 7)
    return bytes(out)


def followed(
    view: PoolView, before: bytes, moves: Iterable[Move], head: ObjectId | None
) -> bytes | None:
    """Return what refs reach after moves, when they reached ``before``; None when a full walk must tell.

    That is so where a ref left something behind that neither its new target nor ``head``, the default
    branch, is known to reach, or that gc has dropped since: what that led to may be there still.
    """
    graph = view.graph()
    moves = list(moves)
    ids = [oid for move in moves for oid in (move.old, move.new) if oid is not None]
    place = dict(zip(ids, view.positions(ids), strict=True))
    (top,) = view.positions([head]) if head is not None else (-1,)
    top = graph.peel(top) if top >= 0 else -1
    fresh: list[int] = []
    left: list[tuple[int, int]] = []
    for move in moves:
        new = place[move.new] if move.new is not None else -1
        old = place[move.old] if move.old is not None else -1
        if (move.new is not None and new < 0) or (move.old is not None and old < 0):
            return None
        if new >= 0:
            fresh.append(new)
        if old >= 0 and old != new:
            left.append((old, new))
    walk = Walk(graph, before)
    walk.mark(fresh)
    more = finish(walk, view)
    for old, new in left:
        if graph.type_at(old) != COMMIT:
            return None
        if not any(_reaches(graph, at, old) for at in (new, top)):
            return None
    size = len(more)
    both = int.from_bytes(before, "little") | int.from_bytes(more, "little")
    return both.to_bytes(size, "little")


COMMIT = 1


def _reaches(graph: PoolGraph, descendant: int, ancestor: int) -> bool:
    at = graph.peel(descendant) if descendant >= 0 else -1
    return at >= 0 and graph.type_at(at) == COMMIT and graph.is_ancestor(ancestor, at)
