"""A shard's database made anew from its whole blocks, where LMDB's own pages are damaged.

New blocks must not go into damaged trees, so nobody may have the shard open meanwhile. What the trees still lead to is
taken, and what else lies in the file and has the form of a block; the damaged file is kept beside the new one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.blocks.shard import ShardStore
from shardgit.errors import BlockCorrupt, StoreBusy
from shardgit.faultpoints import reach
from shardgit.progress import Progress
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from shardgit.oid import BlockId
    from shardgit.operate.operation import Control
    from shardgit.operate.scrub import Scrub

MAKING = "remake.tmp"
KEPT = "data.mdb.damaged-"
BATCH_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Remade:
    """A shard that was made anew: blocks that its trees led to, blocks found beside them, and the old file."""

    shard: int
    blocks: int
    salvaged: int
    kept: str | None


def remake_shard(
    number: int, scrub: Scrub, belongs: Callable[[BlockId], bool], *, control: Control
) -> Remade:
    """Make the database of a shard anew from its file; ``belongs`` says which blocks the ring keeps there.

    Never in a process that has the store open itself: LMDB's lock does not keep a process from its own. Safe to stop
    and to do again: the new file takes the old one's place in one step. Errors: StoreBusy while another process has
    the shard open, StorageFull, Stopped.
    """
    folder = scrub.folder
    scrub.closed = True  # LMDB itself stays away from the file
    scrub.close()
    with _alone(folder), _one_worker() as workers:
        making = folder / MAKING
        shutil.rmtree(making, ignore_errors=True)
        made = ShardStore(making, workers, create=True)
        try:
            held: set[bytes] = set()
            found = 0
            if (folder / "data.mdb").exists():
                held = _copy(scrub, made, control)
                found = _salvage(scrub, made, held, belongs, control)
        finally:
            made.close()
            scrub.close()
        file = folder / "data.mdb"
        kept = None
        if file.exists():
            kept = folder / f"{KEPT}{clock.now_ms()}"
            kept.hardlink_to(file)
        reach("remake.before_replace")
        # commit point: before it the shard is the damaged one, after it the new one; the old file stays beside it.
        (making / "data.mdb").replace(file)
        reach("remake.after_replace")
        _fsync(folder)
        shutil.rmtree(making, ignore_errors=True)
    scrub.closed = False
    return Remade(number, len(held), found, str(kept) if kept is not None else None)


@contextmanager
def _one_worker() -> Iterator[Workers]:
    workers = Workers(1)
    try:
        yield workers
    finally:
        workers.close()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep every process from opening the environment; StoreBusy while one has it open.

    LMDB's own lock: who has an environment open holds the first byte of its lock file shared.
    """
    with (folder / "lock.mdb").open("a+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except OSError as cause:
            raise StoreBusy(
                "shard's database is damaged and open; stop the server, then repair again",
                path=str(folder),
            ) from cause
        yield


def _copy(scrub: Scrub, made: ShardStore, control: Control) -> set[bytes]:
    """Copy the whole blocks that the trees lead to; returns their ids."""
    held: set[bytes] = set()
    at: bytes | None = b""
    while at is not None:
        some = scrub.blocks(at)
        batch: list[tuple[BlockId, bytes]] = []
        ids = [seen.id for seen in some.whole if seen.id not in held]
        for block, data in zip(ids, scrub.get_many(ids), strict=True):
            if data is not None:
                batch.append((block, data))
        made.put_many_sync(batch)
        held.update(block for block, _ in batch)
        control.report(Progress("copying blocks", len(held), None, "blocks"))
        control.pace(some.read_bytes)
        at = some.next
    return held


def _salvage(
    scrub: Scrub,
    made: ShardStore,
    held: set[bytes],
    belongs: Callable[[BlockId], bool],
    control: Control,
) -> int:
    """Take what looks like a block and lies in the file though no tree leads to it.

    Also what was deleted, and what is damaged and goes by the id of its damaged bytes: nothing names that, so gc drops
    it. What is named and lies here whole cannot be told apart while a manifest may be among it.
    """
    found = 0
    for block, data in scrub.salvage():
        control.pace(len(data))
        if block not in held and belongs(block):
            with suppress(BlockCorrupt):
                made.put_many_sync([(block, data)])
                found += 1
    return found


def _fsync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
