"""A journal in memory, for tests and simulations: the obvious one."""

from __future__ import annotations

import threading
from bisect import bisect_left
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shardgit.errors import Conflict
from shardgit.journal.interface import Compare, CompareRange, Delete, DeleteRange, Put, Row, check_commit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.journal.interface import Condition, JournalSnapshot, Operation


class _Snapshot:
    def __init__(self, rows: dict[bytes, Row], revision: int) -> None:
        self._rows = rows
        self._keys = sorted(rows)
        self.revision = revision

    def get(self, key: bytes) -> Row | None:
        return self._rows.get(key)

    def range(self, low: bytes, high: bytes, *, limit: int | None = None) -> Iterator[Row]:
        at = bisect_left(self._keys, low)
        while at < len(self._keys) and self._keys[at] < high and limit != 0:
            yield self._rows[self._keys[at]]
            at += 1
            limit = None if limit is None else limit - 1


class MemoryJournal:
    """Rows in a dict that is replaced by each commit."""

    def __init__(self) -> None:
        self._rows: dict[bytes, Row] = {}
        self._revision = 0
        self._lock = threading.Lock()

    @contextmanager
    def snapshot(self) -> Iterator[JournalSnapshot]:
        """See Journal."""
        yield _Snapshot(self._rows, self._revision)

    def revision(self) -> int:
        """See Journal."""
        return self._revision

    def commit_sync(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        """See Journal."""
        check_commit(conditions, operations)
        with self._lock:
            for condition in conditions:
                self._check(condition)
            rows = dict(self._rows)
            revision = self._revision + 1
            for operation in operations:
                match operation:
                    case Put(key, value):
                        rows[key] = Row(key, value, revision)
                    case Delete(key):
                        rows.pop(key, None)
                    case DeleteRange(low, high):
                        rows = {key: row for key, row in rows.items() if not low <= key < high}
            self._rows, self._revision = rows, revision
            return revision

    def _check(self, condition: Condition) -> None:
        match condition:
            case Compare(key, revision):
                row = self._rows.get(key)
                if (row.revision if row else 0) != revision:
                    raise Conflict("journal row has changed", key=key.hex())
            case CompareRange(low, high, revision):
                if any(low <= key < high and row.revision > revision for key, row in self._rows.items()):
                    raise Conflict("journal range has changed", low=low.hex())

    async def commit(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        """See Journal."""
        return self.commit_sync(conditions, operations)
