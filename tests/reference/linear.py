"""Linearizability by its definition: all orders are tried. For histories of a handful of operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.history.operation import Operation, Outcome, Value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def explained(operations: Sequence[Operation], refs: Mapping[str, Value]) -> bool:
    """Return whether some order of the operations, from ``refs`` on, fits what clients were told."""
    if all(one.returned_ns is None for one in operations):
        return True  # the unknown ones may never have happened
    for at, one in enumerate(operations):
        others = [*operations[:at], *operations[at + 1 :]]
        if any(x.returned_ns is not None and x.returned_ns < one.called_ns for x in others):
            continue
        held = all(refs.get(touch.ref) == touch.value for touch in one.expects)
        if one.outcome is Outcome.CONFLICT:
            after = None if held else dict(refs)
        else:
            after = {**refs, **{put.ref: put.value for put in one.puts}} if held else None
        if after is not None and explained(others, after):
            return True
    return False
