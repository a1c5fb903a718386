"""A shard: one LMDB environment whose only table maps block id to bytes."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import lmdb

from shardgit import faultpoints
from shardgit.blocks.block import verify_block
from shardgit.blocks.on_workers import OnWorkers
from shardgit.errors import DataLoss, Internal, ShardgitError, StorageFull, Unavailable
from shardgit.lmdbenv import PAGE_BYTES, Environment
from shardgit.oid import BlockId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from shardgit.workers import Workers

T = TypeVar("T")
SCAN_BATCH = 256
# Ids of one generation of blocks seen whole; two of them take 32 MB at most, for 256 GiB of blocks.
SEEN_MAX = 1 << 17
SEEN_BYTES = 16
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


class _Seen:
    """The blocks that this process has checked already; the longest unseen are forgotten first."""

    def __init__(self) -> None:
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def __contains__(self, block: BlockId) -> bool:
        key = block[:SEEN_BYTES]
        if key in self._young:
            return True
        if key not in self._old:
            return False
        self.add(block)
        return True

    def add(self, block: BlockId) -> None:
        if len(self._young) >= SEEN_MAX:
            self._old, self._young = self._young, set()
        self._young.add(block[:SEEN_BYTES])

    def discard(self, block: BlockId) -> None:
        self._young.discard(block[:SEEN_BYTES])
        self._old.discard(block[:SEEN_BYTES])


class ShardStore(OnWorkers):
    """Blocks in one LMDB environment; any number of processes may have it open.

    Each read has a transaction of its own that ends with the block's copy or job, so no reader
    keeps freed pages alive. ``bytes_max`` bounds the live bytes by our own counting: past it a put
    is StorageFull before anything is written, and so it is when too little of the disk would be
    left (RESERVE_BYTES). Deleting frees pages for later puts; the file stays as large as it was.
    """

    def __init__(
        self, folder: Path, workers: Workers, *, bytes_max: int | None = None, create: bool = False
    ) -> None:
        self.workers = workers
        self.bytes_max = bytes_max
        self._environment = Environment(folder, create=create)
        # One writer a process; between processes LMDB's own lock orders them.
        self._writer = threading.Lock()
        self._seen = _Seen()
        self._closed = False

    @property
    def folder(self) -> Path:
        """Where the environment lies."""
        return self._environment.folder

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        if self._closed:
            raise Internal("shard is closed", path=str(self.folder))
        try:
            with self._environment.read() as transaction:
                yield transaction
        except lmdb.ReadersFullError as cause:
            raise Unavailable("all reader slots are taken", path=str(self.folder)) from cause
        except lmdb.Error as cause:
            facts = {"path": str(self.folder), "cause": str(cause)}
            raise DataLoss("shard's database is damaged", **facts) from cause

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
        """See BlockStore. The transaction lives as long as the job."""
        with self._reading() as transaction:
            view = transaction.get(block)
            if view is None:
                return None
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

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore. One transaction a block: no reader outlives one block's copy."""
        return [self.use(block, bytes) for block in ids]

    def has_many_sync(self, ids: Sequence[BlockId]) -> list[bool]:
        """See BlockStore."""
        with self._reading() as transaction:
            return [transaction.get(block) is not None for block in ids]

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
        if self._closed:
            raise Internal("shard is closed", path=str(self.folder))
        if not blocks:
            return
        with self._writer:
            try:
                # commit point: before it a crash leaves none of the batch, after it all of it is
                # durable; either way nothing names these blocks before the journal does.
                with self._environment.write() as transaction:
                    fresh = [
                        (block, data)
                        for block, data in sorted(dict(blocks).items())
                        if not _is_here(transaction, block, data)
                    ]
                    self._check_room(fresh)
                    for block, data in fresh:
                        transaction.put(block, data)
                    faultpoints.reach("shard.before_put")
                faultpoints.reach("shard.after_put")
            except StorageFull:
                # Others, the journal first, may need the room that the failed batch took.
                with suppress(ShardgitError):
                    self._environment.trim()
                raise
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
        if self._closed:
            raise Internal("shard is closed", path=str(self.folder))
        # commit point: before it a crash leaves all of the batch, after it none.
        with self._writer, self._environment.write() as transaction:
            for block in ids:
                transaction.delete(block)
            faultpoints.reach("shard.before_delete")
        faultpoints.reach("shard.after_delete")
        for block in ids:
            self._seen.discard(block)

    def scan_sync(self, low: int = 0, high: int = 65_536) -> Iterator[tuple[BlockId, int]]:
        """See BlockStore. A transaction a batch of 256."""
        at = low.to_bytes(2, "big") if low < 65_536 else b"\xff" * 33
        end = high.to_bytes(2, "big") if high < 65_536 else b"\xff" * 33
        more = True
        while more:
            rows: list[tuple[BlockId, int]] = []
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
        live, _ = self._environment.pages_used()
        size = self._environment.file.stat().st_size
        return ShardStats(self._environment.entries(), live * PAGE_BYTES, size)

    def reader_check(self) -> int:
        """Free the reader slots of dead processes; returns how many there were."""
        return self._environment.reader_check()

    def close(self) -> None:
        """Close the environment; no read or write may be under way."""
        self._closed = True
        self._environment.close()


def _is_here(transaction: lmdb.Transaction, block: BlockId, data: bytes) -> bool:
    found = transaction.get(block)
    # A copy is compared, not the view: 0.1 ms a MiB against 1 ms.
    return found is not None and len(found) == len(data) and bytes(found) == data


def _pages(data: bytes) -> int:
    """Return the pages that LMDB takes for a value, small ones counted as one."""
    return -(-(len(data) + OVERFLOW_HEADER_BYTES) // PAGE_BYTES)
