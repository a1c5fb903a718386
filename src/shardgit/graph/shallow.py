"""Where a shallow client's history ends, and where it shall end: as git's upload-pack decides it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit._graph import commits_since, commits_within, depth_to, edge_of, split_within
from shardgit.errors import InvalidArgument
from shardgit.objects import ObjectType
from shardgit.pool.grafts import Grafts
from shardgit.protocol.deepening import INFINITE_DEPTH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit._graph import PoolGraph
    from shardgit.pool.view import PoolView
    from shardgit.protocol.deepening import Deepening

_MOST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Boundary:
    """Commits (positions) whose parents the client lacks.

    ``client`` as it says; ``shallow`` end its history from now on and did not before, ``unshallow``
    of the client's do not any more.
    """

    client: tuple[int, ...] = ()
    shallow: tuple[int, ...] = ()
    unshallow: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        """Whether the client's history ends anywhere but at its roots."""
        return bool(self.client or self.shallow)

    @property
    def stops(self) -> tuple[int, ...]:
        """Commits beyond which nothing is sent for what reaches them."""
        return self.client + self.shallow


def moved(
    graph: PoolGraph,
    wants: Sequence[int],
    client: Sequence[int],
    asked: Deepening,
    without: Sequence[int],
    *,
    grafts: Sequence[int] = (),
) -> Boundary:
    """Return where the boundary moves to.

    ``wants``, ``client`` and ``without`` (what ``asked.without`` names) are commits, and so are ``grafts``: those at
    which the repository's own history ends. InvalidArgument, in git's words, when no commit is left.
    """
    given = tuple(dict.fromkeys(client))
    if not asked.asked:
        return Boundary(given)
    if asked.depth == INFINITE_DEPTH and not grafts:
        return Boundary(given, (), given)
    if asked.depth == INFINITE_DEPTH:
        inside, ends = commits_within(graph, wants, _MOST)
    elif asked.depth:
        depth = asked.depth
        if asked.relative:
            # Counted from the client's nearest boundary; without one it has all, and gets all.
            nearest = depth_to(graph, wants, given)
            depth = depth + nearest if nearest else 0
        inside, ends = commits_within(graph, wants, depth) if depth else ([], [])
    else:
        chosen = _chosen(graph, wants, without, asked.since)
        if not chosen:
            raise InvalidArgument("no commits selected for shallow requests")
        ends = edge_of(graph, chosen)
        inside = list(set(chosen).difference(ends))
    if grafts:
        here = set(grafts).intersection(inside)
        ends = [*ends, *(commit for commit in grafts if commit in here)]
        inside = list(set(inside).difference(here))
    known = set(given)
    deep = known.intersection(inside)
    return Boundary(
        given,
        tuple(commit for commit in ends if commit not in known),
        tuple(commit for commit in given if commit in deep),
    )


def reached_grafts(
    graph: PoolGraph, wants: Sequence[int], client: Sequence[int], grafts: Sequence[int]
) -> tuple[int, ...]:
    """Return the grafts that wants reach within a client's history, those of its own boundary left out."""
    reached, _ = split_within(graph, wants, (), client, ())
    inside = set(reached).difference(client)
    return tuple(commit for commit in grafts if commit in inside)


def with_lacking(view: PoolView, tips: Sequence[int]) -> Grafts:
    """Return a view's grafts and the commits that tips reach and of which the pool lacks a parent.

    Some repository's history ended there once: refs of an earlier moment are whole with these.
    """
    if not view.awaited:
        return view.grafts
    graph = view.graph()
    peeled = [graph.peel(tip) for tip in tips]
    commits = [at for at in peeled if at >= 0 and graph.type_at(at) == ObjectType.COMMIT]
    reached = set(split_within(graph, commits, (), (), ())[0])
    ends = [at for at in view.awaited if at in reached]
    return Grafts.of(view.grafts.ids.union(view.ids_at(ends)))


def _chosen(
    graph: PoolGraph, wants: Sequence[int], without: Sequence[int], since: int | None
) -> list[int]:
    """Return the commits that age and refs let pass."""
    oldest = min(since, _MOST) if since else -_MOST
    if without:
        return split_within(graph, wants, without, (), (), oldest)[0]
    return commits_since(graph, wants, oldest)
