"""A shard: one LMDB environment whose only table maps block id to bytes."""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import lmdb

from shardgit import faultpoints
from shardgit.blocks.block import verify_block
from shardgit.blocks.identity import NO_MARK, environment_of, identity_mark
from shardgit.blocks.on_workers import OnWorkers
from shardgit.blocks.seen import Seen
from shardgit.errors import (
    DataLoss,
    Internal,
    Refused,
    ShardgitError,
    ShardMissing,
    StorageFull,
    Unavailable,
)
from shardgit.lmdbenv import MAP_BYTES, PAGE_BYTES, Environment
from shardgit.oid import BlockId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from shardgit.workers import Workers

T = TypeVar("T")
SCAN_BATCH = 256
OVERFLOW_HEADER_BYTES = 16
# Puts leave this much of a disk, so that the journal and deletes, which also take pages, go on.
RESERVE_BYTES = 16 << 20
FREED_PLENTY, FREED_PLENTY_BYTES = 4, 1 << 20


@dataclass(frozen=True, slots=True)
class ShardStats:
    """What a shard holds: blocks, their bytes in whole pages, and the file that never shrinks."""

    blocks: int
    live_bytes: int
    file_bytes: int


class _Missing:
    """What a look for a block gives that is not here: a job may give None."""


_MISSING = _Missing()


class _Opened:
    """One environment of a shard, and who is using it."""

    __slots__ = ("active", "environment", "inode", "mark")

    def __init__(self, environment: Environment, mark: tuple[int, int]) -> None:
        self.environment = environment
        self.inode = environment.file.stat().st_ino
        self.mark = mark
        # As long as many use it; appending and popping are atomic, and cheaper than a lock.
        self.active: deque[None] = deque()

    def is_in(self, folder: Path) -> bool:
        """Say whether it is the one that lies in a folder."""
        with suppress(FileNotFoundError):
            return folder == self.environment.folder and (
                self.environment.file.stat().st_ino == self.inode
            )
        return False


def _open(
    folder: Path, *, create: bool = False, durable: bool = True, map_bytes: int = MAP_BYTES
) -> _Opened:
    """Open the environment that the shard's identity names now."""
    while True:
        mark = identity_mark(folder)
        try:
            environment = Environment(
                environment_of(folder),
                create=create,
                durable=durable,
                map_bytes=map_bytes,
                part="shard",
            )
            opened = _Opened(environment, mark)
        except (DataLoss, FileNotFoundError):
            if identity_mark(folder) == mark:
                raise
            continue  # swapped by a compaction while we looked
        if identity_mark(folder) == mark:
            return opened
        opened.environment.close()


