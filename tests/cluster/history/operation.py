"""What a client asked of refs, when, and what it was told."""

from __future__ import annotations

import enum
from dataclasses import dataclass

Value = bytes | None  # a raw object id; None: there is no such ref


class Outcome(enum.Enum):
    """What the client knows of its operation."""

    DONE = "done"  # at one moment between call and return all that it expects held, and it put
    CONFLICT = "conflict"  # at such a moment something that it expects did not hold; it put nothing
    UNKNOWN = "unknown"  # as DONE, at any moment behind the call, or never


@dataclass(frozen=True, slots=True)
class Touch:
    """A ref, named so that no other ref of the history has the name, and a value of it."""

    ref: str
    value: Value

    def __str__(self) -> str:
        """Name and the first digits of the value."""
        return f"{self.ref} {'nothing' if self.value is None else self.value.hex()[:12]}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One call: a read puts nothing, a compare-and-set expects one value a ref that it puts.

    Times are of one clock for all clients, in ns. ``returned_ns`` is None exactly when the outcome
    is UNKNOWN. What certainly had no effect and tells nothing is in no history.
    """

    client: int
    called_ns: int
    returned_ns: int | None
    outcome: Outcome
    expects: tuple[Touch, ...]
    puts: tuple[Touch, ...] = ()

    @property
    def refs(self) -> set[str]:
        """The refs that it touches."""
        return {touch.ref for touch in (*self.expects, *self.puts)}

    def __str__(self) -> str:
        """Client, times in ms, what it expected and put, and how it ended."""
        until = "" if self.returned_ns is None else f"{self.returned_ns / 1e6:.3f}"
        words = [", ".join(map(str, touches)) for touches in (self.expects, self.puts) if touches]
        when = f"{self.called_ns / 1e6:.3f}..{until}"
        return f"client {self.client} {when} {self.outcome.value}: {' -> '.join(words)}"
