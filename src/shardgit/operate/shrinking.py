"""Compacting shards: LMDB's file never shrinks, so live blocks go into a fresh one, online."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.blocks.shrinking import clear_left_environments, shrink
from shardgit.errors import ShardMissing
from shardgit.journal.held import check_open
from shardgit.journal.mode import check_writable
from shardgit.operate.operation import running
from shardgit.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

COMPACTING = "compact-shards"
FREE_MIN = 0.15  # of the file: below, a copy is not worth its writes
FILE_MIN_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ShardCompacted:
    """A shard before and after; ``copied`` is False where there was too little to win."""

    id: int
    copied: bool
    blocks: int
    live_bytes: int
    file_before: int
    file_after: int
    damaged: int


@dataclass(frozen=True, slots=True)
class ShardsCompacted:
    """All shards that were asked for."""

    shards: tuple[ShardCompacted, ...]


def compact_shards(
    store: Store, numbers: Sequence[int] = (), *, force: bool = False, control: Control
) -> ShardsCompacted:
    """Copy shards whose files are more than 15% free into fresh files, and swap these in.

    Without ``numbers`` these are all that are not read-only. ``force`` copies them however full they are. Processes
    that serve go on, and take the new file over within seconds. Errors: ShardMissing, StorageFull when there is no room
    beside the old file, ReadOnly, Refused, Stopped.
    """
    check_writable(store.journal)
    with running(store, COMPACTING):
        stats = store.routed.stats()
        for number in numbers:
            if number not in stats:
                raise ShardMissing("store has no such shard", shard=number)
        if numbers:
            check_open(store.journal, numbers)
        chosen = numbers or [n for n in stats if n not in store.routed.held.shards]
        return ShardsCompacted(
            tuple(_compact(store, n, force=force, control=control) for n in chosen)
        )


def _compact(store: Store, number: int, *, force: bool, control: Control) -> ShardCompacted:
    shard = store.routed.shards[number]
    clear_left_environments(shard.folder)
    stats = shard.stats()
    live, size = stats.live_bytes, stats.file_bytes
    if not force and (size < FILE_MIN_BYTES or size - live <= FREE_MIN * size):
        return ShardCompacted(number, False, stats.blocks, live, size, size, 0)
    done = 0

    def copied(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        control.report(Progress(f"copying shard {number}", done, max(live, done), "bytes"))
        control.pace(size_bytes)

    found = shrink(shard, copied)
    return ShardCompacted(
        number, True, found.blocks, live, found.file_before, found.file_after, found.damaged
    )
