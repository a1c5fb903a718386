"""What a long operation tells its caller while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Progress:
    """One stage of an operation and how far it is; ``total`` is None while nobody knows."""

    stage: str
    done: int
    total: int | None
    unit: Literal["objects", "bytes", "blocks", "seconds"]


Report = Callable[[Progress], None]
"""Takes progress; called from the thread that runs the operation, a few times a second at most."""


def silent(_: Progress) -> None:
    """Tell nobody."""
