"""What a fetch sends: the objects that wants reach, haves do not, and filters let pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardgit import _segment
from shardgit._bits import common, union
from shardgit._graph import Walk, only_types, positions_of, split_within, trees_of
from shardgit.graph.closure import bit, bits_of, closure, finish, levels
from shardgit.graph.shallow import Boundary
from shardgit.graph.sparse import Patterns, sparse_blobs
from shardgit.objects import ObjectType
from shardgit.protocol.filter_spec import Filter, FilterKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from shardgit.pool.view import PoolView

BORDER_MAX = 64  # trees of haves that are no border: they only make a pack smaller
COMMITS = 1 << ObjectType.COMMIT
TREES = 1 << ObjectType.TREE
BLOBS = 1 << ObjectType.BLOB
TAGS = 1 << ObjectType.TAG
EVERYWHERE = Boundary()


@dataclass(frozen=True, slots=True)
class Sieve:
    """Filters, and the patterns of those that are sparse, by their names."""

    filters: tuple[Filter, ...] = ()
    patterns: Mapping[bytes, Patterns] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Tips:
    """Positions by type; a tag stands for itself and for what it names in the end."""

    commits: list[int]
    tags: list[int]
    others: list[int]  # trees and blobs


def selection(
    view: PoolView,
    wants: Iterable[int],
    haves: Iterable[int],
    *,
    boundary: Boundary = EVERYWHERE,
    sieve: Sieve | None = None,
    whole: bytes | None = None,
    had: bytes | None = None,
) -> tuple[bytes, bytes]:
    """Return bitsets (what is to be sent, what is surely with the client).

    Without filters the first set never lacks an object that the client needs; what it holds too much is at most what
    a shallow client has from elsewhere. Trees and blobs that are wanted by id are in it even if the haves reach them:
    a client whose clone was filtered may lack them.

    ``whole``, the closure of wants, spares a walk when there are neither haves nor a boundary; ``had``, that of haves,
    spares one when the client's history ends nowhere.
    """
    graph = view.graph()
    want, have = _tips(view, wants), _tips(view, haves)
    reached = [*have.commits, *have.tags, *have.others]
    known = b""
    if reached and not boundary.client:
        known = closure(view, reached) if had is None else had
    fresh: Sequence[int] | None = None
    if boundary:
        fresh, known = _fresh(view, want, have, boundary, known)
        chosen = _reached(view, want, fresh, known)
    elif known:
        walk = Walk(graph, known)
        walk.mark([*want.commits, *want.tags])
        chosen = union(finish(walk, view), closure(view, want.others))
    else:
        chosen = whole or closure(view, [*want.commits, *want.tags, *want.others])
    if not sieve or not sieve.filters:
        return chosen, known
    if fresh is None:
        fresh = positions_of(only_types(graph, chosen, COMMITS))
    trees = trees_of(graph, fresh)
    # As in git's answer to a clone, a tree is not asked for by itself when a commit that is sent has it as its own.
    alone = list(set(want.others).difference(trees))
    kept = _sifted(view, chosen, sieve, trees=trees, alone=alone, known=known)
    asked = bits_of([*want.commits, *want.tags, *alone], view.objects)
    # Which trees and blobs such a client has is its secret: none may be the base of a delta.
    return union(kept, common(asked, chosen)), b""


def _tips(view: PoolView, tips: Iterable[int]) -> _Tips:
    graph = view.graph()
    found = _Tips([], [], [])
    for tip in tips:
        at = tip
        while at >= 0 and graph.type_at(at) == ObjectType.TAG:
            found.tags.append(at)
            at = graph.target_at(at)
        if at >= 0:
            (found.commits if graph.type_at(at) == ObjectType.COMMIT else found.others).append(at)
    return found


def _fresh(
    view: PoolView, want: _Tips, have: _Tips, boundary: Boundary, known: bytes
) -> tuple[list[int], bytes]:
    """Return (commits to be sent, what the client surely has).

    Of the trees of a shallow client only those of commits at the border are looked into. ``known`` is what is known of
    one whose history ends nowhere.
    """
    graph = view.graph()
    ended = boundary.unshallow
    beyond = [at for commit in ended for at in graph.parents_at(commit) if at >= 0]
    wants, haves = [*want.commits, *beyond], [*have.commits, *ended]
    fresh, border = split_within(graph, wants, haves, boundary.stops, boundary.client)
    if not boundary.client:
        return fresh, known
    # A client may say of commits that it never got that they end its history.
    doubtful, _ = split_within(graph, ended, have.commits, ended, boundary.client)
    sure = {*border, *set(ended).difference(doubtful)}
    had = Walk(graph)
    had.mark_alone([*sure, *have.commits, *have.tags])
    had.mark(trees_of(graph, {*sure, *have.commits[:BORDER_MAX]}))
    had.mark(have.others)
    return fresh, finish(had, view)


def _reached(view: PoolView, want: _Tips, fresh: Sequence[int], known: bytes) -> bytes:
    graph = view.graph()
    walk = Walk(graph, known) if known else Walk(graph)
    walk.mark_alone(fresh)
    walk.mark(trees_of(graph, fresh))
    walk.mark_alone(tag for tag in want.tags if not bit(known, tag))
    if not known:
        walk.mark(want.others)
        return finish(walk, view)
    chosen = finish(walk, view)
    return union(chosen, closure(view, want.others)) if want.others else chosen


def _sifted(
    view: PoolView,
    chosen: bytes,
    sieve: Sieve,
    *,
    trees: Sequence[int],
    alone: Sequence[int],
    known: bytes,
) -> bytes:
    """Return what every filter lets pass."""
    graph = view.graph()
    kept = chosen
    for each in sieve.filters:
        if each.kind is FilterKind.BLOB_NONE:
            kept = only_types(graph, kept, COMMITS | TREES | TAGS)
        elif each.kind is FilterKind.OBJECT_TYPE:
            kept = only_types(graph, kept, 1 << each.number)
        elif each.kind is FilterKind.BLOB_LIMIT:
            kept = _without_large(view, kept, each.number)
        else:
            if each.kind is FilterKind.TREE_DEPTH:
                near = levels(view, trees, each.number, have=known)
                if alone:
                    near = union(near, levels(view, (), each.number, above=alone))
            else:
                near = union(
                    only_types(graph, kept, TREES),
                    sparse_blobs(view, sieve.patterns[each.name], trees, alone),
                )
            kept = union(only_types(graph, kept, COMMITS | TAGS), common(kept, near))
    return kept


def _without_large(view: PoolView, chosen: bytes, limit: int) -> bytes:
    """Return a bitset without blobs of ``limit`` bytes and more."""
    out = bytearray(chosen)
    size = view.hash_kind.size
    for segment in view.segments:
        base = segment.base
        if segment.entry.type == ObjectType.BLOB and _segment.range_count(
            out, base, segment.entry.objects
        ):
            view.use_segment(
                segment,
                lambda block, base=base: _segment.drop_large(block, size, base, out, limit),  # type: ignore[misc]
            )
    return bytes(out)
