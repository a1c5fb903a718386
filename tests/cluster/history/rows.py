"""Clients of a journal itself, on any of its nodes, whose every read and commit goes into a history."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

from blake3 import blake3
from cluster.history.operation import Touch, Value

from shardgit.errors import Conflict, OutcomeUnknown, Unavailable
from shardgit.journal.interface import Compare, Delete, Put

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.history.recorder import Call, Recorder

    from shardgit.journal.interface import Journal, Operation

# Each is changed and read together; what begins with S lies in bundles on etcd.
OBJECTS = ((b"R1",), (b"S1",), (b"R2", b"R3"), (b"R4", b"S4", b"S5"))
READS, DELETES = 0.5, 0.1
SIZE_MAX_BYTES = 6_000
PAUSE_S = 0.004


class RowClients:
    """Threads that read and compare-and-set rows until ``stop``."""

    def __init__(
        self, journals: Sequence[Journal], recorder: Recorder, seed: int, *, first: int = 0
    ) -> None:
        self.journals = journals
        self.recorder = recorder
        self.seed = seed
        self.first = first  # client's number
        self.errors: list[Exception] = []
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, count: int) -> None:
        """Begin."""
        self._threads = [
            threading.Thread(target=self._run, args=(self.first + number,))
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and raise what a client met that no fault explains."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def last(self) -> None:
        """Read everything on every node, waiting for those that are not there yet."""
        for number, journal in enumerate(self.journals):
            one = _Client(self, -1 - number)
            for keys in OBJECTS:
                for _ in range(240):
                    if one.read(journal, keys):
                        break
                    time.sleep(0.25)
                else:
                    raise AssertionError(f"node {number} does not answer")

    def _run(self, number: int) -> None:
        one = _Client(self, number)
        try:
            while not self._stopping.is_set():
                one.work(one.dice.choice(self.journals), one.dice.choice(OBJECTS))
                time.sleep(one.dice.random() * PAUSE_S)
        except Exception as error:
            self.errors.append(error)


class _Client:
    """One client: the rows that it saw last, with their revisions."""

    def __init__(self, clients: RowClients, number: int) -> None:
        self.recorder = clients.recorder
        self.number = number
        self.dice = random.Random(f"{clients.seed}/{number}")
        self.seen: dict[bytes, tuple[Value, int]] = {}

    def work(self, journal: Journal, keys: Sequence[bytes]) -> None:
        if self.dice.random() < READS or any(key not in self.seen for key in keys):
            self.read(journal, keys)
        else:
            self.change(journal, keys)

    def read(self, journal: Journal, keys: Sequence[bytes]) -> bool:
        call = self.recorder.call(self.number)
        try:
            journal.fresh_sync()
            with journal.snapshot() as snapshot:
                rows = [snapshot.get(key) for key in keys]
        except Unavailable:
            call.void("read failed")
            return False
        for key, row in zip(keys, rows, strict=True):
            self.seen[key] = (_value(row.value), row.revision) if row else (None, 0)
        call.read(self._expects(keys))
        return True

    def change(self, journal: Journal, keys: Sequence[bytes]) -> None:
        expects = self._expects(keys)
        conditions = [Compare(key, self.seen[key][1]) for key in keys]
        operations: list[Operation] = []
        puts: list[Touch] = []
        delete = self.dice.random() < DELETES and all(self.seen[key][1] for key in keys)
        for key in keys:
            fresh = self.dice.randbytes(self.dice.randrange(20, SIZE_MAX_BYTES))
            operations.append(Delete(key) if delete else Put(key, fresh))
            puts.append(Touch(key.decode(), None if delete else _value(fresh)))
        call = self.recorder.call(self.number, expects, puts)
        revision = _commit(journal, call, conditions, operations)
        for key, put in zip(keys, puts, strict=True):
            if revision:
                self.seen[key] = (put.value, 0 if delete else revision)
            else:
                self.seen.pop(key, None)

    def _expects(self, keys: Sequence[bytes]) -> list[Touch]:
        return [Touch(key.decode(), self.seen[key][0]) for key in keys]


def _commit(
    journal: Journal, call: Call, conditions: Sequence[Compare], operations: Sequence[Operation]
) -> int:
    """Commit and take down how it ended; 0 when it was not done, or nobody knows."""
    try:
        revision = journal.commit_sync(conditions, operations)
    except Conflict:
        call.conflict()
    except OutcomeUnknown:
        call.unknown()
    except Unavailable:
        call.void("not done")  # and it never will be: else it would have been OutcomeUnknown
    else:
        call.done()
        return revision
    return 0


def _value(data: bytes) -> bytes:
    return blake3(data).digest(length=20)
