"""gc against whoever makes something reachable: each stands at a point of the other's way, in threads of their own."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from gcing import (
    MAIN,
    ME,
    Made,
    assert_no_leak,
    assert_whole,
    collected,
    commit,
    in_pool,
    push,
    start,
    without_grace,
)

from shardgit import faultpoints
from shardgit.errors import ObjectMissing
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.objects import ObjectType, object_id
from shardgit.oid import HashKind
from shardgit.operate import pool_gc
from shardgit.operate.operation import Control
from shardgit.operate.orphans import sweep
from shardgit.operate.settle import settle
from shardgit.refs.log import LogNote
from shardgit.refs.update import ANY, RefUpdate
from shardgit.service.ref_log import restore_ref, restoring
from shardgit.service.ref_updates import update_refs
from shardgit.service.repositories import Repositories
from shardgit.service.uploading import put_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from shardgit.progress import Progress
    from shardgit.service.store import Store

NEVER = Limits(recents_settle=10_000, recents_max=10_000)
OTHER = b"refs/heads/other"
NOTE = LogNote("me", "test")


@pytest.fixture(params=["small", "large"])
def store(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """A store whose pools are one block, or many runs that are collected without keeping settles out."""
    sizes = {}
    if request.param == "large":
        monkeypatch.setattr(pool_gc, "SMALL_OBJECTS", -1)
        sizes = {
            "block_target_bytes": 2_000,
            "block_max_bytes": 6_000,
            "recent_embedded_max_bytes": 0,  # pushes have blocks before their commit
        }
    create_store(tmp_path / "data", shards=2)
    limits = Limits(recents_settle=10_000, recents_max=10_000, **sizes)
    with open_store(tmp_path / "data", limits=limits, threads=2) as opened:
        opened.create_repository("demo", HashKind.SHA1)
        yield opened


@contextmanager
def meanwhile(
    point: str, action: Callable[[], object], *, count: int = 1
) -> Iterator[list[object]]:
    """The first thread that reaches a point stands there while ``action`` runs, whole, in another."""
    results: list[object] = []
    times = [0]
    mine = threading.local()

    def run() -> None:
        mine.inside = True
        try:
            results.append(action())
        except BaseException as error:  # looked at by the test
            results.append(error)

    def reached(name: str) -> None:
        if name != point or getattr(mine, "inside", False):
            return
        times[0] += 1
        if times[0] == count:
            thread = threading.Thread(target=run)
            thread.start()
            thread.join(60)
            assert not thread.is_alive()

    with faultpoints.listening(reached):
        yield results
    assert results, f"{point} was not reached"


def settled(store: Store) -> None:
    with store.journal.snapshot() as snapshot:
        pool = store.repository(snapshot, "demo").pool
    assert settle(store, pool)


def lost_commit(store: Store) -> tuple[Made, Made]:
    """A commit on main, and one that a force-push left behind; both in runs of the manifest."""
    lost, kept = commit(), commit()
    push(store, "demo", MAIN, None, lost, lost)
    settled(store)
    push(store, "demo", MAIN, lost, kept, kept)
    settled(store)
    return kept, lost


POINTS = ["gc.before_publish", "gc.after_publish", "gc.before_swap"]


@pytest.mark.parametrize("point", POINTS)
def test_a_push_that_brings_an_object_again_keeps_it(store: Store, point: str) -> None:
    kept, lost = lost_commit(store)
    with meanwhile(point, lambda: push(store, "demo", OTHER, None, lost, lost)) as results:
        collected(store)
    assert not isinstance(results[0], BaseException), results
    assert_whole(store, "demo", *kept.ids, *lost.ids)
    assert_no_leak(store)


@pytest.mark.parametrize("point", POINTS)
def test_a_push_on_top_of_what_is_condemned_keeps_it(store: Store, point: str) -> None:
    kept, lost = lost_commit(store)
    top = commit(lost)
    with meanwhile(point, lambda: push(store, "demo", OTHER, None, top, lost, top)) as results:
        collected(store)
    assert not isinstance(results[0], BaseException), results
    settled(store)
    collected(store)
    assert_whole(store, "demo", *kept.ids, *lost.ids, *top.ids)


@pytest.mark.parametrize("point", POINTS)
def test_a_restored_ref_keeps_what_it_names(store: Store, point: str) -> None:
    _, lost = lost_commit(store)
    with meanwhile(
        point,
        lambda: restore_ref(
            store, "demo", restoring(store, "demo", MAIN, back=1), note=NOTE, principal=ME
        ),
    ) as results:
        collected(store)
    assert not isinstance(results[0], BaseException), results
    assert_whole(store, "demo", *lost.ids)


def test_a_ref_cannot_be_restored_to_what_was_dropped(store: Store) -> None:
    kept, _ = lost_commit(store)

    def restore() -> object:
        return restore_ref(
            store, "demo", restoring(store, "demo", MAIN, back=1), note=NOTE, principal=ME
        )

    with meanwhile("gc.after_swap", restore) as results:
        assert collected(store).dropped_objects == 3
    assert isinstance(results[0], ObjectMissing)
    assert_whole(store, "demo", *kept.ids)


@pytest.mark.parametrize("point", POINTS)
def test_an_upload_keeps_what_it_brings_again(store: Store, point: str) -> None:
    kept, lost = lost_commit(store)
    with meanwhile(point, lambda: put_objects(store, "demo", lost.objects)) as results:
        collected(store)
    assert not isinstance(results[0], BaseException), results
    assert all(in_pool(store, "demo", *lost.ids))
    update_refs(
        store, "demo", [RefUpdate(OTHER, ANY, lost.id)], atomic=True, note=NOTE, principal=ME
    )
    assert_whole(store, "demo", *kept.ids, *lost.ids)


@pytest.mark.parametrize("point", POINTS)
def test_a_fork_keeps_what_its_source_lets_go(store: Store, point: str) -> None:
    first, second = commit(), commit()
    push(store, "demo", MAIN, None, first, first)
    push(store, "demo", OTHER, None, second, second)
    gone = commit()
    push(store, "demo", b"refs/heads/gone", None, gone, gone)
    push(store, "demo", b"refs/heads/gone", gone, None)
    settled(store)

    def fork() -> None:
        Repositories(store).fork("demo", "fork")
        push(store, "demo", OTHER, second, None)

    with meanwhile(point, fork) as results:
        collected(store)
    assert results == [None]
    assert_whole(store, "fork", *first.ids, *second.ids)
    collected(store)
    assert_whole(store, "fork", *first.ids, *second.ids)


@pytest.mark.parametrize("point", POINTS)
def test_a_settle_that_merges_what_is_collected_loses_nothing(store: Store, point: str) -> None:
    kept, lost = lost_commit(store)
    more = commit(kept)

    def push_and_settle() -> None:
        push(store, "demo", MAIN, kept, more, more)
        with store.journal.snapshot() as snapshot:
            pool = store.repository(snapshot, "demo").pool
        settle(store, pool)

    with meanwhile(point, push_and_settle) as results:
        collected(store)
    assert results == [None]
    settle_quietly(store)
    collected(store)
    assert_whole(store, "demo", *kept.ids, *more.ids)
    assert not any(in_pool(store, "demo", *lost.ids))
    assert_no_leak(store)


def settle_quietly(store: Store) -> None:
    with store.journal.snapshot() as snapshot:
        pool = store.repository(snapshot, "demo").pool
    settle(store, pool)


def test_many_settles_during_one_gc_do_not_starve_it(store: Store) -> None:
    kept, lost = lost_commit(store)
    tip = [kept]

    def churn(name: str) -> None:
        if name == "gc.after_publish":
            more = commit(tip[0])
            push(store, "demo", MAIN, tip[0], more, more)
            tip[0] = more
            settle_quietly(store)

    with faultpoints.listening(churn):
        collected(store)
    assert not any(in_pool(store, "demo", *lost.ids))
    assert_whole(store, "demo", *tip[0].ids)


def test_a_push_that_was_checked_before_gc_and_commits_after_it_is_sent_again(store: Store) -> None:
    kept, lost = lost_commit(store)
    under_way = start(store, "demo", OTHER, None, lost, lost)
    assert collected(store, without_grace(wait_s=0)).dropped_objects == 3
    refused = under_way.commit()
    assert "send it again" in str(refused.results[0].error)
    del under_way
    push(store, "demo", OTHER, None, lost, lost)
    settled(store)
    collected(store)
    assert_whole(store, "demo", *kept.ids, *lost.ids)
    assert_no_leak(store)


def test_a_push_under_way_without_anything_condemned_goes_through(store: Store) -> None:
    kept, _ = lost_commit(store)
    top = commit(kept)
    under_way = start(store, "demo", MAIN, kept, top, top)
    assert collected(store, without_grace(wait_s=0)).dropped_objects == 3
    assert under_way.commit().results[0].error is None
    assert_whole(store, "demo", *kept.ids, *top.ids)


def test_gc_between_the_checks_and_the_commit_of_a_push(store: Store) -> None:
    kept, lost = lost_commit(store)
    top = commit(kept)
    options = without_grace(wait_s=0)
    with meanwhile("push.before_commit", lambda: collected(store, options)) as results:
        push(store, "demo", MAIN, kept, top, top)
    assert getattr(results[0], "dropped_objects", results[0]) == 3
    assert not any(in_pool(store, "demo", *lost.ids))
    assert_whole(store, "demo", *kept.ids, *top.ids)


def test_objects_that_are_reachable_again_and_again_left_stay_while_they_are_needed(
    store: Store,
) -> None:
    """Reachable at the push's look, left behind by another since: the commit compares what it judged by."""
    kept, lost = lost_commit(store)
    push(store, "demo", OTHER, None, lost, lost)
    top = commit(lost)
    under_way = start(store, "demo", b"refs/heads/top", None, top, top)
    push(store, "demo", OTHER, lost, None)
    collected(store, without_grace(wait_s=0))
    done = under_way.commit()
    assert done.results[0].error is not None  # what it built on is gone: it must say so
    assert_whole(store, "demo", *kept.ids)
    push(store, "demo", b"refs/heads/top", None, top, lost, top)
    assert_whole(store, "demo", *kept.ids, *lost.ids, *top.ids)


