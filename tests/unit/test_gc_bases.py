"""gc and deltas across runs: what stays readable has its base, whichever runs are written anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gcing import (
    MAIN,
    assert_no_leak,
    assert_whole,
    collected,
    commit,
    in_pool,
    push,
    push_delta,
    without_grace,
)

from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.objects import ObjectType, object_id
from shardgit.oid import HashKind
from shardgit.operate.settle import settle
from shardgit.pool.manifest import EXTERNAL_BASES
from shardgit.service.look import Look

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.service.store import Store

SMALL = Limits(
    recents_settle=10_000, recents_max=10_000, block_target_bytes=2_000, block_max_bytes=65_536
)
GONE, LINKED = b"refs/heads/gone", b"refs/heads/linked"


def settled(store: Store) -> None:
    with store.journal.snapshot() as snapshot:
        pool = store.repository(snapshot, "demo").pool
    assert settle(store, pool)


def test_a_run_whose_garbage_is_all_linked_to_keeps_the_bases_of_what_lives_in_it(
    tmp_path: Path,
) -> None:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=SMALL, threads=2) as store:
        store.create_repository("demo", HashKind.SHA1)
        # The oldest run: something that lives, and a base that is about to be garbage.
        first, base = commit(size=20_000), commit(size=20_000)
        push(store, "demo", MAIN, None, first, first)
        push(store, "demo", GONE, None, base, base)
        settled(store)
        # The next: a delta on that base, which lives, and enough garbage to be worth a rewrite.
        near = push_delta(store, first, base)
        linked = commit(size=20_000)
        push(store, "demo", LINKED, None, linked, linked)
        settled(store)
        # The newest has too little garbage for one, but it links to all of the one before: nothing can go from there.
        last, tiny = commit(near, size=60_000), commit(linked, size=1)
        push(store, "demo", MAIN, near, last, last)
        push(store, "demo", LINKED, linked, tiny, tiny)
        settled(store)
        push(store, "demo", GONE, base, None)
        push(store, "demo", LINKED, tiny, None)
        view = Look(store, "demo").view
        assert view is not None
        assert [run.record.objects for run in view.runs] == [6, 6, 6]
        assert any(segment.entry.flags & EXTERNAL_BASES for segment in view.segments)
        done = collected(store, without_grace(garbage_min=0.1))
        assert done.dropped_objects == 2  # the base's commit and tree
        blob = object_id(
            ObjectType.BLOB, [base.objects[0][1]], len(base.objects[0][1]), HashKind.SHA1
        )
        assert in_pool(store, "demo", blob, base.id) == [True, False]
        assert_whole(store, "demo", *first.ids, *near.ids, *last.ids)
        assert_no_leak(store)
        # With the newest run's garbage all of it goes, and the delta is written whole.
        assert collected(store).dropped_objects == 7
        assert_whole(store, "demo", *first.ids, *near.ids, *last.ids)
