"""The maintenance of a served store: one process of all, what is due and nothing else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from gcing import MAIN, assert_whole, commit, push, push_delta
from moved import Moved

from shardgit import metrics, telemetry
from shardgit.backup.create import create_backup
from shardgit.config import ServeConfig
from shardgit.errors import DataLoss, InvalidArgument
from shardgit.filelock import FileLock
from shardgit.journal.operations import read_operation
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.oid import HashKind
from shardgit.operate import compact as compacting
from shardgit.operate import maintenance
from shardgit.operate.gc import KIND, GcLast
from shardgit.operate.maintenance import Maintenance, Plan
from shardgit.operate.operation import silent_control
from shardgit.operate.settle import settle
from shardgit.operate.verifying import verify
from shardgit.service.look import Look
from shardgit.service.repositories import Repositories

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.oid import PoolId
    from shardgit.service.store import Store

AT_ONCE = Plan(interval_s=0.05, settle_age_s=0, gc_interval_s=3_600, rate_bytes_s=0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data")
    limits = Limits(recents_settle=10_000, recents_max=10_000, gc_grace_s=0, orphan_age_s=0)
    with open_store(tmp_path / "data", limits=limits, threads=2) as opened:
        opened.create_repository("demo", HashKind.SHA1)
        yield opened


def recents(store: Store) -> int:
    return len(Look(store, "demo").state.pool.view.recents)


def last_gc(store: Store) -> GcLast | None:
    with store.journal.snapshot() as snapshot:
        return read_operation(snapshot, KIND, GcLast).record


def test_a_round_settles_quiet_pools_and_collects_when_it_is_due(store: Store) -> None:
    mine = commit()
    push(store, "demo", MAIN, None, mine, mine)
    Maintenance(store, Plan(settle_age_s=3_600, gc_interval_s=3_600, rate_bytes_s=0)).round()
    assert recents(store) == 1
    first = last_gc(store)
    assert first is not None
    work = Maintenance(store, AT_ONCE)
    moved = Moved()
    work.round()
    assert recents(store) == 0
    assert last_gc(store) == first  # not due again
    assert moved("shardgit_maintenance_total") == {"settle done": 1}
    seconds = moved("shardgit_maintenance_seconds_total")
    assert set(seconds) == {"settle"}
    assert seconds["settle"] > 0
    assert_whole(store, "demo", *mine.ids)


def test_gc_of_a_round_drops_what_is_due(store: Store) -> None:
    mine = commit()
    push(store, "demo", MAIN, None, mine, mine)
    Repositories(store).create("gone")
    Repositories(store).delete("gone")
    Maintenance(store, AT_ONCE).round()
    with store.journal.snapshot() as snapshot:
        assert not list(snapshot.range(b"D", b"E"))


def gauge(name: str) -> float | None:
    return telemetry.REGISTRY.get_sample_value(name)


def test_what_gc_dropped_freed_and_left_is_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "GC_WAIT_S", 0.0)
    kept, gone = commit(), commit(size=100_000)
    push(store, "demo", MAIN, None, kept, kept)
    push(store, "demo", b"refs/heads/gone", None, gone, gone)
    settle(store, Look(store, "demo").record.pool)
    push(store, "demo", b"refs/heads/gone", gone, None)
    time.sleep(0.01)  # what is unreachable since this millisecond is not due
    work = Maintenance(store, Plan(gc_interval_s=0, rate_bytes_s=0))
    blocks = dict(store.blocks.scan_sync())
    moved = Moved()
    with store.lease():  # somebody may read them still
        work.round()
    assert moved("shardgit_gc_dropped_objects_total") == {"": len(gone.ids)}
    assert moved("shardgit_gc_freed_bytes_total") == {}
    left = gauge("shardgit_gc_waiting_blocks")
    assert left
    there = dict(store.blocks.scan_sync())
    work.round()
    after = dict(store.blocks.scan_sync())
    assert len(there) - len(after) == left
    freed = sum(size for block, size in there.items() if block not in after)
    assert freed > 100_000
    assert set(blocks) - set(after)
    assert moved("shardgit_gc_dropped_objects_total") == {"": len(gone.ids)}
    assert moved("shardgit_gc_freed_bytes_total") == {"": freed}
    assert gauge("shardgit_gc_waiting_blocks") == 0
    assert moved("shardgit_maintenance_total")["gc done"] == 2
    assert_whole(store, "demo", *kept.ids)


def test_a_backup_that_another_process_made_is_told_of(store: Store, tmp_path: Path) -> None:
    mine = commit()
    push(store, "demo", MAIN, None, mine, mine)
    before_s = time.time()
    create_backup(store, str(tmp_path / "backup"), control=silent_control())
    taken_s = gauge("shardgit_backup_taken_timestamp_seconds")
    assert taken_s is not None
    assert before_s - 1 < taken_s <= time.time()
    metrics.BACKUP_TAKEN.set(0)  # as in a process that did not make it
    Maintenance(store, AT_ONCE).round()
    assert gauge("shardgit_backup_taken_timestamp_seconds") == taken_s


def test_only_one_process_has_its_turn(store: Store) -> None:
    mine = commit()
    push(store, "demo", MAIN, None, mine, mine)
    other = FileLock(store.scratch / "maintenance.lock")
    assert other.try_take()
    work = Maintenance(store, AT_ONCE)
    work.start()
    time.sleep(0.3)
    assert recents(store) == 1
    work.stop()
    other.release()
    work = Maintenance(store, AT_ONCE)
    work.start()
    for _ in range(200):
        if recents(store) == 0:
            break
        time.sleep(0.05)
    work.stop()
    assert recents(store) == 0


@pytest.mark.parametrize(
    "given",
    [
        {"maintenance": "perhaps"},
        {"maintenance_interval_s": 0.0},
        {"gc_interval_s": 1.0},
        {"maintenance_bytes_per_s": -1},
    ],
)
def test_impossible_settings_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        ServeConfig(**given)  # type: ignore[arg-type]


def test_a_scrub_is_due_once_in_its_time(store: Store) -> None:
    mine = commit(size=400_000)
    push(store, "demo", MAIN, None, mine, mine)
    work = Maintenance(store, AT_ONCE)
    work.round()
    metrics.SCRUB_FINISHED.set(0)
    moved, begun_s = Moved(), time.time()
    assert work.scrub() == 1
    assert moved("shardgit_scrub_bytes_total")[""] > 400_000
    assert moved("shardgit_scrub_findings_total") == {}
    finished_s = gauge("shardgit_scrub_finished_timestamp_seconds")
    assert finished_s is not None
    assert begun_s - 1 < finished_s <= time.time()
    assert work.scrub() == 0
    assert gauge("shardgit_scrub_finished_timestamp_seconds") == finished_s
    assert Maintenance(store, Plan(scrub_interval_s=0, rate_bytes_s=0)).scrub() == 1


def test_a_deleted_repository_is_no_damage(store: Store) -> None:
    mine = commit()
    push(store, "demo", MAIN, None, mine, mine)
    Repositories(store).delete("demo")
    assert verify(store, control=silent_control()).findings == ()


def test_a_pool_that_fails_keeps_no_other_from_its_turn(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_repository("other", HashKind.SHA1)
    for name in ("demo", "other"):
        mine = commit()
        push(store, name, MAIN, None, mine, mine)
    seen: list[PoolId] = []
    first: list[PoolId] = []

    def failing(store: Store, pool: PoolId) -> bool:
        seen.append(pool)
        if not first:
            first.append(pool)
            raise DataLoss("block is missing")
        return settle(store, pool)

    monkeypatch.setattr(maintenance, "settle", failing)
    Maintenance(store, AT_ONCE).round()
    assert len(seen) == 2
    assert recents(store) + len(Look(store, "other").state.pool.view.recents) == 1


def test_a_compaction_that_needs_too_much_is_tried_again_after_the_next_push(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compacting, "WANTED_BYTES", 500)
    create_store(tmp_path / "data")
    limits = Limits(
        recents_settle=10_000,
        recents_max=10_000,
        block_target_bytes=2_000,
        block_max_bytes=65_536,
        thin_bases_max_bytes=25_000,
    )
    with open_store(tmp_path / "data", limits=limits, threads=2) as store:
        store.create_repository("demo", HashKind.SHA1)
        tip = commit(size=20_000)
        bases = [commit(size=20_000) for _ in range(2)]
        push(store, "demo", MAIN, None, tip, tip)
        for number, base in enumerate(bases):
            push(store, "demo", b"refs/heads/base%d" % number, None, base, base)
        settle(store, Look(store, "demo").record.pool)
        for base in bases:  # each is small enough, but not both
            tip = push_delta(store, tip, base)
            settle(store, Look(store, "demo").record.pool)
        work = Maintenance(store, AT_ONCE)
        failed = metrics.MAINTENANCE.labels("compact", "failed")
        before = failed._value.get()
        for _ in range(3):
            work.round()
        assert failed._value.get() == before + 1
        more = commit(tip)
        push(store, "demo", MAIN, tip, more, more)
        for _ in range(3):
            work.round()
        assert failed._value.get() == before + 2
        assert_whole(store, "demo", *tip.ids, *more.ids)
