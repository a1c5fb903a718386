"""The node's tier: blocks on the node's own disks, bounded, that can be lost at any time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from shardgit import metrics
from shardgit.blocks.frequency import Sketch
from shardgit.blocks.generations import Found, Generations
from shardgit.errors import DataLoss
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from shardgit.oid import BlockId

T = TypeVar("T")
BLOCK_TYPICAL_BYTES = 256 << 10  # how many counters a sketch gets
VICTIMS = 5  # of the oldest generation that a newcomer is compared with
OWNED, FOREIGN = "owned", "foreign"


@dataclass(frozen=True, slots=True)
class _Disk:
    owned: Generations
    foreign: Generations
    sketch: Sketch

    def parts(self) -> tuple[tuple[str, Generations], ...]:
        return ((OWNED, self.owned), (FOREIGN, self.foreign))


class Tier:
    """Blocks that the ring gives this node, all of them as far as they fit, and foreign ones that are asked for often.

    ``folders`` are one a disk; a block lies on the disk that its id says, and the bytes are divided evenly. All
    processes of a node share it. Nothing raises because of a disk: what is full, away or damaged is a miss. Only a
    disk that fails under a page that is mapped ends the process, as it does with any LMDB file.

    Foreign blocks are let in while there is room, and then when they were asked for more often, lately, than the
    median of some that would go next (TinyLFU). What is read from the oldest generations goes on to the newest.
    """

    def __init__(self, folders: Sequence[Path], *, owned_bytes: int, foreign_bytes: int) -> None:
        # Its own: making a generation durable may take a minute, for which nothing else should wait.
        self.workers = workers = Workers(1)
        count = len(folders)
        self._disks = [
            _Disk(
                Generations(folder / OWNED, workers, bytes_max=owned_bytes // count),
                Generations(folder / FOREIGN, workers, bytes_max=foreign_bytes // count),
                _sketch(folder, foreign_bytes // count // BLOCK_TYPICAL_BYTES),
            )
            for folder in folders
        ]

    def _disk(self, block: BlockId) -> _Disk:
        # Not by the bytes that the ring and the sketch go by.
        return self._disks[block[31] % len(self._disks)]

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> tuple[T] | None:
        """Run a job over a block's bytes where they lie; None when it is not here.

        What the job raises is raised, but DataLoss over bytes that turn out to be damaged: these are dropped.
        """
        disk = self._disk(block)
        outcome = "miss"
        for name, part in disk.parts():
            if name == FOREIGN:  # what the ring gives this node is let in without being counted
                disk.sketch.count(block)
            try:
                found = part.use(block, job)
            except DataLoss:
                # They were whole when this process first met them, and are looked at again.
                if not part.recheck(block):
                    raise
                outcome = "damaged"
                continue
            if isinstance(found, Found):
                if found.ages and (name == OWNED or disk.sketch.estimate(block) > 1):
                    part.carry(block)
                metrics.TIER_READS.labels(name).inc()
                return (found.result,)
            if found is not None:
                outcome = "damaged"
        metrics.TIER_READS.labels(outcome).inc()
        return None

    def has_many(self, ids: Sequence[BlockId]) -> list[bool]:
        """Say which blocks are here."""
        by_disk: dict[int, list[int]] = {}
        for position, block in enumerate(ids):
            by_disk.setdefault(block[31] % len(self._disks), []).append(position)
        found = [False] * len(ids)
        for number, positions in by_disk.items():
            disk = self._disks[number]
            some = [ids[position] for position in positions]
            for _, part in disk.parts():
                for position, is_here in zip(positions, part.has_many(some), strict=True):
                    found[position] |= is_here
        return found

    def put(self, block: BlockId, data: bytes, *, owned: bool) -> bool:
        """Take a block that was checked against its id; says whether it was let in."""
        disk = self._disk(block)
        part = disk.owned if owned else disk.foreign
        if not owned and not self._admits(disk, block):
            metrics.TIER_WRITES.labels(FOREIGN, "refused").inc()
            return False
        done = part.put([(block, data)]) == 1
        outcome = "done" if done else "failed"
        metrics.TIER_WRITES.labels(OWNED if owned else FOREIGN, outcome).inc()
        return done

    def _admits(self, disk: _Disk, block: BlockId) -> bool:
        # From its own place in their order on: as good as any, and another one for each block.
        victims = sorted(map(disk.sketch.estimate, disk.foreign.sample(block, VICTIMS)))
        return not victims or disk.sketch.estimate(block) > victims[len(victims) // 2]

    def delete_many(self, ids: Sequence[BlockId]) -> None:
        """Drop blocks."""
        for number, disk in enumerate(self._disks):
            some = [block for block in ids if block[31] % len(self._disks) == number]
            if some:
                for _, part in disk.parts():
                    part.delete(some)

    def scan(self) -> Iterator[tuple[BlockId, int]]:
        """Return id and bytes of what is here, in no order; a block may be told twice."""
        for disk in self._disks:
            for _, part in disk.parts():
                yield from part.scan()

    def bytes_used(self) -> dict[str, int]:
        """Return the bytes on the disks, by part."""
        return {
            name: sum(dict(disk.parts())[name].bytes_used() for disk in self._disks)
            for name in (OWNED, FOREIGN)
        }

    def look_around(self) -> None:
        """Do what gives disks their bytes back under an idle process, once in a while."""
        for disk in self._disks:
            for _, part in disk.parts():
                part.look_around()

    def close(self) -> None:
        """Close every environment; no call may be under way."""
        self.workers.close()
        for disk in self._disks:
            disk.owned.close()
            disk.foreign.close()
            disk.sketch.close()


def _sketch(folder: Path, blocks: int) -> Sketch:
    """Open a disk's sketch; this process has one of its own where the disk does not have it."""
    try:
        return Sketch(folder / "sketch", blocks=blocks)
    except OSError:
        return Sketch(None, blocks=blocks)
