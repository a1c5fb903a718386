"""Takes down what clients do, in one clock, and keeps it in a file."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.history.operation import Operation, Outcome, Touch, Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


class Recorder:
    """The history of all clients of one process; ``counts`` also has what is in no history. Usable from any thread.

    With a ``file`` each change is written there before it is asked for, and again when it has ended, so that ``load``
    knows what a process that was killed had begun.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.history: list[Operation] = []
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(file, flags, 0o600) if file is not None else None

    def call(self, client: int, expects: Sequence[Touch] = (), puts: Sequence[Touch] = ()) -> Call:
        """Return a call that begins now: a read, or with ``puts`` a change."""
        call = Call(self, client, time.monotonic_ns(), tuple(expects), tuple(puts))
        if puts:
            self._write(call.ended(Outcome.UNKNOWN))
        return call

    def count(self, what: str, operation: Operation | None = None) -> None:
        """Count something, and take down what it was."""
        with self._lock:
            self.counts[what] += 1
            if operation is not None:
                self.history.append(operation)
        if operation is not None:
            self._write(operation)

    def never(self, call: Call, why: str) -> None:
        """Count a call that changed nothing."""
        self.count(why)
        if call.puts:
            self._write(call.ended(Outcome.UNKNOWN), never=True)

    def _write(self, operation: Operation, *, never: bool = False) -> None:
        if self._file is not None:
            row = {**_row(operation), "never": True} if never else _row(operation)
            os.write(self._file, json.dumps(row).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class Call:
    """An operation on its way; one of the methods ends it."""

    recorder: Recorder
    client: int
    called_ns: int
    expects: tuple[Touch, ...]
    puts: tuple[Touch, ...]

    def read(self, found: Iterable[Touch]) -> None:
        """These values were told."""
        now = time.monotonic_ns()
        operation = Operation(self.client, self.called_ns, now, Outcome.DONE, tuple(found))
        self.recorder.count("read", operation)

    def done(self) -> None:
        """The change was acknowledged."""
        self.recorder.count("done", self.ended(Outcome.DONE))

    def conflict(self) -> None:
        """The change was refused, because what it expects did not hold."""
        self.recorder.count("conflict", self.ended(Outcome.CONFLICT))

    def unknown(self) -> None:
        """Nobody told how the change ended."""
        self.recorder.count("unknown", self.ended(Outcome.UNKNOWN))

    def void(self, why: str) -> None:
        """It certainly changed nothing, and told nothing."""
        self.recorder.never(self, why)

    def ended(self, outcome: Outcome) -> Operation:
        """Return the operation as it ended now."""
        returned = None if outcome is Outcome.UNKNOWN else time.monotonic_ns()
        return Operation(self.client, self.called_ns, returned, outcome, self.expects, self.puts)


def save(path: Path, history: Iterable[Operation]) -> None:
    """Write a history, an operation a line."""
    with path.open("w") as out:
        out.writelines(json.dumps(_row(one)) + "\n" for one in history)


def load(path: Path) -> list[Operation]:
    """Return the history that a file holds: of a change that was begun and ended, how it ended."""
    found: dict[tuple[int, int], Operation | None] = {}
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # its writer was killed
        row = json.loads(line)
        one = _operation(row)
        found[one.client, one.called_ns] = None if row.get("never") else one
    return [one for one in found.values() if one is not None]


def _row(one: Operation) -> dict[str, Any]:
    return {
        "client": one.client,
        "called_ns": one.called_ns,
        "returned_ns": one.returned_ns,
        "outcome": one.outcome.value,
        "expects": [[touch.ref, _hex(touch.value)] for touch in one.expects],
        "puts": [[touch.ref, _hex(touch.value)] for touch in one.puts],
    }


def _operation(row: dict[str, Any]) -> Operation:
    expects, puts = (
        tuple(Touch(ref, None if text is None else bytes.fromhex(text)) for ref, text in row[key])
        for key in ("expects", "puts")
    )
    outcome = Outcome(row["outcome"])
    return Operation(row["client"], row["called_ns"], row["returned_ns"], outcome, expects, puts)


def _hex(value: Value) -> str | None:
    return None if value is None else value.hex()