def test_what_no_ref_reaches_keeps_what_it_links_to(store: Store) -> None:
    kept, lost = lost_commit(store)
    blob = object_id(ObjectType.BLOB, [lost.objects[0][1]], len(lost.objects[0][1]), HashKind.SHA1)
    tree = b"100644 other\0" + blob
    oid = object_id(ObjectType.TREE, [tree], len(tree), HashKind.SHA1)
    stray = Made(oid, ((ObjectType.TREE, tree),), frozenset({oid}))
    top = commit(kept)
    with meanwhile(
        "gc.before_swap", lambda: push(store, "demo", MAIN, kept, top, top, stray)
    ) as results:
        collected(store)
    assert not isinstance(results[0], BaseException), results
    assert in_pool(store, "demo", oid, blob) == [True, True]
    collected(store)
    settled(store)
    collected(store)
    assert in_pool(store, "demo", oid, blob) == [False, False]
    assert_whole(store, "demo", *kept.ids, *top.ids)


def test_blocks_that_a_settle_puts_out_of_a_root_stay(store: Store) -> None:
    old = commit(size=250_000)
    push(store, "demo", MAIN, None, old, old)
    settled(store)
    new = commit(old, size=300_000)  # with it the pool is more than one block
    push(store, "demo", MAIN, old, new, new)
    looked = threading.Event()
    sweeps: list[threading.Thread] = []

    def waits(progress: Progress) -> None:
        if progress.stage == "waiting for requests":
            looked.set()

    def run() -> None:
        sweep(store, age_ms=0, wait_s=60, control=Control(report=waits))
        looked.set()

    def reached(name: str) -> None:
        if name == "settle.before_commit":
            store.create_repository("another", HashKind.SHA1)  # gc looks at a later revision
            sweeps.append(threading.Thread(target=run))
            sweeps[0].start()
            assert looked.wait(60)

    with faultpoints.listening(reached):
        settled(store)
    sweeps[0].join(60)
    assert_whole(store, "demo", *old.ids, *new.ids)
    collected(store)
    assert_no_leak(store)


@pytest.mark.parametrize("point", ["gc.after_publish", "gc.before_swap"])
def test_a_push_whose_target_lost_its_last_ref_meanwhile_keeps_it(store: Store, point: str) -> None:
    kept, lost = commit(), commit()
    push(store, "demo", b"refs/heads/kept", None, kept, kept)
    push(store, "demo", b"refs/heads/lost", None, lost, lost)
    settled(store)
    waiting = start(store, "demo", OTHER, None, lost)
    push(store, "demo", b"refs/heads/lost", lost, None)
    with meanwhile(point, waiting.commit) as results:
        collected(store, without_grace(wait_s=0))  # the push holds a lease
    assert not isinstance(results[0], BaseException), results
    assert waiting.outcome().results[0].error is None
    assert_whole(store, "demo", *kept.ids, *lost.ids)
