"""A request that misses something looks whether other nodes have it, once, and only then."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from shardgit.errors import NotFound, Unavailable
from shardgit.http.app import GitHttp, begun

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Journal:
    """Counts who asks it; with ``news`` it shows more afterwards."""

    def __init__(self, *, news: bool, away: bool = False) -> None:
        self.news, self.away = news, away
        self.asked = 0
        self.at = 1

    def revision(self) -> int:
        return self.at

    async def fresh(self, *, stale_ok: bool) -> None:
        assert stale_ok
        self.asked += 1
        if self.away:
            raise Unavailable("journal does not answer")
        self.at += self.news


class Edge:
    """What of GitHttp looks again."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.reads = 0

    async def look(self, *, works_from: int) -> str:
        async def read() -> str:
            self.reads += 1
            if self.reads < works_from:
                raise NotFound("not there")
            return "found"

        return await GitHttp._looking_again(cast("GitHttp", self), read)


async def test_what_is_there_is_read_without_a_question() -> None:
    edge = Edge(Journal(news=True))
    assert await edge.look(works_from=1) == "found"
    assert (edge.reads, edge.journal.asked) == (1, 0)


async def test_what_is_missing_is_looked_for_once_more_when_others_had_news() -> None:
    edge = Edge(Journal(news=True))
    assert await edge.look(works_from=2) == "found"
    assert (edge.reads, edge.journal.asked) == (2, 1)
    edge = Edge(Journal(news=True))
    with pytest.raises(NotFound):
        await edge.look(works_from=3)
    assert (edge.reads, edge.journal.asked) == (2, 1)


async def test_without_news_nothing_is_read_again() -> None:
    edge = Edge(Journal(news=False))
    with pytest.raises(NotFound):
        await edge.look(works_from=2)
    assert (edge.reads, edge.journal.asked) == (1, 1)


async def test_a_source_that_has_begun_yields_all_of_it_and_is_closed() -> None:
    closed: list[str] = []

    async def source(*pieces: bytes) -> AsyncGenerator[bytes, None]:
        try:
            for piece in pieces:
                if piece == b"bad":
                    raise NotFound("not there")
                yield piece
        finally:
            closed.append("closed")

    assert [piece async for piece in await begun(lambda: source(b"a", b"b"))] == [b"a", b"b"]
    assert [piece async for piece in await begun(source)] == []
    with pytest.raises(NotFound):
        await begun(lambda: source(b"bad"))
    left = await begun(lambda: source(b"a", b"b", b"c"))
    assert await anext(left) == b"a"
    await left.aclose()
    assert closed == ["closed"] * 4
    late = await begun(lambda: source(b"a", b"bad"))
    with pytest.raises(NotFound):
        [piece async for piece in late]
