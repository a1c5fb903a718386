"""Histories of clients of a right store of refs, in time that is made up; and the same, made wrong."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cluster.history.operation import Operation, Outcome, Touch, Value

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class Shape:
    """What clients do: each tuple of ``objects`` is refs that are read and changed together."""

    objects: tuple[tuple[str, ...], ...] = (("a",),)
    clients: int = 5
    operations: int = 100
    unknown: float = 0.02  # of the changes: half of them happen
    reads: float = 0.5
    slow: float = 0.01  # of the operations: a hundred times as slow


@dataclass
class _Store:
    dice: random.Random
    shape: Shape
    refs: dict[str, Value] = field(default_factory=dict)
    values: int = 0
    history: list[Operation] = field(default_factory=list)

    def fresh(self) -> bytes:
        """Return a value that was never there."""
        self.values += 1
        return self.values.to_bytes(20, "big")


def simulate(dice: random.Random, shape: Shape) -> list[Operation]:
    """Return a history of a store that does each operation at one moment between call and return.

    No value is ever put twice into one ref. Operations stand by their moment.
    """
    store = _Store(dice, shape)
    seen: list[dict[str, Value]] = [{} for _ in range(shape.clients)]
    moments: list[tuple[int, int, int, int]] = []  # moment, client, called, returned

    def plan(client: int, now: int) -> None:
        scale = 100_000 if dice.random() < shape.slow else 1_000
        called = now + 1 + int(dice.random() * 500)
        moment = called + int(dice.random() * scale)
        heapq.heappush(moments, (moment, client, called, moment + int(dice.random() * scale)))

    for client in range(shape.clients):
        plan(client, 0)
    while len(store.history) < shape.operations:
        _, client, called, returned = heapq.heappop(moments)
        store.history.append(_act(store, client, seen[client], called, returned))
        plan(client, returned)
    return store.history


def _act(
    store: _Store, client: int, seen: dict[str, Value], called: int, returned: int
) -> Operation:
    dice = store.dice
    names = dice.choice(store.shape.objects)
    if dice.random() < store.shape.reads:
        found = tuple(Touch(name, store.refs.get(name)) for name in names)
        seen.update((touch.ref, touch.value) for touch in found)
        return Operation(client, called, returned, Outcome.DONE, found)
    expects = tuple(Touch(name, seen.get(name)) for name in names)
    puts = tuple(Touch(name, store.fresh()) for name in names)
    fits = all(store.refs.get(touch.ref) == touch.value for touch in expects)
    unknown = dice.random() < store.shape.unknown
    if fits and not (unknown and dice.random() < 0.5):
        store.refs.update((touch.ref, touch.value) for touch in puts)
        if not unknown:
            seen.update((touch.ref, touch.value) for touch in puts)
    if unknown:
        return Operation(client, called, None, Outcome.UNKNOWN, expects, puts)
    outcome = Outcome.DONE if fits else Outcome.CONFLICT
    return Operation(client, called, returned, outcome, expects, puts)


# ---- made wrong, each in one operation, so that nothing can explain the history ----


def spoil(dice: random.Random, history: Sequence[Operation], how: str) -> list[Operation] | None:
    """Return the history with one operation told wrong; None when it has none that would do."""
    changes = [at for at, one in enumerate(history) if _is_change(one)]
    spots = [at for at in range(len(history)) if SPOILERS[how](history, changes, at) is not None]
    if not spots:
        return None
    at = dice.choice(spots)
    wrong = SPOILERS[how](history, changes, at)
    assert wrong is not None
    return [*history[:at], wrong, *history[at + 1 :]]


def _is_change(one: Operation) -> bool:
    return one.outcome is Outcome.DONE and bool(one.puts)


def _is_read(one: Operation) -> bool:
    return one.outcome is Outcome.DONE and not one.puts


def _stale(history: Sequence[Operation], changes: list[int], at: int) -> Operation | None:
    """A read is of a value that was replaced before it was called."""
    one = history[at]
    if not _is_read(one):
        return None
    for change in changes:
        other = history[change]
        assert other.returned_ns is not None
        was = all(touch.value is not None for touch in other.expects)
        if was and other.refs == one.refs and other.returned_ns < one.called_ns:
            return replace(one, expects=other.expects)
    return None


def _early(history: Sequence[Operation], changes: list[int], at: int) -> Operation | None:
    """A read is of a value that nobody had begun to put."""
    one = history[at]
    if not _is_read(one) or one.returned_ns is None:
        return None
    for change in reversed(changes):
        other = history[change]
        if other.refs == one.refs and other.called_ns > one.returned_ns:
            return replace(one, expects=other.puts)
    return None


def _denied(history: Sequence[Operation], changes: list[int], at: int) -> Operation | None:
    """Who won is told that it lost, though others saw what it put."""
    one = history[at]
    if at not in changes:
        return None
    for other in history[at + 1 :]:
        if other.outcome is Outcome.DONE and set(other.expects) & set(one.puts):
            return replace(one, outcome=Outcome.CONFLICT)
    return None


def _twice(history: Sequence[Operation], changes: list[int], at: int) -> Operation | None:
    """Two change the same value, and both are told that they won."""
    one = history[at]
    if one.outcome is not Outcome.CONFLICT:
        return None
    for change in changes:
        if history[change].expects == one.expects:
            return replace(one, outcome=Outcome.DONE)
    return None


def _torn(history: Sequence[Operation], changes: list[int], at: int) -> Operation | None:
    """A read finds one ref as it was before a change and another as it was behind it."""
    one = history[at]
    if not _is_read(one) or len(one.expects) < 2:
        return None
    for change in changes:
        other = history[change]
        if other.puts == one.expects:
            return replace(one, expects=(other.expects[0], *one.expects[1:]))
    return None


SPOILERS: dict[str, Callable[[Sequence[Operation], list[int], int], Operation | None]] = {
    "stale": _stale,
    "early": _early,
    "denied": _denied,
    "twice": _twice,
    "torn": _torn,
}
