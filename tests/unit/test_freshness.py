"""One question to etcd for all who wait, never one that was asked before they came; trouble is heard by all."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from waiting import until

from shardgit.errors import ShardgitError, Unavailable
from shardgit.journal import freshness
from shardgit.journal.freshness import Freshness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Journal:
    """etcd and the replica: questions are answered when the test says so, or by the thread at once."""

    def __init__(self) -> None:
        self.revision = 1
        self.away = False
        self.shows = True
        self.asked: list[Callable[[int | Exception], None]] = []
        self.asked_by_thread = 0

    def ask(self) -> int:
        self.asked_by_thread += 1
        if self.away:
            raise Unavailable("away")
        return self.revision

    def ask_soon(self, answer: Callable[[int | Exception], None]) -> None:
        self.asked.append(answer)

    def when_applied(
        self, revision: int, answer: Callable[[bool], None], *, timeout_s: float
    ) -> None:
        assert revision <= self.revision
        assert timeout_s == 3
        answer(self.shows)


class Caller:
    """Waits for an answer."""

    def __init__(self, asked: Freshness) -> None:
        self.came = threading.Event()
        self.error: ShardgitError | None = None
        asked.soon(self.hear)

    def hear(self, error: ShardgitError | None) -> None:
        assert not self.came.is_set()
        self.error = error
        self.came.set()

    def waits(self) -> ShardgitError | None:
        assert self.came.wait(10)
        return self.error


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def asked(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Freshness]:
    monkeypatch.setattr(freshness, "AWAY_S", 0.01)
    made = Freshness(journal.ask, journal.ask_soon, journal, timeout_s=3)  # type: ignore[arg-type]
    yield made
    made.close()


def test_who_comes_while_a_question_is_under_way_waits_for_the_next(
    journal: Journal, asked: Freshness
) -> None:
    first = Caller(asked)
    assert len(journal.asked) == 1
    others = [Caller(asked) for _ in range(3)]
    assert len(journal.asked) == 1
    journal.asked[0](1)
    assert first.waits() is None
    assert not any(one.came.is_set() for one in others)
    assert len(journal.asked) == 2
    journal.asked[1](1)
    assert [one.waits() for one in others] == [None] * 3
    assert len(journal.asked) == 2
    assert not asked.is_away
    assert not journal.asked_by_thread


def test_a_question_that_goes_wrong_is_asked_again_by_the_thread(
    journal: Journal, asked: Freshness
) -> None:
    first = Caller(asked)
    behind = Caller(asked)
    journal.asked[0](Unavailable("member is gone"))
    assert first.waits() is None
    assert behind.waits() is None
    assert journal.asked_by_thread
    assert not asked.is_away
    again = Caller(asked)
    until(lambda: len(journal.asked) >= 2)  # the thread may be about to send it
    journal.asked[-1](1)
    assert again.waits() is None


def test_while_etcd_is_away_all_hear_it_and_the_thread_sees_it_come_back(
    journal: Journal, asked: Freshness
) -> None:
    journal.away = True
    first = Caller(asked)
    journal.asked[0](Unavailable("member is gone"))
    assert isinstance(first.waits(), Unavailable)
    assert asked.is_away
    assert isinstance(Caller(asked).waits(), Unavailable)
    assert len(journal.asked) == 1
    journal.away = False
    until(lambda: not asked.is_away)


def test_a_replica_that_does_not_follow_is_away_until_it_does(
    journal: Journal, asked: Freshness
) -> None:
    journal.shows = False
    first = Caller(asked)
    journal.asked[0](1)
    assert isinstance(first.waits(), Unavailable)
    assert asked.is_away
    journal.shows = True
    until(lambda: not asked.is_away)


def test_what_cannot_be_sent_is_asked_by_the_thread(
    journal: Journal, asked: Freshness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsent(answer: Callable[[int | Exception], None]) -> None:
        raise Unavailable("etcd wants a token first")

    monkeypatch.setattr(asked, "_ask_soon", unsent)
    assert Caller(asked).waits() is None
    assert Caller(asked).waits() is None
    assert journal.asked_by_thread == 2


def test_who_waits_hears_that_it_is_closed(journal: Journal) -> None:
    made = Freshness(journal.ask, journal.ask_soon, journal, timeout_s=3)  # type: ignore[arg-type]
    under_way, behind = Caller(made), Caller(made)
    made.close()
    assert isinstance(behind.waits(), Unavailable)
    journal.asked[0](Unavailable("client is closed"))
    assert isinstance(under_way.waits(), Unavailable)
    with pytest.raises(Unavailable):
        Caller(made)
