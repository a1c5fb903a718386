"""A backup to read from: its blocks as a store of blocks, its rows as a snapshot of a journal."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from shardgit.backup.rows import decode_rows
from shardgit.blocks.on_workers import OnWorkers
from shardgit.errors import BackupCorrupt, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shardgit.backup.cut import Cut
    from shardgit.backup.target import Target
    from shardgit.journal.interface import Row
    from shardgit.oid import BlockId
    from shardgit.workers import Workers

T = TypeVar("T")
CHUNKS_CACHED = 16
BLOCKS_CACHED = 32


class BackupBlocks(OnWorkers):
    """The blocks of a target, read only; see BlockStore. Each is checked against its id as it comes.

    A block that the target lacks is None; one that is damaged there is BackupCorrupt.
    """

    in_place = False

    def __init__(self, target: Target, workers: Workers) -> None:
        self.workers = workers
        self._target = target
        self._cached: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = Lock()

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore. Neighbours are read together."""
        with self._lock:
            found: dict[bytes, bytes] = {
                one: self._cached[one] for one in ids if one in self._cached
            }
        missing = {one for one in ids if one not in found and one in self._target}
        for span in self._target.spans(missing):
            found.update(self._target.read(span))
        with self._lock:
            for one in missing:
                self._cached[one] = found[one]
            while len(self._cached) > BLOCKS_CACHED:
                self._cached.popitem(last=False)
        return [found.get(one) for one in ids]

    def has_many_sync(self, ids: Sequence[BlockId]) -> list[bool]:
        """See BlockStore."""
        return [one in self._target for one in ids]

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
        """See BlockStore."""
        (data,) = self.get_many_sync([block])
        if data is None:
            return None
        with memoryview(data) as view:
            return job(view)

    def scan_sync(self, low: int = 0, high: int = 65_536) -> Iterator[tuple[BlockId, int]]:
        """See BlockStore."""
        raise Refused("a backup is not scanned", low=low, high=high)

    def put_many_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """See BlockStore."""
        raise Refused("a backup is only read", blocks=len(blocks))

    def delete_many_sync(self, ids: Sequence[BlockId]) -> None:
        """See BlockStore."""
        raise Refused("a backup is only read", blocks=len(ids))


class CutSnapshot:
    """The rows of a backup; see JournalSnapshot. Used by one thread at a time."""

    def __init__(self, target: Target, cut: Cut) -> None:
        self.revision = cut.facts.revision
        self._target = target
        self._cut = cut
        self._firsts = [chunk.first for chunk in cut.chunks]
        self._cached: OrderedDict[int, list[Row]] = OrderedDict()

    def rows(self, number: int) -> list[Row]:
        """Return the rows of one blob. Errors: BackupCorrupt."""
        found = self._cached.get(number)
        if found is None:
            chunk = self._cut.chunks[number]
            found = decode_rows(self._target.get(chunk.id))
            last = number + 1 == len(self._firsts)
            if (
                len(found) != chunk.rows
                or not found
                or found[0].key != chunk.first
                or (not last and found[-1].key >= self._firsts[number + 1])
            ):
                raise BackupCorrupt(
                    "rows of the backup are not those it names", blob=chunk.id.hex()
                )
            self._cached[number] = found
            while len(self._cached) > CHUNKS_CACHED:
                self._cached.popitem(last=False)
        else:
            self._cached.move_to_end(number)
        return found

    def get(self, key: bytes) -> Row | None:
        """See JournalSnapshot."""
        return next(self.range(key, key + b"\0", limit=1), None)

    def range(self, low: bytes, high: bytes, *, limit: int | None = None) -> Iterator[Row]:
        """See JournalSnapshot."""
        given = 0
        for number in range(max(bisect_right(self._firsts, low) - 1, 0), len(self._firsts)):
            if self._firsts[number] >= high:
                return
            for row in self.rows(number):
                if row.key >= high or given == limit:
                    return
                if row.key >= low:
                    yield row
                    given += 1
