"""What every store of blocks promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from shardgit.blocks.block import BlockHeader
    from shardgit.oid import BlockId

T = TypeVar("T")


class BlockStore(Protocol):
    """Immutable blocks by content id.

    put_many returns once every block is durable; from then on get_many sees it in any process. Two
    puts of one id carry equal bytes, so either may win. A block that does not match its id or has a
    broken header is BlockCorrupt, and nothing of its batch is stored.

    A missing id is None, not an error. Damaged bytes are BlockCorrupt, never returned: a block is
    checked against its id the first time a process touches it. Putting a damaged block again
    repairs it.

    A put that meets a full disk, map or size limit is StorageFull and leaves nothing of its batch
    behind in that shard; all that was there stays readable.

    The methods named ``_sync`` and ``use`` run in the calling thread (a worker's, never the event
    loop's) and may be called from many threads at once; the others are the same for the event
    loop. A cancelled call ends once its job has ended: a put that was cancelled has either
    happened or not, and is safe to repeat. Nothing may be used across a fork.
    """

    in_place: bool
    """Whether ``use`` finds a block on this machine, so that using it again and again costs nothing."""

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """Return a copy of each block, None where it is missing, in the order of ``ids``."""
        ...

    def put_many_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """Store blocks; durable on return."""
        ...

    def has_many_sync(self, ids: Sequence[BlockId]) -> list[bool]:
        """Say which blocks are here."""
        ...

    def delete_many_sync(self, ids: Sequence[BlockId]) -> None:
        """Delete blocks; those that are missing are passed over. Durable on return."""
        ...

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
        """Run ``job`` over a block's bytes where they lie; None when it is missing.

        The view dies with the call: a copy of what is needed, or a kernel's result, leaves it.
        It is released behind the job; slices of it are not, and must not be kept. A job may be run
        again over another replica, so it is free of effects or safe to repeat.
        """
        ...

    def prefetch(self, ids: Sequence[BlockId]) -> AbstractContextManager[object]:
        """Make ready what will be used in that order while the ``with`` lasts, within a bound of bytes.

        A hint: nothing is raised, and a store whose blocks are near does nothing.
        """
        ...

    def scan_sync(self, low: int = 0, high: int = 65_536) -> Iterator[tuple[BlockId, int]]:
        """Return id and length of the blocks in partitions ``low`` to ``high`` - 1, by rising id.

        A block put or deleted meanwhile may or may not be seen; no transaction outlives a batch.
        """
        ...

    async def get_many(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """Do what get_many_sync does."""
        ...

    async def put_many(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """Do what put_many_sync does."""
        ...

    async def has_many(self, ids: Sequence[BlockId]) -> list[bool]:
        """Do what has_many_sync does."""
        ...

    async def delete_many(self, ids: Sequence[BlockId]) -> None:
        """Do what delete_many_sync does."""
        ...

    def scan(self, low: int = 0, high: int = 65_536) -> AsyncIterator[tuple[BlockId, int]]:
        """Do what scan_sync does."""
        ...


class StoreBlocks(BlockStore, Protocol):
    """What a store that serves wants beside."""

    def headers(self, ids: Sequence[BlockId]) -> list[BlockHeader | None]:
        """Return the headers of blocks, None for those that are missing or damaged."""
        ...

    def begin_threads(self) -> None:
        """Begin the threads that read and write, at the priority of the one that calls."""
        ...

    def look_around(self) -> None:
        """Do what keeps an idle process up to date."""
        ...

    def close(self) -> None:
        """Close; no call may be under way."""
        ...
