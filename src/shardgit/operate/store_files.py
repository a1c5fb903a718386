"""The database files of a store, read where they lie, whether they are damaged or not."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

from shardgit.blocks.block import partition_of
from shardgit.blocks.identity import environment_by, environment_of, read_identity
from shardgit.blocks.layout import open_layout
from shardgit.blocks.on_workers import OnWorkers
from shardgit.errors import DataLoss, Refused
from shardgit.operate.scrub import Scrub
from shardgit.operate.scrubber import END

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from shardgit.journal.interface import Row
    from shardgit.oid import BlockId
    from shardgit.ring.ring import Ring

T = TypeVar("T")
CACHED_BYTES = 64 << 20


class BlockSource(Protocol):
    """Where whole blocks can be had by id: a store, a backup, a folder."""

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """Return copies that match their ids, None for what is not there whole."""
        ...


class StoreFiles(OnWorkers):
    """The journal and the shards of a store's folder, each read in a process of its own.

    A block store to read from: what no file has whole is None. Used by one thread. A context manager.
    """

    def __init__(self, folder: Path) -> None:
        self.layout = open_layout(folder)
        self.journal = Scrub(self.layout.journal)
        self.shards = {
            place.number: Scrub(environment_of(place.path)) for place in self.layout.shards
        }
        self.paths = {place.number: place.path for place in self.layout.shards}
        self.ring: Ring | None = None
        self._cached: OrderedDict[BlockId, bytes] = OrderedDict()
        self._cached_bytes = 0

    def __enter__(self) -> StoreFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()
        for shard in self.shards.values():
            shard.close()

    def refresh(self) -> None:
        """Look whether shards were compacted meanwhile: their blocks lie in another database then."""
        for place in self.layout.shards:
            facts = read_identity(place.path)
            if facts is None:
                continue  # not to be seen now
            with suppress(Refused):
                folder = environment_by(place.path, facts)
                if folder != self.shards[place.number].folder:
                    self.shards[place.number].close()
                    self.shards[place.number] = Scrub(folder)

    def rows(self, low: bytes = b"", high: bytes = END) -> Iterator[Row]:
        """Return the whole rows of the journal with low <= key < high by rising key."""
        for some in self.journal.rows(low, high):
            yield from some.whole

    def homes(self, block: BlockId) -> tuple[int, ...]:
        """Return the shards that must have a block: by the ring, or all without one. Others may have it, too."""
        if self.ring is None:
            return tuple(self.shards)
        return self.ring.shards_of(partition_of(block))

    def may_keep(self, block: BlockId) -> tuple[int, ...]:
        """Return the shards where a block is no stray: while blocks move, also those that it moves to or from."""
        if self.ring is None:
            return tuple(self.shards)
        return self.ring.reads_of(partition_of(block))

    def read(self, block: BlockId) -> bytes | None:
        """Return a block that matches its id, from wherever it is."""
        return self.get_many_sync([block])[0]

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore."""
        return [self._read(block) for block in ids]

    def _read(self, block: BlockId) -> bytes | None:
        found = self._cached.get(block)
        if found is not None:
            self._cached.move_to_end(block)
            return found
        homes = [number for number in self.may_keep(block) if number in self.shards]
        for number in (*homes, *(other for other in self.shards if other not in homes)):
            with suppress(DataLoss, OSError):
                (found,) = self.shards[number].get_many([block])
                if found is not None:
                    self._keep(block, found)
                    return found
        return None

    def _keep(self, block: BlockId, data: bytes) -> None:
        self._cached[block] = data
        self._cached_bytes += len(data)
        while self._cached_bytes > CACHED_BYTES:
            _, dropped = self._cached.popitem(last=False)
            self._cached_bytes -= len(dropped)

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
        """See BlockStore."""
        data = self.read(block)
        if data is None:
            return None
        with memoryview(data) as view:
            return job(view)

    def has_many_sync(self, ids: Sequence[BlockId]) -> list[bool]:
        """See BlockStore."""
        return [data is not None for data in self.get_many_sync(ids)]

    def put_many_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """See BlockStore."""
        raise Refused("files of a store are only read", blocks=len(blocks))

    def delete_many_sync(self, ids: Sequence[BlockId]) -> None:
        """See BlockStore."""
        raise Refused("files of a store are only read", blocks=len(ids))

    def scan_sync(self, low: int = 0, high: int = 65_536) -> Iterator[tuple[BlockId, int]]:
        """See BlockStore."""
        raise Refused("files of a store are scanned one by one", low=low, high=high)
