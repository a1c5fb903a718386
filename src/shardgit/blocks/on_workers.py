"""The event-loop half of a block store, on top of its thread half."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from contextlib import AbstractContextManager

    from shardgit.oid import BlockId
    from shardgit.workers import Workers

SCAN_BATCH = 1_000
_NEAR = nullcontext()  # enters and leaves any number of times


class OnWorkers:
    """Runs the ``_sync`` methods on workers. Subclasses set ``workers`` and implement those."""

    workers: Workers
    in_place = True

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore."""
        raise NotImplementedError

    def put_many_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """See BlockStore."""
        raise NotImplementedError

    def has_many_sync(self, ids: Sequence[BlockId]) -> list[bool]:
        """See BlockStore."""
        raise NotImplementedError

    def delete_many_sync(self, ids: Sequence[BlockId]) -> None:
        """See BlockStore."""
        raise NotImplementedError

    def prefetch(self, ids: Sequence[BlockId]) -> AbstractContextManager[object]:
        """See BlockStore."""
        return _NEAR

    def scan_sync(self, low: int = 0, high: int = 65_536) -> Iterator[tuple[BlockId, int]]:
        """See BlockStore."""
        raise NotImplementedError

    async def get_many(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore."""
        return await self.workers.run(self.get_many_sync, ids)

    async def put_many(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """See BlockStore."""
        await self.workers.run(self.put_many_sync, blocks)

    async def has_many(self, ids: Sequence[BlockId]) -> list[bool]:
        """See BlockStore."""
        return await self.workers.run(self.has_many_sync, ids)

    async def delete_many(self, ids: Sequence[BlockId]) -> None:
        """See BlockStore."""
        await self.workers.run(self.delete_many_sync, ids)

    async def scan(self, low: int = 0, high: int = 65_536) -> AsyncIterator[tuple[BlockId, int]]:
        """See BlockStore."""
        source = self.scan_sync(low, high)
        while batch := await self.workers.run(lambda: list(itertools.islice(source, SCAN_BATCH))):
            for row in batch:
                yield row
