"""The embedded journal: one LMDB environment, group commit, a checksum in every row.

See docs/formats/journal.md.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import faultpoints, metrics
from shardgit.errors import (
    Conflict,
    Internal,
    JournalCorrupt,
    StorageFull,
    Unavailable,
)
from shardgit.journal.answers import CommitsSoon, copy_of
from shardgit.journal.interface import (
    Compare,
    CompareRange,
    Delete,
    DeleteRange,
    Put,
    Row,
    check_commit,
)
from shardgit.journal.mode import fenced
from shardgit.journal.rows import LmdbSnapshot, frame_row, get_row, rows_between, typed
from shardgit.lmdbenv import MAP_BYTES, PAGE_BYTES, Environment, raise_transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import lmdb

    from shardgit.journal.interface import Condition, JournalSnapshot, Operation
    from shardgit.kept import Looked

LOAD_BYTES = 32 << 20  # of one transaction of a journal that is written anew
GROUP_MAX = 256  # commits that share one transaction


@dataclass(frozen=True, slots=True)
class _Waiting:
    conditions: Sequence[Condition]
    operations: Sequence[Operation]
    answer: Callable[[int | BaseException], None]  # called on the writer's thread
    asked_s: float  # by time.monotonic


class LmdbJournal(CommitsSoon):
    """The journal of an embedded store.

    Any number of processes may have it open; LMDB lets one write at a time. A commit's revision is
    the number of its LMDB transaction; commits of one group share it. Opening a journal that is
    missing (without ``create``), truncated or not LMDB's is JournalCorrupt.
    """

    def __init__(self, folder: Path, *, create: bool = False, map_bytes: int = MAP_BYTES) -> None:
        self._path = str(folder)
        with typed(self._path):
            self._environment = Environment(
                folder, create=create, map_bytes=map_bytes, part="journal"
            )
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False
        self._listeners: tuple[Callable[[], None], ...] = ()

    @contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call ``listener``, on the writer's thread, behind each commit of this process.

        It must be quick and raise nothing.
        """
        with self._lock:
            self._listeners = (*self._listeners, listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners = tuple(one for one in self._listeners if one is not listener)

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise Internal("a journal was used across a fork", path=self._path)
        if self._closed:
            raise Unavailable("journal is closed", path=self._path)

    @contextmanager
    def snapshot(self) -> Iterator[JournalSnapshot]:
        """See Journal."""
        self._check_open()
        with self._environment.read() as transaction:
            opened = LmdbSnapshot(transaction, self._path)
            try:
                yield opened
            finally:
                opened.end()

    def revision(self) -> int:
        """See Journal."""
        self._check_open()
        return self._environment.last_transaction()

    def begin(self) -> None:
        """Begin the writer's thread now: else it has the priority of whoever commits first, for ever."""
        self._check_open()
        with self._lock:
            if not self._closed:
                self._begin_writer()

    def _begin_writer(self) -> None:
        if self._writer is None:
            writer = threading.Thread(target=self._write, name="journal-writer", daemon=True)
            writer.start()  # may fail: then the next commit tries again
            self._writer = writer

    def commit_soon(
        self,
        conditions: Sequence[Condition],
        operations: Sequence[Operation],
        answer: Callable[[int | BaseException], None],
    ) -> None:
        """Commit behind the caller, who goes on: ``answer`` hears, on the writer's thread, the revision or the error.

        It must be quick and raise nothing.
        """
        check_commit(conditions, operations)
        self._check_open()
        held, told = fenced(self, conditions, operations, answer)
        with self._lock:
            if self._closed:
                raise Unavailable("journal is closed", path=self._path)
            self._begin_writer()
            self._waiting.put(_Waiting(held, operations, told, time.monotonic()))

    def _write(self) -> None:
        """Take all that waits, apply it in one transaction, answer all after one fsync.

        No variable here may outlive a turn: what waits leads to a whole push, and to the lease that it holds.
        """
        while (first := self._waiting.get()) is not None:
            self._commit_group(self._with_more(first))
            del first
            self._tell_listeners()

    def _with_more(self, first: _Waiting) -> list[_Waiting]:
        """Return a commit and those that wait behind it."""
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
        return group

    def _tell_listeners(self) -> None:
        for listener in self._listeners:
            listener()

    def _commit_group(self, group: list[_Waiting]) -> None:
        answers: list[int | BaseException]
        try:
            answers = self._apply_group(group)
        except (
            BaseException
        ) as error:  # nothing of the group was committed, and all of it must hear so
            if isinstance(error, StorageFull) and len(group) > 1:
                # One that is too large must not fail the others.
                for waiting in group:
                    self._commit_group([waiting])
                return
            answers = [copy_of(error) for _ in group]
        metrics.JOURNAL_GROUP.observe(len(group))
        answers.reverse()
        for waiting in group:
            answer = answers.pop()
            outcome = metrics.outcome_of(answer)
            waiting.answer(answer)
            # Once its caller has raised it, an error leads to the caller's frames, and to the leases that these hold.
            del answer
            metrics.commit_told(outcome, time.monotonic() - waiting.asked_s)

    def _apply_group(self, group: list[_Waiting]) -> list[int | BaseException]:
        failed: dict[int, BaseException] = {}
        wrote = False
        # commit point: a crash before the end of this block leaves nothing of the group, a crash
        # after it all of it, fsynced. Callers hear of it only after. A commit under way when the
        # process died is one or the other, whole.
        with typed(self._path), self._environment.write() as transaction:
            revision = int(transaction.id())
            for number, waiting in enumerate(group):
                try:
                    for condition in waiting.conditions:
                        _check(transaction, condition)
                except (Conflict, JournalCorrupt) as error:
                    # The error itself leads to this frame, hence to itself, and would keep all that its waiter's
                    # frames hold until Python looks for cycles.
                    failed[number] = copy_of(error)
                    continue
                for operation in waiting.operations:
                    wrote = _apply(transaction, operation, revision) or wrote
            faultpoints.reach("journal.before_commit")
        faultpoints.reach("journal.after_commit")
        # A transaction that changed nothing does not use its number up.
        made = revision if wrote else revision - 1
        return [failed.get(number, made) for number in range(len(group))]

    def fresh_sync(self, *, stale_ok: bool = False) -> None:
        """See Journal: a snapshot shows every commit anyway."""

    async def fresh(self, *, stale_ok: bool = False) -> None:
        """See Journal."""

    def oldest_snapshot(self) -> int:
        """See Journal."""
        self._check_open()
        return self._environment.oldest_reader()

    def waiting(self) -> int:
        """See StoreJournal."""
        return self._waiting.qsize()

    def caches(self) -> dict[str, Looked]:
        """See StoreJournal: LMDB's pages are the kernel's to keep."""
        return {}

    def stats(self) -> tuple[int, int]:
        """Return (live bytes, file bytes)."""
        self._check_open()
        live, total = self._environment.pages_used()
        return live * PAGE_BYTES, total * PAGE_BYTES

    def sizes(self) -> dict[str, int]:
        """See StoreJournal."""
        live, total = self.stats()
        return {"live": live, "file": total}

    def reader_check(self) -> int:
        """Free the reader slots of dead processes; returns how many there were."""
        self._check_open()
        return self._environment.reader_check()

    def close(self) -> None:
        """See Journal. In a forked child it does nothing: the environment is the parent's."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            writer = self._writer
        if writer is not None:
            self._waiting.put(None)
            writer.join()
        self._environment.close()


def write_journal(folder: Path, rows: Iterable[Row], *, revision: int) -> int:
    """Make a journal with rows as they were in another, revisions kept; returns how many.

    Its next commit has a higher revision than ``revision``, which is at least that of any row. Durable on return;
    stopped earlier, what is there is no journal. Errors: StorageFull, JournalCorrupt for a row that cannot be.
    """
    count = 0
    last = b""
    waiting = iter(rows)
    with typed(str(folder)):
        environment = Environment(folder, create=True)
    try:
        while some := _batch(waiting):
            for row in some:
                if row.revision > revision or row.key <= last:
                    raise JournalCorrupt("row is out of order", key=row.key.hex())
                last = row.key
            with typed(str(folder)), environment.write() as transaction:
                for row in some:
                    framed = frame_row(row.key, row.revision, row.value)
                    transaction.put(row.key, framed, append=True)
            count += len(some)
    finally:
        environment.close()
    with typed(str(folder)):
        raise_transaction(folder / "data.mdb", revision)
    return count


def _batch(rows: Iterator[Row]) -> list[Row]:
    """Take rows of about LOAD_BYTES; [] at the end."""
    some: list[Row] = []
    size = 0
    while size < LOAD_BYTES and (row := next(rows, None)) is not None:
        some.append(row)
        size += len(row.value) + 64
    return some


def _check(transaction: lmdb.Transaction, condition: Condition) -> None:
    match condition:
        case Compare(key, revision):
            row = get_row(transaction, key)
            if (0 if row is None else row.revision) != revision:
                raise Conflict("journal row has changed", key=key.hex())
        case CompareRange(low, high, revision):
            if any(row.revision > revision for row in rows_between(transaction, low, high)):
                raise Conflict("journal range has changed", low=low.hex())


def _apply(transaction: lmdb.Transaction, operation: Operation, revision: int) -> bool:
    """Apply one operation; says whether it changed anything."""
    match operation:
        case Put(key, value):
            return bool(transaction.put(key, frame_row(key, revision, value)))
        case Delete(key):
            return bool(transaction.delete(key))
        case DeleteRange(low, high):
            changed = False
            with transaction.cursor() as cursor:
                found = cursor.set_range(low)
                while found and bytes(cursor.key()) < high:
                    changed = True
                    found = cursor.delete() and bool(cursor.key())
            return changed
