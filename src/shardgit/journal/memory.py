"""A journal in memory, for tests and simulations: the obvious one."""

from __future__ import annotations

import threading
from bisect import bisect_left
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from shardgit.errors import Conflict, Unavailable
from shardgit.journal.interface import (
    Compare,
    CompareRange,
    Delete,
    DeleteRange,
    Put,
    Row,
    check_commit,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.journal.interface import Condition, JournalSnapshot, Operation


@dataclass(frozen=True)  # no slots: the sorted keys are kept with it
class _State:
    rows: dict[bytes, Row]
    revision: int

    @cached_property
    def keys(self) -> list[bytes]:
        return sorted(self.rows)

    def between(self, low: bytes, high: bytes) -> Iterator[Row]:
        for at in range(bisect_left(self.keys, low), bisect_left(self.keys, high)):
            yield self.rows[self.keys[at]]


class _Snapshot:
    def __init__(self, state: _State) -> None:
        self._state: _State | None = state
        self.revision = state.revision

    def _open(self) -> _State:
        if self._state is None:
            raise Unavailable("journal snapshot has ended")
        return self._state

    def end(self) -> None:
        self._state = None

    def get(self, key: bytes) -> Row | None:
        return self._open().rows.get(key)

    def range(self, low: bytes, high: bytes, *, limit: int | None = None) -> Iterator[Row]:
        self._open()
        return self._range(low, high, limit)

    def _range(self, low: bytes, high: bytes, limit: int | None) -> Iterator[Row]:
        for given, row in enumerate(self._open().between(low, high)):
            if given == limit:
                return
            yield row
            self._open()


class MemoryJournal:
    """Rows in a dict that each commit replaces."""

    def __init__(self) -> None:
        self._state = _State({}, 0)
        self._lock = threading.Lock()
        self._closed = False
        self._open: dict[int, int] = {}  # revisions of the open snapshots

    @contextmanager
    def snapshot(self) -> Iterator[JournalSnapshot]:
        """See Journal."""
        if self._closed:
            raise Unavailable("journal is closed")
        with self._lock:
            opened = _Snapshot(self._state)
            self._open[id(opened)] = opened.revision
        try:
            yield opened
        finally:
            opened.end()
            with self._lock:
                del self._open[id(opened)]

    def oldest_snapshot(self) -> int:
        """See Journal."""
        with self._lock:
            return min(self._open.values(), default=self._state.revision)

    def revision(self) -> int:
        """See Journal."""
        if self._closed:
            raise Unavailable("journal is closed")
        return self._state.revision

    def commit_sync(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        """See Journal."""
        check_commit(conditions, operations)
        with self._lock:
            if self._closed:
                raise Unavailable("journal is closed")
            before = self._state
            for condition in conditions:
                _check(before, condition)
            rows = dict(before.rows)
            revision = before.revision + 1
            wrote = False
            for operation in operations:
                match operation:
                    case Put(key, value):
                        rows[key] = Row(key, value, revision)
                        wrote = True
                    case Delete(key):
                        wrote = rows.pop(key, None) is not None or wrote
                    case DeleteRange(low, high):
                        gone = [row.key for row in before.between(low, high)]
                        for key in gone:
                            del rows[key]
                        wrote = wrote or bool(gone)
            if not wrote:
                return before.revision
            # commit point: the next snapshot sees all of it, this one nothing; memory does not
            # outlive a crash.
            self._state = _State(rows, revision)
            return revision

    async def commit(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        """See Journal."""
        return self.commit_sync(conditions, operations)

    def close(self) -> None:
        """See Journal."""
        with self._lock:
            self._closed = True


def _check(state: _State, condition: Condition) -> None:
    match condition:
        case Compare(key, revision):
            row = state.rows.get(key)
            if (row.revision if row else 0) != revision:
                raise Conflict("journal row has changed", key=key.hex())
        case CompareRange(low, high, revision):
            if any(row.revision > revision for row in state.between(low, high)):
                raise Conflict("journal range has changed", low=low.hex())
