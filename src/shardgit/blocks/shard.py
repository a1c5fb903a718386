"""A shard: one LMDB environment whose only table maps block id to bytes."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from shardgit.blocks.block import verify_block
from shardgit.blocks.on_workers import OnWorkers
from shardgit.errors import StorageFull
from shardgit.lmdbenv import PAGE_BYTES, Environment
from shardgit.oid import BlockId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from shardgit.workers import Workers

T = TypeVar("T")
SCAN_BATCH = 256
VERIFIED_MAX = 1 << 20  # 8-byte prefixes of blocks seen whole; 64 MiB at most, then begun anew


@dataclass(frozen=True, slots=True)
class ShardStats:
    """What a shard holds. ``file_bytes`` never shrinks by itself."""

    blocks: int
    live_bytes: int
    file_bytes: int


class ShardStore(OnWorkers):
    """Blocks in one LMDB environment.

    ``bytes_max`` bounds the live bytes by our own counting; past it a put is StorageFull before anything is written.
    """

    def __init__(
        self, folder: Path, workers: Workers, *, bytes_max: int | None = None, create: bool = False
    ) -> None:
        self.workers = workers
        self.bytes_max = bytes_max
        self.folder = folder
        self._environment = Environment(folder, create=create)
        self._writer = threading.Lock()
        self._verified: set[bytes] = set()

    def _verify(self, block: BlockId, data: memoryview) -> None:
        if block[:16] not in self._verified:
            verify_block(block, data)
            if len(self._verified) >= VERIFIED_MAX:
                self._verified.clear()
            self._verified.add(block[:16])

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
        """See BlockStore. The transaction lives as long as the job."""
        with self._environment.read() as transaction:
            view = transaction.get(block)
            if view is None:
                return None
            self._verify(block, view)
            return job(view)

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore. One short transaction a block, so that no reader outlives one block's copy."""
        return [self.use(block, bytes) for block in ids]

    def has_many_sync(self, ids: Sequence[BlockId]) -> list[bool]:
        """See BlockStore."""
        with self._environment.read() as transaction:
            return [transaction.get(block) is not None for block in ids]

    def put_many_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """See BlockStore. One fsynced transaction for the batch."""
        for block, data in blocks:
            verify_block(block, data)
        if not blocks:
            return
        if self.bytes_max is not None:
            more = sum(len(data) + PAGE_BYTES for _, data in blocks)
            if self.stats().live_bytes + more > self.bytes_max:
                raise StorageFull("shard is at its size limit", limit=self.bytes_max)
        # commit point: before it a crash leaves none of the batch, after it all of it is durable; either way nothing
        # names these blocks before the journal does.
        with self._writer, self._environment.write() as transaction:
            for block, data in sorted(blocks):
                transaction.put(block, data, overwrite=False)

    def delete_many_sync(self, ids: Sequence[BlockId]) -> None:
        """See BlockStore."""
        # commit point: before it a crash leaves all of the batch, after it none.
        with self._writer, self._environment.write() as transaction:
            for block in ids:
                transaction.delete(block)
        self._verified.difference_update(block[:16] for block in ids)

    def scan_sync(self, low: int = 0, high: int = 65_536) -> Iterator[tuple[BlockId, int]]:
        """See BlockStore."""
        at = low.to_bytes(2, "big")
        end = high.to_bytes(3, "big")[-2:] if high < 65_536 else b"\xff" * 33
        while True:
            rows: list[tuple[BlockId, int]] = []
            with self._environment.read() as transaction, transaction.cursor() as cursor:
                if cursor.set_range(at):
                    for key, value in cursor:
                        block = BlockId(bytes(key))
                        if block >= end:
                            break
                        rows.append((block, len(value)))
                        if len(rows) == SCAN_BATCH:
                            break
            yield from rows
            if len(rows) < SCAN_BATCH:
                return
            at = rows[-1][0] + b"\0"

    def stats(self) -> ShardStats:
        """Count what is here, from LMDB's own books."""
        live, total = self._environment.pages_used()
        return ShardStats(self._environment.entries(), live * PAGE_BYTES, total * PAGE_BYTES)

    def reader_check(self) -> int:
        """Free the reader slots of dead processes."""
        return self._environment.reader_check()

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()
