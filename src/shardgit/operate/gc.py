"""gc: rows whose time is over, objects that nothing reaches, blocks that nothing names.

    rows (trimming.py)  ->  objects, pool by pool (pool_gc.py)  ->  blocks (orphans.py)

Each step makes garbage of the next. Killed at any point it has done a part, and is simply run again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.errors import DataLoss, RepositoryMissing, StorageFull
from shardgit.journal.mode import check_writable
from shardgit.journal.operations import put_operation
from shardgit.operate.condemning import Policy
from shardgit.operate.operation import running
from shardgit.operate.orphans import sweep
from shardgit.operate.pool_gc import Collected, collect
from shardgit.operate.roots import Members
from shardgit.operate.trimming import trim
from shardgit.progress import Progress
from shardgit.service.usages import recount_all

if TYPE_CHECKING:
    from shardgit.oid import PoolId
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

KIND = "gc"
GARBAGE_MIN = 0.1  # share of a run from which on it is written anew


@dataclass(frozen=True, slots=True)
class GcOptions:
    """What gc shall do; None: what limits.py says. ``repository`` narrows all of it down to its pool."""

    grace_s: float | None = None
    log_retention_s: float | None = None
    orphan_age_s: float | None = None
    wait_s: float | None = None
    garbage_min: float = GARBAGE_MIN
    repository: str | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class GcResult:
    """What a gc did, or with ``dry_run`` would do. ``damaged`` says by pool why nothing of it was touched."""

    dry_run: bool = False
    pools: int = 0
    garbage_objects: int = 0
    garbage_bytes: int = 0
    dropped_objects: int = 0
    dropped_bytes: int = 0
    runs_rewritten: int = 0
    written_bytes: int = 0
    blocks_deleted: int = 0
    bytes_freed: int = 0
    blocks_young: int = 0
    blocks_waiting: int = 0
    waiting_for: tuple[str, ...] = ()
    repositories_dropped: int = 0
    log_rows_dropped: int = 0
    uploads_dropped: int = 0
    lfs_objects_dropped: int = 0
    pools_dropped: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class GcLast:
    """When the last gc of the whole store ended, and what it did: the row of table O."""

    ended_ms: int
    dropped_objects: int
    bytes_freed: int
    blocks_waiting: int


def gc(store: Store, options: GcOptions | None = None, *, control: Control) -> GcResult:
    """Drop what nothing needs any more, while the store is served.

    Without room to write runs anew it deletes the blocks that nothing names all the same.
    Errors: Refused when another gc runs, RepositoryMissing, ReadOnly but for ``dry_run``, Stopped, StorageFull.
    """
    options = options or GcOptions()
    begun = clock.monotonic()
    limits = store.limits
    grace_ms = _ms(options.grace_s, limits.gc_grace_s)
    if not options.dry_run:
        check_writable(store.journal)
    with running(store, KIND):
        only = _pool_of(store, options.repository)
        trimmed = trim(
            store,
            grace_ms=grace_ms,
            log_retention_ms=_ms(options.log_retention_s, limits.log_retention_s),
            control=control,
            pool=only,
            dry_run=options.dry_run,
        )
        policy = Policy(grace_ms, options.garbage_min)
        pools, total, damaged, full = _objects(
            store, only, policy, control, dry_run=options.dry_run
        )
        swept = sweep(
            store,
            age_ms=_ms(options.orphan_age_s, limits.orphan_age_s),
            wait_s=limits.gc_wait_s if options.wait_s is None else options.wait_s,
            control=control,
            pool=only,
            dry_run=options.dry_run,
        )
    if full is not None:
        raise full  # what there was to delete without writing is deleted
    done = GcResult(
        dry_run=options.dry_run,
        pools=pools,
        garbage_objects=total.garbage_objects,
        garbage_bytes=total.garbage_bytes,
        dropped_objects=total.dropped_objects,
        dropped_bytes=total.dropped_bytes,
        runs_rewritten=total.runs_rewritten,
        written_bytes=total.written_bytes,
        blocks_deleted=swept.blocks,
        bytes_freed=swept.size,
        blocks_young=swept.young_blocks,
        blocks_waiting=swept.waiting_blocks,
        waiting_for=swept.holders,
        repositories_dropped=trimmed.repositories,
        log_rows_dropped=trimmed.log_rows,
        uploads_dropped=trimmed.uploads,
        lfs_objects_dropped=trimmed.lfs_objects,
        pools_dropped=trimmed.pools,
        damaged=damaged | swept.damaged,
        seconds=clock.monotonic() - begun,
    )
    if options.dry_run:
        return done
    if only is None:  # before all is counted, which is none of what there was to collect
        last = GcLast(clock.now_ms(), done.dropped_objects, done.bytes_freed, done.blocks_waiting)
        store.journal.commit_sync([], [put_operation(KIND, last)])
    recounted = recount_all(store, only, pace=lambda: control.pace(0))
    return replace(done, damaged=recounted.damaged | done.damaged)


def _objects(
    store: Store, only: PoolId | None, policy: Policy, control: Control, *, dry_run: bool
) -> tuple[int, Collected, dict[str, str], StorageFull | None]:
    members = Members()
    with store.journal.snapshot() as snapshot:
        members.look(snapshot)
    pools = [only] if only is not None else members.pools()
    total = Collected()
    damaged: dict[str, str] = {}
    for number, pool in enumerate(pools):
        control.report(Progress("collecting pools", number, len(pools), "objects"))
        control.pace(0)
        try:
            total = total.plus(
                collect(store, pool, members, policy, control=control, dry_run=dry_run)
            )
        except RepositoryMissing:
            continue  # the pool went with its last repository
        except DataLoss as error:
            damaged[pool.hex()] = str(error)  # what is left of it may be needed to repair it
        except StorageFull as error:
            return number, total, damaged, error
    return len(pools), total, damaged, None


def _pool_of(store: Store, name: str | None) -> PoolId | None:
    if name is None:
        return None
    with store.journal.snapshot() as snapshot:
        return store.repository(snapshot, name).pool


def _ms(seconds: float | None, default_s: float) -> int:
    return int((default_s if seconds is None else seconds) * 1_000)
