"""gc that is killed at each of its points: run again, it loses nothing and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from gcing import MAIN, assert_no_leak, assert_whole, collected, commit, in_pool, push

from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.oid import HashKind, PoolId
from shardgit.operate.settle import settle
from shardgit.service.repositories import Repositories

if TYPE_CHECKING:
    from gcing import Made

    from shardgit.service.store import Store

LIMITS = {
    "recents_settle": 10_000,
    "recents_max": 10_000,
    "block_target_bytes": 2_000,
    "block_max_bytes": 6_000,
}
COLLECTOR = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from gcing import AT_ONCE, collected
from shardgit.limits import Limits
from shardgit.node import open_store
with open_store(Path(sys.argv[1]), limits=Limits(**eval(sys.argv[3])), threads=2) as store:
    print(collected(store), flush=True)
"""
READER = """
import sys, time
from pathlib import Path
from shardgit.node import open_store
from shardgit.service.look import Look
with open_store(Path(sys.argv[1]), threads=2) as store:
    look = Look(store, "demo")
    print("holds", flush=True)
    time.sleep(600)
"""
POINTS = [
    f"gc.{when}_{what}"
    for what in ("publish", "swap", "rows", "delete")
    for when in ("before", "after")
]


def run_gc(data: Path, point: str = "") -> subprocess.CompletedProcess[str]:
    tests = str(Path(__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-c", COLLECTOR, str(data), tests, repr(LIMITS)],
        env=os.environ | {"SHARDGIT_FAULT": point},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def filled(data: Path) -> tuple[Made, list[Made]]:
    """A store with garbage in several runs, a deleted repository, and one that is kept."""
    create_store(data, shards=2)
    gone: list[Made] = []
    with open_store(data, limits=Limits(**LIMITS), threads=2) as store:
        for name in ("demo", "deleted"):
            store.create_repository(name, HashKind.SHA1)
        tip = None
        for _ in range(3):
            kept, lost = commit(*([tip] if tip else [])), commit()
            push(store, "demo", MAIN, tip, kept, kept)
            push(store, "demo", b"refs/heads/gone", None, lost, lost)
            push(store, "demo", b"refs/heads/gone", lost, None)
            gone.append(lost)
            tip = kept
            settle_all(store)
        other = commit()
        push(store, "deleted", MAIN, None, other, other)
        settle_all(store)
        Repositories(store).delete("deleted")
    assert tip is not None
    return tip, gone


def settle_all(store: Store) -> None:
    with store.journal.snapshot() as snapshot:
        pools = [PoolId(row.key[1:]) for row in snapshot.range(b"P", b"Q")]
    for pool in pools:
        settle(store, pool)


@pytest.mark.parametrize("point", POINTS)
def test_gc_killed_at_a_point_goes_on_when_it_is_run_again(tmp_path: Path, point: str) -> None:
    data = tmp_path / "data"
    tip, gone = filled(data)
    assert run_gc(data, f"{point}:1:kill").returncode == -signal.SIGKILL
    with open_store(data, limits=Limits(**LIMITS), threads=2) as store:
        assert_whole(store, "demo", *tip.ids)
        more = commit(tip)
        push(store, "demo", MAIN, tip, more, more)
        settle_all(store)
    done = run_gc(data)
    assert done.returncode == 0, done.stderr
    with open_store(data, limits=Limits(**LIMITS), threads=2) as store:
        assert_whole(store, "demo", *tip.ids, *more.ids)
        assert not any(in_pool(store, "demo", *(oid for lost in gone for oid in lost.ids)))
        assert_no_leak(store)


def test_another_process_that_reads_holds_its_blocks_and_its_death_lets_go(tmp_path: Path) -> None:
    data = tmp_path / "data"
    tip, _ = filled(data)
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(data)], stdout=subprocess.PIPE, text=True
    ) as reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "holds\n"
            with open_store(data, limits=Limits(**LIMITS), threads=2) as store:
                from gcing import without_grace

                left = collected(store, without_grace(wait_s=0))
                assert left.blocks_waiting > 0
                assert left.waiting_for == (f"process {reader.pid}",)
                reader.kill()
                reader.wait()
                time.sleep(0.1)
                assert collected(store).blocks_deleted >= left.blocks_waiting
                assert_whole(store, "demo", *tip.ids)
                assert_no_leak(store)
        finally:
            reader.kill()
