"""Items that a thread makes ahead of who takes them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from shardgit.workers import ahead

if TYPE_CHECKING:
    from collections.abc import Iterator


def counted(made: list[int], most: int) -> Iterator[int]:
    for number in range(most):
        made.append(number)
        yield number


def running() -> bool:
    return any(thread.name == "shardgit-ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("count", [1, 3, 100])
def test_all_items_come_in_their_order(count: int) -> None:
    with ahead(counted([], 50), count) as items:
        assert list(items) == list(range(50))
    assert not running()


def test_no_more_are_made_than_there_is_room_for() -> None:
    made: list[int] = []
    with ahead(counted(made, 50), 4) as items:
        for number in items:
            # one in hand beyond those that wait, and the room of the one that was just taken
            assert len(made) <= number + 1 + 4 + 1
    assert len(made) == 50


def test_who_leaves_early_ends_the_thread() -> None:
    made: list[int] = []
    with ahead(counted(made, 1_000), 2) as items:
        assert next(items) == 0
    assert not running()
    assert len(made) <= 5


def test_an_error_comes_behind_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("two")

    got = []
    with pytest.raises(ValueError, match="two"), ahead(broken(), 5) as items:
        for item in items:
            got.append(item)
    assert got == [1]
    assert not running()


def test_an_error_of_who_takes_ends_the_thread() -> None:
    with pytest.raises(KeyError), ahead(counted([], 1_000), 2) as items:
        for item in items:
            if item == 7:
                raise KeyError(item)
    assert not running()
