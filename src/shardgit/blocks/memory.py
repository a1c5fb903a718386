"""A block store in memory, for tests and simulations: the obvious one."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from shardgit.blocks.block import partition_of, verify_block
from shardgit.blocks.on_workers import OnWorkers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shardgit.oid import BlockId
    from shardgit.workers import Workers

T = TypeVar("T")


class MemoryBlocks(OnWorkers):
    """Blocks in a dict."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.blocks: dict[BlockId, bytes] = {}

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore."""
        return [self.blocks.get(block) for block in ids]

    def put_many_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """See BlockStore."""
        for block, data in blocks:
            verify_block(block, data)
        self.blocks.update(blocks)

    def has_many_sync(self, ids: Sequence[BlockId]) -> list[bool]:
        """See BlockStore."""
        return [block in self.blocks for block in ids]

    def delete_many_sync(self, ids: Sequence[BlockId]) -> None:
        """See BlockStore."""
        for block in ids:
            self.blocks.pop(block, None)

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
        """See BlockStore."""
        data = self.blocks.get(block)
        if data is None:
            return None
        with memoryview(data) as view:
            return job(view)

    def scan_sync(self, low: int = 0, high: int = 65_536) -> Iterator[tuple[BlockId, int]]:
        """See BlockStore."""
        for block in sorted(self.blocks):
            data = self.blocks.get(block)
            if data is not None and low <= partition_of(block) < high:
                yield block, len(data)