class ShardStore(OnWorkers):
    """Blocks in one LMDB environment; any number of processes may have it open.

    Each read has a transaction of its own that ends with the block's copy or job, so no reader
    keeps freed pages alive. ``bytes_max`` bounds the live bytes by our own counting: past it a put
    is StorageFull before anything is written, and so it is when too little of the disk would be
    left (RESERVE_BYTES). Deleting frees pages for later puts; the file stays as large as it was.

    One that is not ``durable`` is whole after a kill, but after a crash of the machine only if it was ``sync``ed behind
    the last write.

    A compaction puts another environment in the place of this one, also under processes that have it open: who does
    not find a block, or has the lock for writing, looks whether that happened.
    """

    def __init__(
        self,
        folder: Path,
        workers: Workers,
        *,
        bytes_max: int | None = None,
        create: bool = False,
        durable: bool = True,
        map_bytes: int = MAP_BYTES,
    ) -> None:
        self.workers = workers
        self.bytes_max = bytes_max
        self.folder = folder
        self._durable, self._map_bytes = durable, map_bytes
        self._opened = _open(folder, create=create, durable=durable, map_bytes=map_bytes)
        self._before: list[_Opened] = []  # closed once nobody uses them any more
        self._swapping = threading.Lock()
        # One writer a process; between processes LMDB's own lock orders them.
        self._writer = threading.Lock()
        self._seen = Seen()
        self.guard: Callable[[], None] = _open_to_all  # asked under the lock of who would write
        self._closed = False
        self._retired = False

    @property
    def _environment(self) -> Environment:
        return self._opened.environment

    @contextmanager
    def _using(self) -> Iterator[_Opened]:
        """Give the environment, which is not closed before the block is left."""
        opened = self._taken()
        try:
            yield opened
        finally:
            opened.active.pop()

    def _taken(self) -> _Opened:
        """Return the environment, which is not closed before an item is popped off ``active``."""
        while True:
            if self._closed:
                raise Internal("shard is closed", path=str(self.folder))
            if self._retired:
                raise ShardMissing("shard has left the store", path=str(self.folder))
            opened = self._opened
            opened.active.append(None)
            if opened is self._opened and not self._retired:
                return opened
            opened.active.pop()

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        with self._using() as opened:
            try:
                with opened.environment.read() as transaction:
                    yield transaction
            except lmdb.Error as cause:
                raise self._failure(cause) from cause

    def _failure(self, cause: lmdb.Error) -> ShardgitError:
        if isinstance(cause, lmdb.ReadersFullError):
            return Unavailable("all reader slots are taken", path=str(self.folder))
        return DataLoss("shard's database is damaged", path=str(self.folder), cause=str(cause))

    @contextmanager
    def _writing(self) -> Iterator[lmdb.Transaction | None]:
        """Open a write transaction; gives None when the environment is not the shard's any more."""
        with self._using() as opened, self._writer:
            try:
                with opened.environment.write() as transaction:
                    # Compactions swap under this lock, so what is current now stays so to the commit.
                    current = identity_mark(self.folder) == opened.mark
                    if current:
                        self.guard()
                    yield transaction if current else None
            except StorageFull:
                # Others, the journal first, may need the room that the failed batch took.
                with suppress(ShardgitError):
                    opened.environment.trim(self.guard)
                raise

    def refresh(self) -> bool:
        """Take over the environment that a compaction has put in this one's place; says whether it did.

        Errors: Unavailable when the identity file is not to be seen, and all goes on as it was.
        """
        with self._swapping:
            self._close_idle()
            if self._closed or self._retired:
                return False
            mark = identity_mark(self.folder)
            if mark == self._opened.mark:
                return False
            if mark == NO_MARK:
                raise Unavailable("shard is not there now", path=str(self.folder))
            if self._opened.is_in(environment_of(self.folder)):  # the same facts, written again
                self._opened.mark = mark
                return False
            fresh = self._open_again()  # may fail: then this one is not closed either
            self._before.append(self._opened)
            self._opened = fresh
            self._close_idle()
            return True

    def _open_again(self) -> _Opened:
        return _open(self.folder, durable=self._durable, map_bytes=self._map_bytes)

    def _is_swapped(self, used: _Opened) -> bool:
        """Say whether the environment is another one than that, whichever thread has taken it over."""
        self.refresh()
        return self._opened is not used

    def retire(self) -> None:
        """Let no further use begin: the shard has left the store. ``idle`` says when all have ended."""
        with self._swapping:
            if not self._retired:
                self._retired = True
                self._before.append(self._opened)

    def idle(self) -> bool:
        """Close what is used no more; says whether a retired shard is closed whole."""
        with self._swapping:
            self._close_idle()
            return self._retired and not self._before

    def _close_idle(self) -> None:
        for opened in self._before:
            if not opened.active:
                opened.environment.close()
        self._before = [opened for opened in self._before if opened.active]

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
        """See BlockStore. The transaction lives as long as the job."""
        while True:
            used = self._opened
            found = self._use(block, job)
            if not isinstance(found, _Missing):
                return found
            if not self._is_swapped(used):
                return None

    def _use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | _Missing:
        # As ``_reading`` does: its generators were a third of what a small segment's read costs.
        opened = self._taken()
        try:
            with opened.environment.begin() as transaction:
                view = transaction.get(block)
                return _MISSING if view is None else self._over(block, view, job)
        except lmdb.Error as cause:
            raise self._failure(cause) from cause
        finally:
            opened.active.pop()

    def _over(self, block: BlockId, view: bytes | memoryview, job: Callable[[memoryview], T]) -> T:
        assert isinstance(view, memoryview)
        if block not in self._seen:
            verify_block(block, view)
            self._seen.add(block)
        try:
            result = job(view)
        except BaseException:
            with suppress(BufferError):  # held by the traceback's frames
                view.release()
            raise
        try:
            view.release()
        except BufferError as cause:
            # The pages may be reused as soon as the transaction ends.
            raise Internal("a job kept a view of a block", block=block.hex()) from cause
        return result

    def has_met(self, block: BlockId) -> bool:
        """Say whether this process has found a block whole, so that its use does not read all of it."""
        return block in self._seen

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore. One transaction a block: no reader outlives one block's copy."""
        return [self.use(block, bytes) for block in ids]

    def has_many_sync(self, ids: Sequence[BlockId]) -> list[bool]:
        """See BlockStore."""
        while True:
            used = self._opened
            with self._reading() as transaction:
                found = [transaction.get(block) is not None for block in ids]
            if all(found) or not self._is_swapped(used):
                return found

    def read_sync(self, block: BlockId) -> bytes | None:
        """Return a copy of a block after a check of its bytes as they lie here now.

        Errors: BlockCorrupt.
        """
        self._seen.discard(block)
        return self.use(block, bytes)

    def raw_sync(self, block: BlockId) -> bytes | None:
        """Return a copy of a block's bytes unchecked, for who copies what is damaged as it is."""
        with self._reading() as transaction:
            found = transaction.get(block)
            return None if found is None else bytes(found)

    @contextmanager
    def swapping(self) -> Iterator[lmdb.Transaction]:
        """Keep every process from writing, while another environment is put in this one's place; see shrinking.py."""
        with self._writing() as transaction:
            if transaction is None:
                raise Refused("shard's environment was swapped by another process")
            yield transaction

    def swap_in(self, fresh: Environment, write: Callable[[], None]) -> None:
        """Write the identity file that names another environment, open already, and go on with that one."""
        with self._swapping:  # a process may open an environment once
            write()
            opened = _Opened(fresh, identity_mark(self.folder))
            self._before.append(self._opened)
            self._opened = opened

    def has_whole(self, block: BlockId, data: bytes) -> bool:
        """Say whether these are the bytes that lie here."""
        self.refresh()
        with self._reading() as transaction:
            return _is_here(transaction, block, data)

    def await_writers(self) -> None:
        """Wait for who writes to the shard now; writes nothing."""
        self.refresh()
        with self._using() as opened, self._writer, opened.environment.write():
            pass  # LMDB writes no page for a transaction that changed none

    def put_many_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """See BlockStore. One fsynced transaction for the batch."""
        for block, data in blocks:
            verify_block(block, data)
        self.put_verified_sync(blocks)

    def put_verified_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """Do what put_many_sync does with blocks that the caller has checked against their ids.

        A block that is here already is not written again, unless the bytes here are damaged:
        then this repairs it.
        """
        fresh: list[tuple[BlockId, bytes]] = []
        while blocks:
            # commit point: before it a crash leaves none of the batch, after it all of it is
            # durable; either way nothing names these blocks before the journal does.
            with self._writing() as transaction:
                if transaction is not None:
                    fresh = [
                        (block, data)
                        for block, data in sorted(dict(blocks).items())
                        if not _is_here(transaction, block, data)
                    ]
                    self._check_room(fresh)
                    for block, data in fresh:
                        transaction.put(block, data)
                    faultpoints.reach("shard.before_put")
            if transaction is not None:
                faultpoints.reach("shard.after_put")
                break
            self.refresh()
        for block, _ in fresh:
            self._seen.discard(block)  # read back and checked at its first touch

    def _check_room(self, fresh: Sequence[tuple[BlockId, bytes]]) -> None:
        need = sum(_pages(data) for _, data in fresh) * PAGE_BYTES
        live, total = (pages * PAGE_BYTES for pages in self._environment.pages_used())
        if need and self.bytes_max is not None and live + need > self.bytes_max:
            raise StorageFull(
                "shard is at its size limit", path=str(self.folder), limit=self.bytes_max
            )
        disk = os.statvfs(self.folder)
        # Freed pages come first, but not each run of them is long enough: with plenty of them the
        # file hardly grows, otherwise the whole batch may have to go to its end.
        fits = total - live >= FREED_PLENTY * need + FREED_PLENTY_BYTES
        if need and not fits and need + RESERVE_BYTES > disk.f_bfree * disk.f_frsize:
            raise StorageFull("no space left on the disk", path=str(self.folder), needed=need)

    def delete_many_sync(self, ids: Sequence[BlockId]) -> None:
        """See BlockStore."""
        while True:
            # commit point: before it a crash leaves all of the batch, after it none.
            with self._writing() as transaction:
                if transaction is not None:
                    for block in ids:
                        transaction.delete(block)
                    faultpoints.reach("shard.before_delete")
            if transaction is not None:
                faultpoints.reach("shard.after_delete")
                break
            self.refresh()
        for block in ids:
            self._seen.discard(block)

    def scan_sync(self, low: int = 0, high: int = 65_536) -> Iterator[tuple[BlockId, int]]:
        """See BlockStore. A transaction a batch of 256."""
        at = low.to_bytes(2, "big") if low < 65_536 else b"\xff" * 33
        end = high.to_bytes(2, "big") if high < 65_536 else b"\xff" * 33
        more = True
        while more:
            rows: list[tuple[BlockId, int]] = []
            self.refresh()  # in the environment of before a swap, what came since would be missing
            with self._reading() as transaction, transaction.cursor() as cursor:
                more = cursor.set_range(at)
                while more and len(rows) < SCAN_BATCH:
                    block = BlockId(bytes(cursor.key()))
                    if block >= end:
                        more = False
                        break
                    rows.append((block, len(cursor.value())))
                    more = cursor.next()
            yield from rows
            if rows:
                at = rows[-1][0] + b"\0"

    def stats(self) -> ShardStats:
        """Count what is here, from LMDB's own books."""
        self.refresh()
        with self._using() as opened:
            live, _ = opened.environment.pages_used()
            size = opened.environment.file.stat().st_size
            return ShardStats(opened.environment.entries(), live * PAGE_BYTES, size)

    def file_bytes(self) -> int:
        """Return the bytes of the database file."""
        with self._using() as opened:
            return opened.environment.file.stat().st_size

    def sync(self) -> None:
        """Make durable what was written, for a shard that is not so by itself."""
        with self._using() as opened:
            opened.environment.sync()

    def reader_check(self) -> int:
        """Free the reader slots of dead processes; returns how many there were."""
        with self._using() as opened:
            return opened.environment.reader_check()

    def close(self) -> None:
        """Close the environment; no read or write may be under way."""
        self._closed = True
        for opened in [self._opened, *self._before]:
            opened.environment.close()


def _open_to_all() -> None:
    """Refuse nobody."""


def _is_here(transaction: lmdb.Transaction, block: BlockId, data: bytes) -> bool:
    found = transaction.get(block)
    # A copy is compared, not the view: 0.1 ms a MiB against 1 ms.
    return found is not None and len(found) == len(data) and bytes(found) == data


def _pages(data: bytes) -> int:
    """Return the pages that LMDB takes for a value, small ones counted as one."""
    return -(-(len(data) + OVERFLOW_HEADER_BYTES) // PAGE_BYTES)
