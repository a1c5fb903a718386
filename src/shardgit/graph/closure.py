"""What tips reach in a pool, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit._fastpack import tree_children
from shardgit._graph import Walk
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
    while waiting := walk.run():
        for tree in view.read_positions(waiting):
            children = [ObjectId(oid) for oid in tree_children(tree.data, view.hash_kind.size)]
            walk.expand(view.positions(children))
    if walk.incomplete:
        raise DataLoss("pool lacks an object that a ref reaches", manifest=view.id.hex())
    return walk.bitset()


def closure(view: PoolView, tips: Iterable[int]) -> bytes:
    """Return the bitset over pool positions of all that ``tips`` (positions) reach, themselves included."""
    walk = Walk(view.graph())
    walk.mark(tips)
    return finish(walk, view)


def difference(view: PoolView, wants: Iterable[int], haves: Iterable[int]) -> tuple[bytes, bytes]:
    """Return bitsets (what wants reach and haves do not, what is known to be with the client).

    Costs by the change, not by the history: commits are told apart by painting from both sides, and of the client's
    trees only those of the commits at the border are looked into. What the first set holds too much is at most an
    object that the client has from elsewhere; it never lacks one.
    """
    graph = view.graph()
    wants, haves = list(wants), list(haves)
    if not haves:
        return closure(view, wants), b""
    have_commits, have_tags, have_others = _sorted_out(view, haves)
    want_commits, want_tags, want_others = _sorted_out(view, wants)
    fresh, border = graph.split(want_commits, have_commits)
    had = Walk(graph)
    had.mark_alone([*border, *have_commits, *have_tags])
    had.mark(
        [
            tree
            for commit in {*border, *have_commits[:BORDER_MAX]}
            if (tree := graph.tree_at(commit)) >= 0
        ]
    )
    had.mark(have_others)
    have = finish(had, view)
    walk = Walk(graph, have)
    walk.mark(fresh)
    walk.mark(want_others)
    walk.mark_alone(tag for tag in want_tags if not bit(have, tag))
    return finish(walk, view), have


BORDER_MAX = 64  # trees of haves that are no border: they only make a pack smaller


def bit(bits: bytes, position: int) -> bool:
    """Return whether a bitset holds a position."""
    return position >> 3 < len(bits) and bool(bits[position >> 3] >> (position & 7) & 1)


def _sorted_out(view: PoolView, tips: Iterable[int]) -> tuple[list[int], list[int], list[int]]:
    """Return (commits, tags, trees and blobs): a tag stands for itself and for what it names in the end."""
    graph = view.graph()
    commits: list[int] = []
    tags: list[int] = []
    others: list[int] = []
    for tip in tips:
        at = tip
        while at >= 0 and graph.type_at(at) == 4:
            tags.append(at)
            at = graph.target_at(at)
        if at >= 0:
            (commits if graph.type_at(at) == 1 else others).append(at)
    return commits, tags, others


@dataclass(frozen=True, slots=True)
class Move:
    """What became of a ref: its target before and now, None without."""

    old: ObjectId | None
    new: ObjectId | None


def followed(
    view: PoolView, before: bytes, moves: Iterable[Move], head: ObjectId | None
) -> bytes | None:
    """Return what refs reach after moves, when they reached ``before``; None when a full walk must tell.

    That is so where a ref left something behind that neither its new target nor ``head``, the default
    branch, is known to reach.
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
        if move.new is not None and new < 0:
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
