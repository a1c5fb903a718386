"""The machine's limits as rows of their own: what other suites' shares are of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limits import NAMES
from result import Row, Side

if TYPE_CHECKING:
    from bed import Bed

GENERATED = True


def rows(bed: Bed) -> list[Row]:
    """Measure each limit that this run has not measured yet; the best of three tries."""
    out = []
    for name, unit in NAMES.items():
        side = Side("this machine", 1.0, 0.0, count=1, size_bytes=int(bed.limit(name)))
        out.append(Row("limits", name, side, how=unit))
    return out
