"""A virtual disk: the rows and blocks that outlive simulated processes, and the journal and shards over it.

A transaction is durable when it is applied, whole or not at all, as LMDB's are. A process that dies before its
transaction was applied has lost it; one that dies between that and the answer has been done, and nobody was told.
Commits of one process that wait together are applied as one, under one revision.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fault.sim.scheduler import Killed

from shardgit.blocks.block import partition_of, verify_block
from shardgit.blocks.shard import ShardStats
from shardgit.errors import Conflict, Internal, ShardgitError, StorageFull
from shardgit.journal.interface import check_commit
from shardgit.journal.memory import Rows, RowsSnapshot, apply, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fault.sim.scheduler import Process, Scheduler

    from shardgit.journal.interface import Condition, JournalSnapshot, Operation
    from shardgit.kept import Looked
    from shardgit.oid import BlockId

T = TypeVar("T")
READ_SWITCH = 0.12


@dataclass
class Disk:
    """What outlives processes."""

    shards: dict[int, dict[BlockId, bytes]]
    rows: Rows = field(default_factory=lambda: Rows({}, 1))
    full: float = 0.0  # how often a write finds no room
    lost: int = 0  # transactions that died with their process
    unanswered: int = 0  # transactions that were applied and not answered
    open: dict[int, int] = field(default_factory=dict)  # revisions of open snapshots

    def blocks(self) -> set[BlockId]:
        """Return the ids of all blocks on any shard."""
        return {block for shard in self.shards.values() for block in shard}


class _Commit:
    __slots__ = ("answer", "conditions", "operations")

    def __init__(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> None:
        self.conditions = conditions
        self.operations = operations
        self.answer: int | ShardgitError | None = None


class SimJournal:
    """The journal as one simulated process has it open. See journal.interface.Journal."""

    def __init__(self, disk: Disk, scheduler: Scheduler, process: Process) -> None:
        self.disk = disk
        self._scheduler = scheduler
        self._process = process
        self._waiting: list[_Commit] = []

    def _alive(self) -> None:
        if self._process.dead:
            raise Killed

    @contextmanager
    def snapshot(self) -> Iterator[JournalSnapshot]:
        self._scheduler.switch("snapshot")
        self._alive()
        opened = RowsSnapshot(self.disk.rows)
        self.disk.open[id(opened)] = opened.revision
        try:
            self._scheduler.switch("snapshot is open", stay=0.8)
            yield opened
        finally:
            opened.end()
            del self.disk.open[id(opened)]

    def revision(self) -> int:
        self._alive()
        return self.disk.rows.revision

    def fresh_sync(self, *, stale_ok: bool = False) -> None:
        """See Journal: a snapshot shows every commit anyway."""

    async def fresh(self, *, stale_ok: bool = False) -> None:
        """See Journal."""

    def oldest_snapshot(self) -> int:
        self._alive()
        return min(self.disk.open.values(), default=self.disk.rows.revision)

    def sizes(self) -> dict[str, int]:
        return {}

    def waiting(self) -> int:
        return len(self._waiting)

    def caches(self) -> dict[str, Looked]:
        return {}

    @contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        del listener
        yield

    def stats(self) -> tuple[int, int]:
        return 0, 0

    def commit_sync(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        check_commit(conditions, operations)
        self._alive()
        mine = _Commit(conditions, operations)
        self._waiting.append(mine)
        try:
            self._scheduler.switch("commit waits")
        except Killed:
            if mine.answer is None:
                self.disk.lost += 1
            raise
        if mine.answer is None:
            self._apply()
        try:
            self._scheduler.switch("commit is applied")
        except Killed:
            self.disk.unanswered += 1
            raise
        answer = mine.answer
        assert answer is not None
        if isinstance(answer, ShardgitError):
            raise answer
        return answer

    async def commit(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        return self.commit_sync(conditions, operations)

    def close(self) -> None:
        """Nothing is held."""

    def _apply(self) -> None:
        """Apply all that waits in this process as one transaction."""
        group, self._waiting = self._waiting, []
        disk = self.disk
        if disk.full and self._scheduler.dice.random() < disk.full:
            for one in group:
                one.answer = StorageFull("no space left in the database")
            return
        before = disk.rows
        rows, revision = dict(before.rows), before.revision + 1
        wrote = False
        done = []
        for one in group:
            try:
                for condition in one.conditions:
                    check(rows, condition)
            except Conflict as error:
                one.answer = error
                continue
            done.append(one)
            for operation in one.operations:
                wrote = apply(rows, operation, revision) or wrote
        if wrote:
            disk.rows = Rows(rows, revision)
        for one in done:
            one.answer = disk.rows.revision


class SimShard:
    """A shard as one simulated process has it open. See blocks.shard.ShardStore."""

    def __init__(self, number: int, disk: Disk, scheduler: Scheduler, process: Process) -> None:
        self.number = number
        self.folder = Path(f"/virtual/shard-{number}")
        self.bytes_max: int | None = None
        self.disk = disk
        self._blocks = disk.shards[number]
        self._scheduler = scheduler
        self._process = process
        self._seen: set[BlockId] = set()

    def _switch(self, label: str, stay: float = 0.45) -> None:
        self._scheduler.switch(label, stay=stay)
        if self._process.dead:
            raise Killed

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
        if self._scheduler.dice.random() < READ_SWITCH:
            self._switch("read")
        elif self._process.dead:
            raise Killed
        data = self._blocks.get(block)
        if data is None:
            return None
        if block not in self._seen:
            verify_block(block, data)
            self._seen.add(block)
        view = memoryview(data)
        result = job(view)
        try:
            view.release()
        except BufferError as cause:
            raise Internal("a job kept a view of a block", block=block.hex()) from cause
        return result

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        return [self.use(block, bytes) for block in ids]

    def read_sync(self, block: BlockId) -> bytes | None:
        self._seen.discard(block)
        return self.use(block, bytes)

    def has_met(self, block: BlockId) -> bool:
        return block in self._seen

    def refresh(self) -> bool:
        return False

    def retire(self) -> None:
        """Nobody reads it any more."""

    def idle(self) -> bool:
        return True

    def has_many_sync(self, ids: Sequence[BlockId]) -> list[bool]:
        self._switch("has")
        return [block in self._blocks for block in ids]

    def put_many_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        for block, data in blocks:
            verify_block(block, data)
        self.put_verified_sync(blocks)

    def put_verified_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        if not blocks:
            return
        self._switch("put")
        if self.disk.full and self._scheduler.dice.random() < self.disk.full:
            raise StorageFull("no space left on the disk", path=str(self.folder))
        self._blocks.update(blocks)
        self._seen.difference_update(block for block, _ in blocks)
        self._switch("put is durable")

    def delete_many_sync(self, ids: Sequence[BlockId]) -> None:
        self._switch("delete")
        for block in ids:
            self._blocks.pop(block, None)
            self._seen.discard(block)
        self._switch("deleted")

    def scan_sync(self, low: int = 0, high: int = 65_536) -> Iterator[tuple[BlockId, int]]:
        for block in sorted(self._blocks):
            if low <= partition_of(block) < high:
                data = self._blocks.get(block)
                if data is not None:
                    yield block, len(data)
        self._switch("scan")

    def stats(self) -> ShardStats:
        size = sum(map(len, self._blocks.values()))
        return ShardStats(len(self._blocks), size, size)

    def reader_check(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is held."""
