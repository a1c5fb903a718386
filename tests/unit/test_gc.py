"""gc: what nothing reaches goes after its grace, what something reaches never, and no block is left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from gcing import (
    AT_ONCE,
    MAIN,
    ME,
    Made,
    assert_no_leak,
    assert_whole,
    collected,
    commit,
    in_pool,
    push,
    without_grace,
)

from shardgit import clock
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.oid import HashKind
from shardgit.operate.settle import settle
from shardgit.refs.log import LogNote
from shardgit.service.ref_log import restore_ref, restoring
from shardgit.service.repositories import Repositories
from shardgit.service.uploading import put_objects

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store

NEVER = Limits(recents_settle=10_000, recents_max=10_000)
DAY_MS = 86_400_000


class Later:
    """A clock that can be set forward."""

    def __init__(self) -> None:
        self.ahead_ms = 0
        self._real = clock._clock

    def now_ms(self) -> int:
        return self._real.now_ms() + self.ahead_ms

    def monotonic(self) -> float:
        return self._real.monotonic()

    def sleep(self, seconds: float) -> None:
        self._real.sleep(seconds)


@pytest.fixture
def later() -> Iterator[Later]:
    made = Later()
    with clock.replaced(made):
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data", shards=2)
    with open_store(tmp_path / "data", limits=NEVER, threads=2) as opened:
        opened.create_repository("demo", HashKind.SHA1)
        yield opened


def settled(store: Store, name: str = "demo") -> None:
    with store.journal.snapshot() as snapshot:
        pool = store.repository(snapshot, name).pool
    assert settle(store, pool)


def two(store: Store, *, size: int = 300) -> tuple[Made, Made]:
    """A commit on main, and one that a force-push left behind."""
    kept, lost = commit(size=size), commit(size=size)
    push(store, "demo", MAIN, None, lost, lost)
    push(store, "demo", MAIN, lost, kept, kept)
    settled(store)
    return kept, lost


@pytest.mark.parametrize("size", [300, 900_000])
def test_what_a_force_push_leaves_behind_goes_after_the_grace(
    store: Store, later: Later, size: int
) -> None:
    kept, lost = two(store, size=size)
    assert collected(store, without_grace(grace_s=86_400)).dropped_objects == 0
    assert all(in_pool(store, "demo", *lost.ids))
    later.ahead_ms = DAY_MS + 1_000
    done = collected(store, without_grace(grace_s=86_400))
    assert done.dropped_objects == done.garbage_objects == 3
    assert not any(in_pool(store, "demo", *lost.ids))
    assert_whole(store, "demo", *kept.ids)
    assert_no_leak(store)


def test_the_grace_begins_when_an_object_becomes_unreachable_not_when_it_was_written(
    store: Store, later: Later
) -> None:
    old, new = commit(), commit()
    push(store, "demo", MAIN, None, old, old)
    later.ahead_ms = 30 * DAY_MS
    push(store, "demo", MAIN, old, new, new)
    settled(store)
    later.ahead_ms = 40 * DAY_MS
    assert collected(store, without_grace(grace_s=14 * 86_400)).dropped_objects == 0
    restore_ref(
        store,
        "demo",
        restoring(store, "demo", MAIN, back=1),
        note=LogNote("", "restore"),
        principal=ME,
    )
    assert_whole(store, "demo", *old.ids)


def test_a_dry_run_counts_and_changes_nothing(store: Store) -> None:
    kept, lost = two(store)
    push(store, "demo", b"refs/heads/more", None, kept)
    more = commit(kept)
    push(store, "demo", b"refs/heads/more", kept, more, more)
    settled(store)  # leaves the manifest before
    before = {block for block, _ in store.blocks.scan_sync()}
    done = collected(store, without_grace(dry_run=True))
    assert (done.garbage_objects, done.dropped_objects) == (3, 3)
    assert done.blocks_deleted > 0
    assert {block for block, _ in store.blocks.scan_sync()} == before
    assert all(in_pool(store, "demo", *lost.ids))


def test_runs_with_little_garbage_are_left_alone(store: Store) -> None:
    kept = commit(size=400_000)
    push(store, "demo", MAIN, None, kept, kept)
    lost = commit()
    push(store, "demo", b"refs/heads/gone", None, lost, lost)
    push(store, "demo", b"refs/heads/gone", lost, None)
    settled(store)
    done = collected(store, without_grace(garbage_min=0.1))
    assert (done.garbage_objects, done.dropped_objects) == (3, 0)
    assert_no_leak(store)
    assert collected(store).dropped_objects == 3


def test_objects_of_one_fork_outlive_the_other(store: Store) -> None:
    mine = commit()
    push(store, "demo", MAIN, None, mine, mine)
    Repositories(store).fork("demo", "fork")
    settled(store)
    Repositories(store).delete("demo")
    done = collected(store)
    assert done.repositories_dropped == 1
    assert done.dropped_objects == 0
    assert_whole(store, "fork", *mine.ids)
    Repositories(store).delete("fork")
    done = collected(store)
    assert done.pools_dropped == 1
    assert_no_leak(store)
    assert not list(store.blocks.scan_sync())
    with store.journal.snapshot() as snapshot:
        left = [row.key[:1] for row in snapshot.range(b"\0", b"\xff")]
    assert sorted(set(left)) == [b"C", b"G", b"M", b"O"]  # counter, ring, store, this gc


def test_a_deleted_repository_keeps_its_objects_for_the_grace(store: Store, later: Later) -> None:
    mine = commit()
    push(store, "demo", MAIN, None, mine, mine)
    settled(store)
    Repositories(store).delete("demo")
    assert collected(store, without_grace(grace_s=86_400)).repositories_dropped == 0
    later.ahead_ms = DAY_MS + 1_000
    done = collected(store, without_grace(grace_s=86_400))
    assert (done.repositories_dropped, done.pools_dropped) == (1, 1)
    assert not list(store.blocks.scan_sync())


def test_uploads_are_kept_for_their_own_time(store: Store, later: Later) -> None:
    (blob,) = put_objects(store, "demo", [(3, b"uploaded")])
    settled(store)
    assert collected(store).dropped_objects == 0
    later.ahead_ms = 15 * DAY_MS
    done = collected(store)
    assert (done.uploads_dropped, done.dropped_objects) == (1, 1)
    assert in_pool(store, "demo", blob) == [False]


def test_recents_are_never_touched(store: Store) -> None:
    lost, kept = commit(), commit()
    push(store, "demo", MAIN, None, lost, lost)
    push(store, "demo", MAIN, lost, kept, kept)
    assert collected(store).garbage_objects == 0
    assert all(in_pool(store, "demo", *lost.ids))
    settled(store)
    assert collected(store).dropped_objects == 3


def test_a_second_gc_finds_nothing(store: Store) -> None:
    two(store)
    collected(store)
    done = collected(store)
    assert (done.garbage_objects, done.dropped_objects, done.blocks_deleted) == (0, 0, 0)
    assert AT_ONCE.grace_s == 0


def test_what_was_dropped_can_be_pushed_again(store: Store) -> None:
    kept, lost = two(store)
    collected(store)
    push(store, "demo", b"refs/heads/again", None, lost, lost)
    assert_whole(store, "demo", *kept.ids, *lost.ids)
    settled(store)
    collected(store)
    assert_whole(store, "demo", *kept.ids, *lost.ids)
    assert_no_leak(store)


def test_old_log_rows_go_but_for_the_newest(store: Store, later: Later) -> None:
    before = None
    for _ in range(130):
        now = commit(size=1)
        push(store, "demo", MAIN, before, now, now)
        before = now
    later.ahead_ms = 100 * DAY_MS
    done = collected(store, without_grace(grace_s=None))
    assert done.log_rows_dropped == 31  # the repository's making counts as one
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, "demo")
        rows = list(store.refs.log(snapshot, record))
    assert len(rows) == 100
    assert rows[0].sequence == 131


def test_a_gc_of_one_network_leaves_all_others_alone(store: Store) -> None:
    two(store)
    for name in ("other", "deleted"):
        store.create_repository(name, HashKind.SHA1)
    lost, kept = commit(), commit()
    push(store, "other", MAIN, None, lost, lost)
    push(store, "other", MAIN, lost, kept, kept)
    settled(store, "other")
    Repositories(store).delete("deleted")
    done = collected(store, without_grace(repository="demo"))
    assert (done.pools, done.dropped_objects, done.repositories_dropped) == (1, 3, 0)
    assert all(in_pool(store, "other", *lost.ids))
    done = collected(store)
    assert (done.dropped_objects, done.repositories_dropped) == (3, 1)
    assert_no_leak(store)
