"""Fences: conditions of all that a thread commits while it has a turn, or a lease."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.journal.interface import Compare

_STANDING: ContextVar[tuple[Compare, ...]] = ContextVar("fences", default=())


@contextmanager
def fenced(*compares: Compare) -> Iterator[None]:
    """Let every commit of this thread compare rows, too, until the block is left; others' are as they were."""
    token = _STANDING.set((*_STANDING.get(), *compares))
    try:
        yield
    finally:
        _STANDING.reset(token)


def standing() -> tuple[Compare, ...]:
    """Return the conditions of this thread's fences."""
    return _STANDING.get()
