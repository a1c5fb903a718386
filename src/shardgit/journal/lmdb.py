"""The embedded journal: one LMDB environment, group commit, a checksum in every row. See docs/formats/journal.md."""

from __future__ import annotations

import asyncio
import queue
import struct
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit.errors import Conflict, JournalCorrupt, ShardgitError, Unavailable
from shardgit.journal.interface import Compare, CompareRange, Delete, DeleteRange, Put, Row, check_commit
from shardgit.lmdbenv import PAGE_BYTES, Environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import lmdb

    from shardgit.journal.interface import Condition, JournalSnapshot, Operation

_FRAME = struct.Struct("<Q8s")
GROUP_MAX = 256  # commits that share one transaction


def _checksum(key: bytes | memoryview, revision: int, value: bytes | memoryview) -> bytes:
    return blake3(struct.pack("<HQ", len(key), revision) + bytes(key) + bytes(value)).digest(length=8)


def _frame(key: bytes, value: bytes, revision: int) -> bytes:
    return _FRAME.pack(revision, _checksum(key, revision, value)) + value


def _row(key: bytes | memoryview, framed: memoryview) -> Row:
    if len(framed) < _FRAME.size:
        raise JournalCorrupt("journal row is too short", key=bytes(key).hex())
    revision, checksum = _FRAME.unpack_from(framed)
    value = bytes(framed[_FRAME.size :])
    if _checksum(key, revision, value) != checksum:
        raise JournalCorrupt("journal row does not match its checksum", key=bytes(key).hex())
    return Row(bytes(key), value, revision)


class _Snapshot:
    def __init__(self, transaction: lmdb.Transaction) -> None:
        self._transaction = transaction
        self.revision = int(transaction.id())

    def get(self, key: bytes) -> Row | None:
        framed = self._transaction.get(key)
        return None if framed is None else _row(key, framed)

    def range(self, low: bytes, high: bytes, *, limit: int | None = None) -> Iterator[Row]:
        with self._transaction.cursor() as cursor:
            if not cursor.set_range(low or b"\0"):
                return
            for key, framed in cursor:
                if limit == 0 or bytes(key) >= high:
                    return
                yield _row(key, framed)
                limit = None if limit is None else limit - 1


@dataclass(frozen=True, slots=True)
class _Waiting:
    conditions: Sequence[Condition]
    operations: Sequence[Operation]
    answer: Future[int]


class LmdbJournal:
    """The journal of an embedded store. Any number of processes may have it open; LMDB lets one write at a time.

    A commit's revision is the number of its LMDB transaction; commits of one group share it.
    """

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self._environment = Environment(folder, create=create)
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def snapshot(self) -> Iterator[JournalSnapshot]:
        """See Journal."""
        with self._environment.read() as transaction:
            yield _Snapshot(transaction)

    def revision(self) -> int:
        """See Journal."""
        return self._environment.last_transaction()

    def _enqueue(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> Future[int]:
        check_commit(conditions, operations)
        with self._lock:
            if self._closed:
                raise Unavailable("journal is closed")
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="journal-writer", daemon=True)
                self._writer.start()
            answer: Future[int] = Future()
            self._waiting.put(_Waiting(conditions, operations, answer))
        return answer

    def commit_sync(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        """See Journal."""
        return self._enqueue(conditions, operations).result()

    async def commit(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        """See Journal. A cancelled caller does not undo a commit that is under way."""
        return await asyncio.shield(asyncio.wrap_future(self._enqueue(conditions, operations)))

    def _write(self) -> None:
        """Take all that waits, apply it in one transaction, answer all after one fsync."""
        while (first := self._waiting.get()) is not None:
            group = [first]
            while len(group) < GROUP_MAX:
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    self._waiting.put(None)
                    break
                group.append(more)
            self._commit_group(group)

    def _commit_group(self, group: list[_Waiting]) -> None:
        answers: list[int | ShardgitError] = []
        try:
            # commit point: a crash before it leaves nothing of the group, a crash after it leaves all of it, fsynced;
            # callers are answered only after.
            with self._environment.write() as transaction:
                revision = int(transaction.id())
                for waiting in group:
                    try:
                        for condition in waiting.conditions:
                            _check(transaction, condition)
                    except (Conflict, JournalCorrupt) as error:
                        answers.append(error)
                        continue
                    for operation in waiting.operations:
                        _apply(transaction, operation, revision)
                    answers.append(revision)
        except BaseException as error:  # noqa: BLE001  # whatever it was, nothing was committed and all must hear it
            for waiting in group:
                waiting.answer.set_exception(error)
            return
        for waiting, answer in zip(group, answers, strict=True):
            if isinstance(answer, int):
                waiting.answer.set_result(answer)
            else:
                waiting.answer.set_exception(answer)

    def stats(self) -> tuple[int, int]:
        """Return (live bytes, file bytes)."""
        live, total = self._environment.pages_used()
        return live * PAGE_BYTES, total * PAGE_BYTES

    def reader_check(self) -> int:
        """Free the reader slots of dead processes."""
        return self._environment.reader_check()

    def close(self) -> None:
        """Finish what waits and close the environment."""
        with self._lock:
            self._closed = True
            writer = self._writer
        if writer is not None:
            self._waiting.put(None)
            writer.join()
        self._environment.close()


def _check(transaction: lmdb.Transaction, condition: Condition) -> None:
    match condition:
        case Compare(key, revision):
            framed = transaction.get(key)
            if (0 if framed is None else _row(key, framed).revision) != revision:
                raise Conflict("journal row has changed", key=key.hex())
        case CompareRange(low, high, revision):
            with transaction.cursor() as cursor:
                found = cursor.set_range(low or b"\0")
                while found and bytes(cursor.key()) < high:
                    if _row(cursor.key(), cursor.value()).revision > revision:
                        raise Conflict("journal range has changed", low=low.hex())
                    found = cursor.next()


def _apply(transaction: lmdb.Transaction, operation: Operation, revision: int) -> None:
    match operation:
        case Put(key, value):
            transaction.put(key, _frame(key, value, revision))
        case Delete(key):
            transaction.delete(key)
        case DeleteRange(low, high):
            with transaction.cursor() as cursor:
                found = cursor.set_range(low or b"\0")
                while found and bytes(cursor.key()) < high:
                    found = cursor.delete() and bool(cursor.key())
