"""The maintenance of a store that is served: settles, compactions, gc and scrubs, by one worker of all, at its pace.

Every worker has a thread for it; a lock in the store's scratch says whose turn it is, and the kernel gives it to the
next when a worker dies. A round looks at the journal's small rows and does what pays:

    settle      pools whose recents have lain for ``settle_age_s``: a quiet pool never fills up by itself
    compact     pools whose manifest has changed, where compact.py says that it pays
    gc          the whole store, once ``gc_interval_s`` have passed since the last one, whoever ran that
    sweep       in a cluster: bundles of the journal that no row names
    mirror      those that are due, from where they follow; beside the others too
    scrub       every byte, once ``scrub_interval_s`` have passed; beside the others, as it may take days

What fails is logged and counted, and tried again in the next round.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import clock, metrics, telemetry
from shardgit.backup.last import last_backup
from shardgit.blocks.block import parse_header
from shardgit.errors import LimitExceeded, Refused, ShardgitError, Stopped, StorageFull
from shardgit.journal.interface import end_of
from shardgit.journal.mode import mode_of
from shardgit.journal.operations import read_operation
from shardgit.journal.records import PoolRecord
from shardgit.oid import PoolId
from shardgit.operate.compact import compact, wants_compaction
from shardgit.operate.gc import KIND, GcLast, GcOptions, GcResult, gc
from shardgit.operate.operation import Control, Throttle, step_back, store_probe
from shardgit.operate.settle import settle
from shardgit.operate.verifying import KIND as SCRUB
from shardgit.operate.verifying import VerifyState, verify
from shardgit.pool.view import PoolView
from shardgit.service.mirror_credentials import NO_CREDENTIALS, Credentials
from shardgit.service.mirror_sync import MirrorRounds
from shardgit.turns import MAINTENANCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardgit.progress import Progress
    from shardgit.service.store import Store
    from shardgit.turns import Turn

TURN_WAIT_S = 5.0
GC_WAIT_S = 900.0  # for requests that read what goes; settles and compactions wait with it
SWEEP_S = 1_800.0  # it lists all of them
COMPACTIONS_MAX = 16  # of one round, so that gc gets its turn
MIRRORS_AT_ONCE = 2
MIRROR_LOOK_S = 5.0
VIEWS_MAX = 1_000  # manifests that one round opens to see whether a compaction pays


@dataclass(frozen=True, slots=True)
class Plan:
    """When what is done, and how fast: bytes a second, 0 for as fast as load allows."""

    interval_s: float = 60.0
    settle_age_s: float = 600.0
    gc_interval_s: float = 86_400.0
    scrub_interval_s: float = 7 * 86_400.0
    rate_bytes_s: int = 32 << 20
    credentials: Credentials = NO_CREDENTIALS  # for the sources of mirrors
    scrubs: bool = True  # nodes of a cluster check blocks as they come, and keep none for good


class Failures:
    """What went wrong with some pools of a round: the others have their turn all the same."""

    def __init__(self) -> None:
        self.first: ShardgitError | None = None

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Keep an error of a pool's for the end. Stopped and StorageFull end the round."""
        try:
            yield
        except (Stopped, StorageFull):
            raise
        except ShardgitError as error:
            self.first = self.first or error

    def raise_first(self) -> None:
        """Raise what was met first, for it to be logged and counted."""
        if self.first is not None:
            raise self.first


