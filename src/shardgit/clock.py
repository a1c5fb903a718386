"""The time, where it decides what is stored or kept: a simulation puts its own clock in its place."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock(Protocol):
    """What tells the time and lets it pass."""

    def now_ms(self) -> int:
        """Return milliseconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some moment; never less than before."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return ``seconds`` later."""
        ...


class _SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


_clock: Clock = _SystemClock()


def now_ms() -> int:
    """Return milliseconds since 1970."""
    return _clock.now_ms()


def monotonic() -> float:
    """Return seconds since some moment; never less than before."""
    return _clock.monotonic()


def sleep(seconds: float) -> None:
    """Return ``seconds`` later; for threads, not for the event loop."""
    _clock.sleep(seconds)


@contextmanager
def replaced(clock: Clock) -> Iterator[None]:
    """Let another clock tell the time of this process."""
    global _clock  # noqa: PLW0603
    before, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = before
