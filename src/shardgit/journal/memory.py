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
from shardgit.journal.mode import MODE_KEY, ModeRecord, fences_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from shardgit.journal.interface import Condition, JournalSnapshot, Operation


@dataclass(frozen=True)  # no slots: the sorted keys are kept with it
class Rows:
    """The rows of a journal at one revision; never changed."""

    rows: dict[bytes, Row]
    revision: int

    @cached_property
    def _keys(self) -> list[bytes]:
        return sorted(self.rows)

    def between(self, low: bytes, high: bytes) -> Iterator[Row]:
        """Return the rows in low <= key < high by rising key."""
        for at in range(bisect_left(self._keys, low), bisect_left(self._keys, high)):
            yield self.rows[self._keys[at]]


class RowsSnapshot:
    """See JournalSnapshot."""

    def __init__(self, rows: Rows) -> None:
        self._rows: Rows | None = rows
        self.revision = rows.revision

    def _open(self) -> Rows:
        if self._rows is None:
            raise Unavailable("journal snapshot has ended")
        return self._rows

    def end(self) -> None:
        """Let go of the rows: every later call is Unavailable."""
        self._rows = None

    def get(self, key: bytes) -> Row | None:
        """See JournalSnapshot."""
        return self._open().rows.get(key)

    def range(self, low: bytes, high: bytes, *, limit: int | None = None) -> Iterator[Row]:
        """See JournalSnapshot."""
        self._open()
        return self._range(low, high, limit)

    def _range(self, low: bytes, high: bytes, limit: int | None) -> Iterator[Row]:
        for given, row in enumerate(self._open().between(low, high)):
            if given == limit:
                return
            yield row
            self._open()


def check(rows: Mapping[bytes, Row], condition: Condition) -> None:
    """Raise Conflict unless rows meet a condition."""
    match condition:
        case Compare(key, revision):
            row = rows.get(key)
            if (row.revision if row else 0) != revision:
                raise Conflict("journal row has changed", key=key.hex())
        case CompareRange(low, high, revision):
            if any(low <= key < high and row.revision > revision for key, row in rows.items()):
                raise Conflict("journal range has changed", low=low.hex())


def apply(rows: dict[bytes, Row], operation: Operation, revision: int) -> bool:
    """Apply an operation to rows; says whether it changed anything."""
    match operation:
        case Put(key, value):
            rows[key] = Row(key, value, revision)
            return True
        case Delete(key):
            return rows.pop(key, None) is not None
        case DeleteRange(low, high):
            gone = [key for key in rows if low <= key < high]
            for key in gone:
                del rows[key]
            return bool(gone)


class MemoryJournal:
    """Rows in a dict that each commit replaces."""

    def __init__(self) -> None:
        self._state = Rows({}, 0)
        self._lock = threading.Lock()
        self._closed = False
        self._open: dict[int, int] = {}  # revisions of the open snapshots

    @contextmanager
    def snapshot(self) -> Iterator[JournalSnapshot]:
        """See Journal."""
        if self._closed:
            raise Unavailable("journal is closed")
        with self._lock:
            opened = RowsSnapshot(self._state)
            self._open[id(opened)] = opened.revision
        try:
            yield opened
        finally:
            opened.end()
            with self._lock:
                del self._open[id(opened)]

    def fresh_sync(self, *, stale_ok: bool = False) -> None:
        """See Journal: a snapshot shows every commit anyway."""

    async def fresh(self, *, stale_ok: bool = False) -> None:
        """See Journal."""

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
            mode = before.rows.get(MODE_KEY)
            if mode is not None and fences_of(operations):
                raise ModeRecord.decode(mode.value).refusal()
            for condition in conditions:
                check(before.rows, condition)
            rows = dict(before.rows)
            revision = before.revision + 1
            wrote = False
            for operation in operations:
                wrote = apply(rows, operation, revision) or wrote
            if not wrote:
                return before.revision
            # commit point: the next snapshot sees all of it, this one nothing; memory does not
            # outlive a crash.
            self._state = Rows(rows, revision)
            return revision

    async def commit(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        """See Journal."""
        return self.commit_sync(conditions, operations)

    def close(self) -> None:
        """See Journal."""
        with self._lock:
            self._closed = True
