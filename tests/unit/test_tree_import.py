"""Bulk import: what is found, what it is called, forks by alternates, runs that were stopped, what fails."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from served import IDENTITY, clean_environment, git, shardgit, small_repository

from shardgit.errors import NotFound, ReadOnly, RefMissing, Refused
from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.service.exporting import export_repository
from shardgit.service.look import Look
from shardgit.service.modes import set_mode
from shardgit.service.ref_log import restoring
from shardgit.service.repositories import Repositories
from shardgit.service.tree import in_order, repositories_below
from shardgit.service.tree_import import TreeImported, TreeOptions, import_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as opened:
        yield opened


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_repository(tmp_path_factory.mktemp("model") / "source")


def bare(source: Path, target: Path, *words: str) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    git(source, "clone", "-q", "--mirror", *words, str(source), str(target))
    return target


def states(done: TreeImported) -> dict[str, str]:
    return {one.name: one.state for one in done.entries}


def commit(work: Path, text: str) -> None:
    (work / "new").write_text(text)
    git(work, "add", "new")
    git(work, "commit", "-q", "-m", text)


def test_repositories_are_found_by_what_they_are(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    bare(model, root / "team" / "bare.git")
    git(tmp_path, "clone", "-q", str(model), str(root / "team" / "work"))
    git(root / "team" / "work", "worktree", "add", "-q", str(root / "elsewhere"))
    git(tmp_path, "clone", "-q", str(model), str(root / "team" / "work" / "inside"))
    work = root / "team" / "work"
    git(
        work,
        "-c",
        "protocol.file.allow=always",
        "submodule",
        "--quiet",
        "add",
        str(model),
        "module",
    )
    (root / "team" / "plain" / "folder").mkdir(parents=True)
    outside = bare(model, tmp_path / "outside.git")
    (root / "link.git").symlink_to(outside)
    (root / "loop").symlink_to(root)
    found = list(repositories_below(root))
    assert [one.name for one in found] == ["team/bare", "team/work"]
    with pytest.raises(Refused):
        list(repositories_below(model))
    with pytest.raises(NotFound):
        list(repositories_below(tmp_path / "nowhere"))


def test_a_tree_is_imported_and_what_is_there_is_passed_over(
    store: Store, model: Path, tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    bare(model, root / "a.git")
    git(tmp_path, "clone", "-q", str(model), str(root / "deep" / "er" / "b"))
    git(tmp_path, "init", "-q", "--bare", str(root / "empty.git"))
    options = TreeOptions(prefix="team/", jobs=3)
    planned = import_tree(store, root, TreeOptions(prefix="team/", dry_run=True))
    assert states(planned) == dict.fromkeys(("team/a", "team/deep/er/b", "team/empty"), "new")
    assert Repositories(store).list() == []
    done = import_tree(store, root, options)
    assert states(done) == states(planned)
    assert done.clean
    assert done.objects == 2 * int(git(model, "rev-list", "--all", "--objects", "--count"))
    export_repository(store, "team/a", tmp_path / "out.git")
    assert git(tmp_path / "out.git", "for-each-ref") == git(root / "a.git", "for-each-ref")
    revision = store.journal.revision()
    again = import_tree(store, root, options)
    assert set(states(again).values()) == {"unchanged"}
    assert store.journal.revision() == revision
    commit(root / "deep" / "er" / "b", "more")
    third = import_tree(store, root, options)
    assert third.counts == {"changed": 1, "unchanged": 2}
    assert third.objects == 3


def test_who_borrows_objects_becomes_a_fork(store: Store, model: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    base = bare(model, root / "z-base.git")
    for name in ("a-fork", "m-fork"):
        bare(base, root / f"{name}.git", "--shared")
    git(tmp_path, "clone", "-q", "--shared", str(root / "a-fork.git"), str(root / "of-fork"))
    commit(root / "of-fork", "its own")
    done = import_tree(store, root, TreeOptions(jobs=2))
    assert {one.name: (one.state, one.base) for one in done.entries} == {
        "z-base": ("new", ""),
        "a-fork": ("forked", "z-base"),
        "m-fork": ("forked", "z-base"),
        "of-fork": ("forked", "a-fork"),
    }
    assert {one.name: one.objects for one in done.entries}["of-fork"] == 3
    with store.journal.snapshot() as snapshot:
        pools = {store.repository(snapshot, one.name).pool for one in done.entries}
    assert len(pools) == 1
    export_repository(store, "of-fork", tmp_path / "out.git")
    git(tmp_path / "out.git", "fsck", "--strict", "--full")
    assert git(tmp_path / "out.git", "log", "-1", "--format=%s") == "its own"
    assert set(states(import_tree(store, root)).values()) == {"unchanged"}


def test_nothing_of_the_bases_refs_reaches_who_borrows_from_it(
    store: Store, model: Path, tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    base = bare(model, root / "base.git")
    bare(base, root / "fork.git", "--shared")
    git(tmp_path, "clone", "-q", str(base), str(tmp_path / "work"))
    commit(tmp_path / "work", "hidden from forks")
    git(tmp_path / "work", "push", "-q", "origin", "HEAD:refs/heads/secret")
    secret = git(base, "rev-parse", "secret")
    done = import_tree(store, root)
    assert states(done) == {"base": "new", "fork": "forked"}
    with store.journal.snapshot() as snapshot:
        parent, record = (store.repository(snapshot, name) for name in ("base", "fork"))
        assert (record.parent, record.pool) == (parent.id, parent.pool)
        log = list(store.refs.log(snapshot, record))
        named = {change.name for entry in log for change in entry.changes}
        targets = {
            ref.target.hex()
            for entry in log
            for change in entry.changes
            for ref in (change.old, change.new)
            if ref is not None and ref.target is not None
        }
    assert b"refs/heads/main" in named
    assert b"refs/heads/secret" not in named
    assert secret not in targets
    with pytest.raises(RefMissing):
        restoring(store, "fork", b"refs/heads/secret", back=1)
    (there,) = Look(store, "base").positions([ObjectId(bytes.fromhex(secret))])
    (here,) = Look(store, "fork").positions([ObjectId(bytes.fromhex(secret))])
    assert there >= 0 > here
    assert set(states(import_tree(store, root)).values()) == {"unchanged"}


def test_what_no_ref_of_the_base_reaches_is_read_from_there(
    store: Store, model: Path, tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    base = bare(model, root / "base.git")
    bare(base, root / "fork.git", "--shared")
    tip = git(base, "rev-parse", "main")
    git(base, "update-ref", "refs/heads/main", f"{tip}~1", tip)
    git(base, "update-ref", "-d", "refs/tags/v1")
    done = import_tree(store, root)
    assert states(done) == {"base": "new", "fork": "forked"}
    export_repository(store, "fork", tmp_path / "out.git")
    assert git(tmp_path / "out.git", "rev-parse", "main") == tip


def test_those_that_borrow_in_a_circle_are_put_in_some_order(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for name, other in (("a", "b"), ("b", "a")):
        made = bare(model, root / f"{name}.git")
        (made / "objects" / "info" / "alternates").write_text(f"../../{other}.git/objects\n")
    ordered = in_order(list(repositories_below(root)))
    assert sorted((one.name, base.name if base else "") for one, base in ordered) in (
        [("a", ""), ("b", "a")],
        [("a", "b"), ("b", "")],
    )


def test_what_fails_is_told_and_the_others_are_there(
    store: Store, model: Path, tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    bare(model, root / "good.git")
    bare(model, root / "same")
    bare(model, root / "same.git")
    bare(model, root / "bad name.git")
    broken = bare(model, root / "broken.git")
    tree = git(broken, "rev-parse", "main^{tree}")
    (broken / "objects" / tree[:2] / tree[2:]).unlink()
    done = import_tree(store, root)
    assert done.counts == {"new": 2, "failed": 3}
    assert not done.clean
    errors = {one.source.rpartition("/")[2]: one.error for one in done.entries if one.error}
    assert set(errors) == {"bad name.git", "broken.git", "same.git"}
    assert errors["same.git"] == "two sources have that name"
    assert [one.name for one in Repositories(store).list()] == ["good", "same"]


def test_what_was_pushed_since_is_left_alone(store: Store, model: Path, tmp_path: Path) -> None:
    from shardgit.refs.update import ANY, RefUpdate
    from shardgit.refs.writer import RefWriter

    root = tmp_path / "tree"
    bare(model, root / "a.git")
    import_tree(store, root)
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, "a")
    update = RefUpdate(b"refs/heads/main", ANY, None)
    RefWriter(store.refs, store.journal, store.workers).update_sync(record, [update])
    done = import_tree(store, root)
    assert states(done) == {"a": "failed"}
    assert "--overwrite" in done.entries[0].error
    assert states(import_tree(store, root, TreeOptions(overwrite=True))) == {"a": "changed"}


def test_a_read_only_store_takes_no_tree(store: Store, model: Path, tmp_path: Path) -> None:
    bare(model, tmp_path / "tree" / "a.git")
    set_mode(store, read_only=True)
    with pytest.raises(ReadOnly):
        import_tree(store, tmp_path / "tree")


def test_a_receipt_that_cannot_be_written_is_refused_before_the_work(
    model: Path, tmp_path: Path
) -> None:
    create_store(tmp_path / "data")
    bare(model, tmp_path / "tree" / "a.git")
    words = ["repo", "import-tree", "tree", "--data", "data", "--receipt"]
    for receipt in ("missing/import.json", "tree"):
        done = shardgit(*words, receipt, cwd=tmp_path)
        assert done.returncode == 2
        assert "receipt cannot be written there" in done.stderr
    with open_store(tmp_path / "data") as store:
        assert Repositories(store).list() == []


def test_a_run_that_was_killed_is_begun_again(model: Path, tmp_path: Path) -> None:
    create_store(tmp_path / "data")
    root = tmp_path / "tree"
    base = bare(model, root / "base.git")
    for number in range(6):
        bare(base, root / f"f{number}.git", "--shared")
    words = [sys.executable, "-m", "shardgit", "repo", "import-tree", str(root), "--data", "data"]
    killed = subprocess.run(
        words,
        cwd=tmp_path,
        env={**clean_environment(), "SHARDGIT_FAULT": "import.before_commit:3:kill"},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert killed.returncode == -9
    receipt = tmp_path / "receipt.json"
    done = shardgit(*words[3:], "--receipt", str(receipt), cwd=tmp_path, environment={**IDENTITY})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("7 repositories: ")
    entries = json.loads(receipt.read_text())["entries"]
    assert {one["name"] for one in entries} == {"base", *(f"f{number}" for number in range(6))}
    assert {one["state"] for one in entries} <= {"new", "forked", "changed", "unchanged"}
    (root / "f0.git" / "HEAD").write_text("damaged\n")
    done = shardgit(*words[3:], "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["counts"] == {"failed": 1, "unchanged": 6}
    with open_store(tmp_path / "data") as store:
        for number in range(6):
            export_repository(store, f"f{number}", tmp_path / f"out{number}.git")
            git(tmp_path / f"out{number}.git", "fsck", "--strict")
