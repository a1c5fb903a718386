"""Deleting blocks that nothing names: not while they may be named yet, nor while somebody may read them still."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints
from shardgit.blocks.routed import RoutedStore
from shardgit.operate.named import named_blocks
from shardgit.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.holders import Asked
    from shardgit.oid import BlockId, PoolId
    from shardgit.operate.named import Named
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

DELETED_BATCH = 256
JUDGED_BATCH = 64
POLL_S = 0.1
PACE_EVERY = 1_024  # blocks looked at


@dataclass(frozen=True, slots=True)
class Swept:
    """What was deleted, and why other orphans were not: too young, awaited by ``holders``, or pinned."""

    blocks: int = 0
    size: int = 0
    young_blocks: int = 0
    waiting_blocks: int = 0
    holders: tuple[str, ...] = ()
    damaged: dict[str, str] = field(default_factory=dict)  # by pool in hex; what it lacks


@dataclass(frozen=True, slots=True)
class _Orphan:
    id: BlockId
    size: int


def sweep(
    store: Store,
    *,
    age_ms: int,
    wait_s: float,
    control: Control,
    pool: PoolId | None = None,
    dry_run: bool = False,
) -> Swept:
    """Delete the blocks that nothing names, those of one pool or of all.

    A block is let live that is younger than ``age_ms`` or than the oldest lease: a push or import may be about to name
    it. What nothing names any more is deleted once every request that began before has ended; after ``wait_s`` the rest
    is left for the next time. Errors: Stopped.
    """
    with store.holders.asking() as asked:
        # Leases first, then the journal: who ended in between has committed, and is seen.
        now = clock.now_ms()
        before_ms = min(now - age_ms, asked.before_ms())
    named = named_blocks(store, control=control)
    orphans, young = _orphans(store, named, before_ms, pool, control)
    kept, holds = _held(store, orphans)
    orphans = [one for one in orphans if one not in kept]
    if dry_run:
        damaged = {one.hex(): why for one, why in named.damaged.items()}
        done = Swept(len(orphans), sum(one.size for one in orphans), damaged=damaged)
    else:
        done = _let_go(store, orphans, named, before_ms, wait_s, control)
    waiting, holders = done.waiting_blocks + len(kept), (*done.holders, *holds)
    return replace(done, young_blocks=young, waiting_blocks=waiting, holders=holders)


def _let_go(
    store: Store,
    orphans: list[_Orphan],
    named: Named,
    before_ms: int,
    wait_s: float,
    control: Control,
) -> Swept:
    """Delete orphans once nobody may want them any more."""
    damaged = {one.hex(): why for one, why in named.damaged.items()}
    if not orphans:
        return Swept(damaged=damaged)
    if named.pins:
        return Swept(0, 0, 0, len(orphans), tuple(named.pins), damaged)
    with store.holders.asking() as asked:
        holders = _awaited(asked, named.revision, before_ms, wait_s, control)
        if holders:
            return Swept(0, 0, 0, len(orphans), holders, damaged)
        # Whoever came and went meanwhile, by whatever clock, has committed, or never will.
        now_named = named_blocks(store, control=control)
        if now_named.pins:
            return Swept(0, 0, 0, len(orphans), tuple(now_named.pins), damaged)
        orphans = [one for one in orphans if not now_named.has(one.id)]
        damaged |= {one.hex(): why for one, why in now_named.damaged.items()}
        size = _delete(store, orphans, control)
    return Swept(len(orphans), size, damaged=damaged)


def _held(store: Store, orphans: Sequence[_Orphan]) -> tuple[frozenset[_Orphan], tuple[str, ...]]:
    """Return the orphans in shards that are read-only, and which these are."""
    blocks = store.blocks
    if not isinstance(blocks, RoutedStore):
        return frozenset(), ()
    kept = frozenset(one for one in orphans if blocks.is_held(one.id))
    return kept, tuple(f"shard {n}, read-only" for n in sorted(blocks.held.shards) if kept)


def _orphans(
    store: Store, named: Named, before_ms: int, pool: PoolId | None, control: Control
) -> tuple[list[_Orphan], int]:
    found: list[_Orphan] = []
    young = 0
    waiting: list[tuple[BlockId, int]] = []

    def judge() -> None:
        nonlocal young
        headers = store.blocks.headers([block for block, _ in waiting])
        for (block, size), header in zip(waiting, headers, strict=True):
            # The age of a damaged one cannot be told; verify tells of it.
            if header is None or header.pool in named.damaged or pool not in (None, header.pool):
                continue
            if header.created_ms >= before_ms:
                young += 1
            else:
                found.append(_Orphan(block, size))
        waiting.clear()

    for number, (block, size) in enumerate(store.blocks.scan_sync()):
        if number % PACE_EVERY == 0:
            control.report(Progress("looking for orphans", number, None, "blocks"))
            control.pace(0)
        if not named.has(block):
            waiting.append((block, size))
        if len(waiting) == JUDGED_BATCH:
            judge()
    judge()
    return found, young


def _awaited(
    asked: Asked, revision: int, before_ms: int, wait_s: float, control: Control
) -> tuple[str, ...]:
    """Wait until nobody looks at what was named before ``revision``; returns who still does after ``wait_s``."""
    begun = clock.monotonic()
    while True:
        holders = asked.awaited(revision, before_ms)
        waited = clock.monotonic() - begun
        if not holders or waited >= wait_s:
            return holders
        control.report(Progress("waiting for requests", int(waited), None, "seconds"))
        control.sleep(POLL_S)


def _delete(store: Store, orphans: Sequence[_Orphan], control: Control) -> int:
    size = 0
    for at in range(0, len(orphans), DELETED_BATCH):
        some = orphans[at : at + DELETED_BATCH]
        control.report(Progress("deleting blocks", at, len(orphans), "blocks"))
        faultpoints.reach("gc.before_delete")
        # commit point: nothing names them, so it makes no difference to anybody how many are gone after a crash.
        store.blocks.delete_many_sync([one.id for one in some])
        faultpoints.reach("gc.after_delete")
        size += sum(one.size for one in some)
        control.pace(sum(one.size for one in some))
    control.report(Progress("deleting blocks", len(orphans), len(orphans), "blocks"))
    return size
