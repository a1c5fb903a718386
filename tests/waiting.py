"""Waiting for what must come true: as long as a busy machine may need, which judges no speed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_S = 120.0


def until(true: Callable[[], object], *, seconds: float = WAIT_S) -> None:
    """Return when something has come true, AssertionError when it does not."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
