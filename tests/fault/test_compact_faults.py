"""Compactions that are killed, or that others get in the way of: nothing is lost, and begun again they end."""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING

import pytest
from reference.gits import git, make_history, reachable
from served import git as served_git
from served import serving, shardgit

from shardgit.errors import Conflict, Refused, Stopped
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.operate.compact import compact, compact_repository, replaced, rewrite, swap_runs
from shardgit.operate.operation import Control, silent_control
from shardgit.operate.reserving import reserved, reserving
from shardgit.operate.verify import verify_repository
from shardgit.service.exporting import export_repository
from shardgit.service.importing import import_repository
from shardgit.service.look import Look

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.oid import PoolId
    from shardgit.progress import Progress
    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
SMALL = Limits(block_target_bytes=6_000, block_max_bytes=12_000)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_history(tmp_path_factory.mktemp("made") / "origin", commits=40)


def filled(folder: Path, history: Path, limits: Limits = SMALL) -> None:
    create_store(folder)
    with open_store(folder, limits=limits) as store:
        import_repository(store, "demo", str(history))


def pool_of(store: Store) -> PoolId:
    with store.journal.snapshot() as snapshot:
        return store.repository(snapshot, "demo").pool


def judge(store: Store, history: Path, out: Path) -> None:
    """C git finds all objects of the history, sound, and so do we."""
    assert not verify_repository(store, "demo").bad
    export_repository(store, "demo", out)
    git(out, "fsck", "--strict", "--full")
    assert reachable(out) == reachable(history)


@pytest.mark.parametrize("point", ["compact.before_commit", "compact.after_commit"])
def test_a_compaction_that_is_killed_has_happened_or_not(
    point: str, history: Path, tmp_path: Path
) -> None:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(history))
        with store.journal.snapshot() as snapshot:
            before = store.pool(snapshot, pool_of(store)).record.manifest
    # A pool of this size is one block, and would be settled whole: parts of a megabyte make it larger.
    big = tmp_path / "big"
    git(tmp_path, "clone", "-q", str(history), "big")
    import os

    for number in range(3):
        (big / f"noise{number}").write_bytes(os.urandom(400_000))
        git(big, "add", "-A")
        git(big, "commit", "-qm", f"noise {number}")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(big), overwrite=True)
        with store.journal.snapshot() as snapshot:
            before = store.pool(snapshot, pool_of(store)).record.manifest
    done = shardgit(
        *("repo", "compact", "demo", "--full", "--eager", "--data", str(tmp_path / "data")),
        cwd=tmp_path,
        environment={"SHARDGIT_FAULT": point},
    )
    assert done.returncode == -signal.SIGKILL
    with open_store(tmp_path / "data") as store:
        with store.journal.snapshot() as snapshot:
            after = store.pool(snapshot, pool_of(store)).record.manifest
        assert (after == before) is (point == "compact.before_commit")
        assert not reserved(store, pool_of(store))
        again = compact_repository(store, "demo", control=silent_control(), full=True)
        assert again.runs_after == 1
        judge(store, big, tmp_path / "out.git")


def test_runs_that_are_written_anew_are_left_alone_by_settles(
    history: Path, tmp_path: Path
) -> None:
    filled(tmp_path / "data", history)
    with open_store(tmp_path / "data", limits=SMALL) as store:
        pool = pool_of(store)
        view = Look(store, "demo").view
        assert view is not None
        with reserving(store, pool, [run.record for run in view.runs]):
            assert reserved(store, pool) == {view.runs[0].record.first_serial}
            with pytest.raises(Refused), reserving(store, pool, []):
                pass
        assert not reserved(store, pool)


def test_a_swap_whose_runs_are_gone_is_a_conflict(history: Path, tmp_path: Path) -> None:
    filled(tmp_path / "data", history)
    with open_store(tmp_path / "data", limits=SMALL) as store:
        pool = pool_of(store)
        view = Look(store, "demo").view
        assert view is not None
        runs = list(view.runs)
        new = rewrite(store, view, runs, pool=pool, control=silent_control())
        assert new is not None
        swap_runs(store, pool, [run.record for run in runs], new)
        with pytest.raises(Conflict):
            swap_runs(store, pool, [run.record for run in runs], new)
        assert replaced(view.manifest, [], new) is None
        judge(store, history, tmp_path / "out.git")


def test_what_is_not_kept_is_left_out(history: Path, tmp_path: Path) -> None:
    filled(tmp_path / "data", history)
    with open_store(tmp_path / "data", limits=SMALL) as store:
        pool = pool_of(store)
        look = Look(store, "demo")
        assert look.view is not None
        tip = git(history, "rev-parse", "main~10").decode().strip()
        (at,) = look.positions([bytes.fromhex(tip)])  # type: ignore[list-item]
        keep = store.closure_of(look.view, [at])
        new = rewrite(
            store, look.view, look.view.runs, pool=pool, keep=keep, control=silent_control()
        )
        assert new is not None
        wanted = git(history, "rev-list", "--objects", "--no-object-names", tip).split()
        assert new.objects == len(wanted)
        assert (
            rewrite(store, look.view, look.view.runs, pool=pool, keep=b"", control=silent_control())
            is None
        )


def test_a_compaction_that_is_told_to_stop_changes_nothing(history: Path, tmp_path: Path) -> None:
    filled(tmp_path / "data", history)
    with open_store(tmp_path / "data", limits=SMALL) as store:
        before = Look(store, "demo").view
        assert before is not None
        control = Control()

        def stop(step: Progress) -> None:
            if step.stage == "writing blocks":
                control.stop()

        control._report = stop
        with pytest.raises(Stopped):
            compact(store, pool_of(store), control=control, full=True)
        after = Look(store, "demo").view
        assert after is not None
        assert after.id == before.id
        assert not reserved(store, pool_of(store))


def test_compactions_and_settles_at_once_lose_nothing(history: Path, tmp_path: Path) -> None:
    create_store(tmp_path / "data")
    source = tmp_path / "work"
    git(tmp_path, "clone", "-q", str(history), "work")
    with serving(tmp_path / "data") as server:
        url = server.url("demo")
        shardgit("repo", "create", "demo", "--server", server.grpc, cwd=tmp_path)
        served_git(source, "push", "-q", url, "HEAD~20:refs/heads/main")
        failures: list[str] = []

        def keep_compacting() -> None:
            for _ in range(4):
                done = shardgit(
                    *("repo", "compact", "demo", "--full", "--eager", "--json"),
                    *("--server", server.grpc),
                    cwd=tmp_path,
                )
                if done.returncode:
                    failures.append(done.stderr + done.stdout)
                else:
                    assert json.loads(done.stdout)["runs_after"] >= 1

        worker = threading.Thread(target=keep_compacting)
        worker.start()
        for back in range(19, -1, -1):
            served_git(source, "push", "-q", url, f"HEAD~{back}:refs/heads/main")
        worker.join()
        assert not failures
        git(tmp_path, "clone", "-q", "--mirror", url, "out.git")
    git(tmp_path / "out.git", "fsck", "--strict", "--full")
    assert reachable(tmp_path / "out.git") == {
        line.split(b" ")[0] for line in git(source, "rev-list", "--objects", "HEAD").splitlines()
    }
