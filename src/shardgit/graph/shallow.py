"""Where a shallow client's history ends, and where it shall end: as git's upload-pack decides it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit._graph import commits_since, commits_within, depth_to, edge_of, split_within
from shardgit.errors import InvalidArgument
from shardgit.protocol.deepening import INFINITE_DEPTH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit._graph import PoolGraph
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
) -> Boundary:
    """Return where the boundary moves to.

    ``wants``, ``client`` and ``without`` (what ``asked.without`` names) are commits. InvalidArgument, in git's words,
    when no commit is left.
    """
    given = tuple(dict.fromkeys(client))
    if not asked.asked:
        return Boundary(given)
    if asked.depth == INFINITE_DEPTH:
        return Boundary(given, (), given)
    if asked.depth:
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
    known = set(given)
    deep = known.intersection(inside)
    return Boundary(
        given,
        tuple(commit for commit in ends if commit not in known),
        tuple(commit for commit in given if commit in deep),
    )


def _chosen(
    graph: PoolGraph, wants: Sequence[int], without: Sequence[int], since: int | None
) -> list[int]:
    """Return the commits that age and refs let pass."""
    oldest = min(since, _MOST) if since else -_MOST
    if without:
        return split_within(graph, wants, without, (), (), oldest)[0]
    return commits_since(graph, wants, oldest)
