"""Takes down what clients do, in one clock, and keeps it in a file."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.history.operation import Operation, Outcome, Touch, Value

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Recorder:
    """The history of all clients of one process; ``counts`` also has what is in no history."""

    def __init__(self) -> None:
        self.history: list[Operation] = []
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, what: str, operation: Operation | None = None) -> None:
        """Count something, and take down what it was; from any thread."""
        with self._lock:
            self.counts[what] += 1
            if operation is not None:
                self.history.append(operation)

    def call(self, client: int) -> Call:
        """Return a call that begins now."""
        return Call(self, client, time.monotonic_ns())


@dataclass(frozen=True, slots=True)
class Call:
    """An operation on its way; one of the methods ends it."""

    recorder: Recorder
    client: int
    called_ns: int

    def read(self, found: Iterable[Touch]) -> None:
        """These values were told."""
        self._end("read", Outcome.DONE, tuple(found), ())

    def done(self, expects: Iterable[Touch], puts: Iterable[Touch]) -> None:
        """The change was acknowledged."""
        self._end("done", Outcome.DONE, tuple(expects), tuple(puts))

    def conflict(self, expects: Iterable[Touch], puts: Iterable[Touch]) -> None:
        """The change was refused, because what it expects did not hold."""
        self._end("conflict", Outcome.CONFLICT, tuple(expects), tuple(puts))

    def unknown(self, expects: Iterable[Touch], puts: Iterable[Touch]) -> None:
        """Nobody told how the change ended."""
        self._end("unknown", Outcome.UNKNOWN, tuple(expects), tuple(puts))

    def void(self, why: str) -> None:
        """It certainly changed nothing, and told nothing."""
        self.recorder.count(why)

    def _end(
        self, what: str, outcome: Outcome, expects: tuple[Touch, ...], puts: tuple[Touch, ...]
    ) -> None:
        returned = None if outcome is Outcome.UNKNOWN else time.monotonic_ns()
        operation = Operation(self.client, self.called_ns, returned, outcome, expects, puts)
        self.recorder.count(what, operation)


def save(path: Path, history: Iterable[Operation]) -> None:
    """Write a history, an operation a line."""
    with path.open("w") as out:
        for one in history:
            row = {
                "client": one.client,
                "called_ns": one.called_ns,
                "returned_ns": one.returned_ns,
                "outcome": one.outcome.value,
                "expects": [[touch.ref, _hex(touch.value)] for touch in one.expects],
                "puts": [[touch.ref, _hex(touch.value)] for touch in one.puts],
            }
            out.write(json.dumps(row) + "\n")


def load(path: Path) -> list[Operation]:
    """Return the history that a file holds."""
    with path.open() as lines:
        return [_operation(json.loads(line)) for line in lines]


def _operation(row: dict[str, object]) -> Operation:
    touches: dict[str, tuple[Touch, ...]] = {}
    for key in ("expects", "puts"):
        pairs = row[key]
        assert isinstance(pairs, list)
        touches[key] = tuple(
            Touch(ref, None if text is None else bytes.fromhex(text)) for ref, text in pairs
        )
    client, called, returned = row["client"], row["called_ns"], row["returned_ns"]
    assert isinstance(client, int)
    assert isinstance(called, int)
    assert returned is None or isinstance(returned, int)
    outcome = Outcome(row["outcome"])
    return Operation(client, called, returned, outcome, touches["expects"], touches["puts"])


def _hex(value: Value) -> str | None:
    return None if value is None else value.hex()
