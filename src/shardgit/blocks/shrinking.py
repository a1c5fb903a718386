"""A shard's environment copied into a fresh one and swapped for it, while other processes use it.

LMDB's file never shrinks. The fresh environment lies in a folder of its own inside the shard's, and the identity file
says which one counts. The swap happens under the old environment's writer lock, which orders all processes: who gets
that lock later sees the new identity file and writes to the new environment; who reads the old one finds there all
that was ever acknowledged before the swap, and looks at the identity file before it says that a block is missing.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardgit import faultpoints
from shardgit.blocks.block import verify_block
from shardgit.blocks.identity import (
    ENVIRONMENT_PREFIX,
    environment_by,
    fsync,
    read_identity,
    write_identity,
)
from shardgit.blocks.shard import RESERVE_BYTES
from shardgit.errors import BlockCorrupt, Refused, StorageFull
from shardgit.lmdbenv import Environment
from shardgit.oid import BlockId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import lmdb

    from shardgit.blocks.shard import ShardStore

BATCH_BYTES = (
    16 << 20
)  # of one fsynced transaction of the fresh environment, which nobody waits for


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What a copy took over; ``damaged`` blocks were copied as they are."""

    blocks: int
    file_before: int
    file_after: int
    damaged: int


def shrink(shard: ShardStore, copied: Callable[[int], None]) -> Shrunk:
    """Copy a shard's live blocks into a fresh environment and put that in place of the old one.

    ``copied`` is told the bytes of each batch, and may raise to give up: then, as after a crash, all is as it was but
    for a folder that the next call removes. The caller keeps others from doing the same.

    Errors: StorageFull, Refused for a shard without an identity file.
    """
    facts = clear_left_environments(shard.folder)
    _check_room(shard)
    before = shard.stats().file_bytes
    old = environment_by(shard.folder, facts)
    name = ENVIRONMENT_PREFIX + os.urandom(8).hex()
    fresh = Environment(shard.folder / name, create=True, part="shard")
    swapped = False
    try:
        copy = _Copy(shard, fresh, copied)
        copy.pull([block for block, _ in shard.scan_sync()])
        copy.pull(
            copy.differences()[0]
        )  # what came meanwhile, so that little is left for the locked part
        for file in (fresh.file, fresh.folder, shard.folder):
            fsync(file)
        with shard.swapping() as transaction:
            missing, extra = copy.differences()
            copy.put(_read(transaction, [*missing, *copy.damaged]))
            copy.drop(extra)
            # commit point: before it the old environment counts, after it the fresh one; both have everything, and
            # nobody else writes to either.
            faultpoints.reach("shrink.before_swap")
            shard.swap_in(
                fresh,
                lambda: write_identity(
                    shard.folder, str(facts["store"]), int(facts["shard"]), environment=name
                ),
            )
            swapped = True
            faultpoints.reach("shrink.after_swap")
        blocks = fresh.entries()
    finally:
        if not swapped:
            fresh.close()
    shard.refresh()
    _remove(shard.folder, old)
    return Shrunk(blocks, before, shard.stats().file_bytes, len(copy.damaged))


def clear_left_environments(folder: Path) -> dict[str, Any]:
    """Remove environments of a shard that do not count: those of copies that were cut short, or were swapped.

    Returns the facts of its identity file. Errors: Refused when it does not tell which one counts; none is removed.
    """
    facts = read_identity(folder)
    if facts is None:
        raise Refused("shard has no identity file that can be read", path=str(folder))
    current = environment_by(folder, facts)
    for left in folder.glob(f"{ENVIRONMENT_PREFIX}*"):
        if left != current:
            shutil.rmtree(left, ignore_errors=True)
    if current != folder:
        _remove(folder, folder)
    return facts


def _remove(folder: Path, environment: Path) -> None:
    """Remove an environment; processes that have it open keep its pages until they look around."""
    if environment != folder:
        shutil.rmtree(environment, ignore_errors=True)
        return
    for name in ("data.mdb", "lock.mdb"):  # who opens it looks for the data first
        (folder / name).unlink(missing_ok=True)


def _check_room(shard: ShardStore) -> None:
    need = shard.stats().live_bytes + RESERVE_BYTES
    disk = os.statvfs(shard.folder)
    if need > disk.f_bavail * disk.f_frsize:
        raise StorageFull("no room for a copy of the shard", path=str(shard.folder), needed=need)


def _read(transaction: lmdb.Transaction, blocks: Sequence[BlockId]) -> list[tuple[BlockId, bytes]]:
    found = ((block, transaction.get(block)) for block in blocks)
    return [(block, bytes(data)) for block, data in found if data is not None]


class _Copy:
    def __init__(
        self, shard: ShardStore, fresh: Environment, copied: Callable[[int], None]
    ) -> None:
        self.damaged: list[BlockId] = []
        self._shard = shard
        self._fresh = fresh
        self._copied = copied

    def pull(self, blocks: Sequence[BlockId]) -> None:
        """Copy blocks in batches; damaged ones as they are, for a repair to find."""
        batch: list[tuple[BlockId, bytes]] = []
        held = 0
        for block in blocks:
            data = self._shard.raw_sync(block)
            if data is None:
                continue
            try:
                verify_block(block, data)
            except BlockCorrupt:
                self.damaged.append(block)
            batch.append((block, data))
            held += len(data)
            if held >= BATCH_BYTES:
                self._pass_on(batch, held)
                batch, held = [], 0
        if batch:
            self._pass_on(batch, held)

    def _pass_on(self, batch: Sequence[tuple[BlockId, bytes]], held: int) -> None:
        self.put(batch)
        self._copied(held)

    def put(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """Write blocks to the fresh environment, durably."""
        faultpoints.reach("shrink.before_copy")
        with self._fresh.write() as transaction:
            for block, data in blocks:
                transaction.put(block, data)
        faultpoints.reach("shrink.after_copy")

    def drop(self, blocks: Sequence[BlockId]) -> None:
        """Delete from the fresh environment what was deleted from the shard meanwhile."""
        with self._fresh.write() as transaction:
            for block in blocks:
                transaction.delete(block)

    def differences(self) -> tuple[list[BlockId], list[BlockId]]:
        """Return the ids that only the shard has, and those that only the copy has."""
        with self._fresh.read() as transaction, transaction.cursor() as cursor:
            copied = {BlockId(bytes(key)) for key in cursor.iternext(values=False)}
        here = {block for block, _ in self._shard.scan_sync()}
        return sorted(here - copied), sorted(copied - here)