class Maintenance:
    """The rounds of one process; ``start`` gives them a thread, ``stop`` ends it."""

    def __init__(self, store: Store, plan: Plan, *, sweep: Callable[[], int] | None = None) -> None:
        self.store = store
        self.plan = plan
        self._sweep = sweep
        self._swept = clock.monotonic()
        self.control, self.scrubbing = (
            Control(throttle=Throttle(float(plan.rate_bytes_s) or None, probe=store_probe(store)))
            for _ in range(2)
        )
        self._known: dict[PoolId, int] = {}  # generations that a compaction would not pay for
        self._held: Turn | None = None
        self.mirroring = Control()
        self._mirrors = MirrorRounds(store, plan.credentials)
        self._followers = [
            threading.Thread(target=self._follow, name=f"shardgit-mirror-{number}", daemon=True)
            for number in range(MIRRORS_AT_ONCE)
        ]
        self._thread: threading.Thread | None = None
        self._scrubber = threading.Thread(target=self._scrub_on, name="shardgit-scrub", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="shardgit-maintenance", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop at the next step, and wait for that."""
        self.control.stop()
        self.scrubbing.stop()
        self.mirroring.stop()
        if self._thread is not None:
            self._thread.join()
        for each in (self._scrubber, *self._followers):
            if each.is_alive():
                each.join()

    def _run(self) -> None:
        step_back(self.store)
        turn: Turn | None = None
        try:
            while True:
                if turn is None or not turn.held:
                    turn = self._held = self._turn()
                    for follower in self._followers:
                        if follower.ident is None:
                            follower.start()
                    telemetry.log().info("maintenance_begun")
                    if self.plan.scrubs and self._scrubber.ident is None:
                        self._scrubber.start()
                self.control.sleep(self.plan.interval_s)
                if turn.held:
                    self.round()
        except Stopped:
            pass
        finally:
            if turn is not None:
                turn.release()

    def _turn(self) -> Turn:
        """Wait for the turn. Errors: Stopped."""
        while True:
            with suppress(ShardgitError):  # etcd is away: later
                turn = self.store.turns.try_take(MAINTENANCE)
                if turn is not None:
                    return turn
            self.control.sleep(TURN_WAIT_S)

    def round(self) -> None:
        """Do what is due; nothing while the store is read-only. Errors: Stopped."""
        if self._is_read_only():
            return
        self._do("settle", self._settle)
        self._look_for_backups()
        self._do("compact", self._compact)
        self._do("gc", self._gc)
        self._do("sweep", self._sweep_journal)

    def _is_read_only(self) -> bool:
        with suppress(ShardgitError), self.store.journal.snapshot() as snapshot:
            return mode_of(snapshot) is not None
        return False

    def _do(self, job: str, work: Callable[[], int]) -> None:
        begun = time.monotonic()
        outcome = "done"
        try:
            if not work():
                return
        except Stopped:
            raise
        except Refused:
            outcome = "busy"
        except ShardgitError as error:
            outcome = "failed"
            telemetry.log().error("maintenance_failed", job=job, error=str(error), code=error.code)
        except Exception:
            outcome = "failed"
            telemetry.log().exception("maintenance_failed", job=job)
        metrics.MAINTENANCE.labels(job, outcome).inc()
        metrics.MAINTENANCE_SECONDS.labels(job).inc(time.monotonic() - begun)

    def _look_for_backups(self) -> None:
        """Tell when the store was backed up last, which commands of other processes do."""
        with suppress(ShardgitError), self.store.journal.snapshot() as snapshot:
            last = last_backup(snapshot)
            if last is not None:
                metrics.BACKUP_TAKEN.set(last.taken_ms / 1_000)

    # ---- mirrors ----

    def _go_on(self, _: Progress) -> None:
        """End what is under way, git too, when the maintenance is told to stop. Errors: Stopped."""
        self.mirroring.check()

    def _follow(self) -> None:
        """Bring mirrors in step when they are due, while the turn is ours."""
        step_back(self.store)
        with suppress(Stopped):
            while True:
                self.mirroring.sleep(min(MIRROR_LOOK_S, self.plan.interval_s))
                try:
                    while (
                        self._held is not None
                        and self._held.held
                        and not self._is_read_only()
                        and self._mirrors.sync_next(self._go_on)
                    ):
                        self.mirroring.pace(0)
                except Stopped:
                    raise
                except ShardgitError as error:
                    telemetry.log().error("maintenance_failed", job="mirror", error=str(error))
                except Exception:  # the other mirrors go on in a moment
                    telemetry.log().exception("maintenance_failed", job="mirror")

    # ---- scrubs ----

    def _scrub_on(self) -> None:
        step_back(self.store)
        with suppress(Stopped):
            while True:
                self.scrubbing.sleep(self.plan.interval_s)
                self._do("scrub", self.scrub)

    def scrub(self) -> int:
        """Verify the store where that is due, from where the last one stopped."""
        with self.store.journal.snapshot() as snapshot:
            before = read_operation(snapshot, SCRUB, VerifyState).record
        begun = before is not None and not before.finished_ms
        last_ms = before.last_full_ms if before is not None else 0
        if not begun and clock.now_ms() - last_ms < self.plan.scrub_interval_s * 1_000:
            return 0
        done = verify(self.store, control=self.scrubbing, resume=True)
        if not done.clean:
            telemetry.log().error("scrub_found_damage", findings=done.counts)
        return 1

    # ---- settles ----

    def _settle(self) -> int:
        done = 0
        failed = Failures()
        for pool in self._old_recents():
            self.control.pace(0)
            with failed.set_aside():
                done += settle(self.store, pool)
        failed.raise_first()
        return done

    def _old_recents(self) -> list[PoolId]:
        """Return the pools whose oldest recent has lain for long enough."""
        before = clock.now_ms() - int(self.plan.settle_age_s * 1_000)
        found: list[PoolId] = []
        low = b"S"
        with self.store.journal.snapshot() as snapshot:
            while (row := next(snapshot.range(low, b"T", limit=1), None)) is not None:
                pool = PoolId(row.key[1:17])
                if parse_header(row.value).created_ms <= before:
                    found.append(pool)
                low = end_of(row.key[:17])
        return found

    # ---- compactions ----

    def _compact(self) -> int:
        done = looked = 0
        failed = Failures()
        with self.store.journal.snapshot() as snapshot:
            pools = [
                PoolRecord.decode(PoolId(row.key[1:]), row.value)
                for row in snapshot.range(b"P", b"Q")
            ]
        self._known = {pool.id: self._known.get(pool.id, -1) for pool in pools}
        for pool in pools:
            if pool.manifest is None or self._known[pool.id] == pool.generation:
                continue
            if looked == VIEWS_MAX or done == COMPACTIONS_MAX:
                break
            looked += 1
            self.control.pace(0)
            with failed.set_aside():
                done += self._compact_one(pool)
        failed.raise_first()
        return done

    def _compact_one(self, pool: PoolRecord) -> int:
        if not self._pays(pool):
            self._known[pool.id] = pool.generation
            return 0
        try:
            made = compact(self.store, pool.id, control=self.control)
        except LimitExceeded:  # again when something has been pushed
            self._known[pool.id] = pool.generation
            raise
        telemetry.log().info(
            "pool_compacted",
            pool=made.pool,
            runs_before=made.runs_before,
            runs_after=made.runs_after,
            objects=made.objects,
            bytes_before=made.bytes_before,
            bytes_after=made.bytes_after,
        )
        return 1

    def _pays(self, pool: PoolRecord) -> bool:
        with self.store.lease():  # the view is not the store's, which would keep it
            view = PoolView(
                self.store.blocks, pool.hash_kind, pool.manifest, limits=self.store.limits
            )
            return wants_compaction(view)

    # ---- gc ----

    def _sweep_journal(self) -> int:
        """Delete what the journal keeps beside its rows and names no more, every SWEEP_S."""
        if self._sweep is None or clock.monotonic() - self._swept < SWEEP_S:
            return 0
        self._swept = clock.monotonic()
        return self._sweep()

    def _gc(self) -> int:
        with self.store.journal.snapshot() as snapshot:
            last = read_operation(snapshot, KIND, GcLast).record
        if last is not None and clock.now_ms() - last.ended_ms < self.plan.gc_interval_s * 1_000:
            return 0
        done = gc(self.store, GcOptions(wait_s=GC_WAIT_S), control=self.control)
        tell(done)
        return 1


def tell(done: GcResult) -> None:
    """Log and count what a gc did."""
    metrics.GC_OBJECTS.inc(done.dropped_objects)
    metrics.GC_BYTES.inc(done.bytes_freed)
    metrics.GC_WAITING.set(done.blocks_waiting)
    telemetry.log().info(
        "gc_done",
        pools=done.pools,
        dropped_objects=done.dropped_objects,
        blocks_deleted=done.blocks_deleted,
        bytes_freed=done.bytes_freed,
        blocks_waiting=done.blocks_waiting,
        repositories_dropped=done.repositories_dropped,
        seconds=round(done.seconds, 3),
    )
    for pool, why in done.damaged.items():
        telemetry.log().error("gc_left_a_damaged_pool", pool=pool, error=why)
