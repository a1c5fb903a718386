"""gc over the command line and through a server: decided by git, which clones and checks what is left."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from gcing import clone_and_fsck
from served import git, serving, shardgit, small_repository

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop
AT_ONCE = ["--grace", "0", "--orphan-age", "0", "--garbage", "0", "--wait", "20s"]


def said(folder: Path, *words: str) -> Any:
    done = shardgit(*words, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def left_behind(url: str, work: Path) -> str:
    """Push a branch with a commit of its own and delete it again; returns the commit."""
    git(work, "checkout", "-q", "-b", "gone")
    (work / "gone").write_text("gone")
    git(work, "add", "gone")
    git(work, "commit", "-q", "-m", "gone")
    lost = git(work, "rev-parse", "HEAD").strip()
    git(work, "push", "-q", url, "gone")
    git(work, "push", "-q", url, ":gone")
    git(work, "checkout", "-q", "-")
    return lost


def test_gc_of_a_store_under_service_with_forks_and_deleted_ones(tmp_path: Path) -> None:
    source = small_repository(tmp_path / "source")
    for words in (["init", "data", "--shards", "2"], ["repo", "import", "demo", "source"]):
        assert shardgit(*words, cwd=tmp_path).returncode == 0
    with serving(tmp_path / "data") as server:
        to = ["--server", server.grpc]
        left_behind(server.url("demo"), source)
        said(tmp_path, "repo", "fork", "demo", "fork", *to)
        said(tmp_path, "repo", "delete", "demo", "--yes", *to)
        deleted = said(tmp_path, "repo", "deleted", *to)["deleted"]
        assert [one["name"] for one in deleted] == ["demo"]
        back = said(tmp_path, "repo", "undelete", "demo", "--as", "back", *to)
        assert back["name"] == "back"
        clone_and_fsck(server.url("back"), tmp_path / "back.git")
        said(tmp_path, "repo", "delete", "back", "--yes", *to)
        done = said(tmp_path, "shard", "gc", *AT_ONCE, *to)
        assert done["repositories_dropped"] == 1
        assert done["damaged"] == {}
        assert said(tmp_path, "repo", "deleted", *to)["deleted"] == []
        gone = shardgit("repo", "undelete", "demo", *to, cwd=tmp_path)
        assert (gone.returncode, "no deleted repository" in gone.stderr) == (1, True)
        clone_and_fsck(server.url("fork"), tmp_path / "fork.git")
        again = said(tmp_path, "shard", "gc", *AT_ONCE, *to)
        assert again["blocks_deleted"] == again["blocks_young"] == 0


def test_import_twice_delete_one_gc_clone_the_other(tmp_path: Path) -> None:
    small_repository(tmp_path / "source")
    assert shardgit("init", "data", cwd=tmp_path).returncode == 0
    for name in ("one", "two"):
        said(tmp_path, "repo", "import", name, "source")
    before = said(tmp_path, "shard", "stats")["blocks"]
    said(tmp_path, "repo", "delete", "one", "--yes")
    done = said(tmp_path, "shard", "gc", *AT_ONCE)
    assert (done["repositories_dropped"], done["pools_dropped"]) == (1, 1)
    assert done["blocks_deleted"] > 0
    assert said(tmp_path, "shard", "stats")["blocks"] == before - done["blocks_deleted"]
    with serving(tmp_path / "data") as server:
        clone_and_fsck(server.url("two"), tmp_path / "two.git")


def test_gc_through_a_server_says_what_the_command_says(tmp_path: Path) -> None:
    small_repository(tmp_path / "source")
    assert shardgit("init", "data", cwd=tmp_path).returncode == 0
    said(tmp_path, "repo", "import", "demo", "source")
    here = said(tmp_path, "shard", "gc", "--dry-run")
    with serving(tmp_path / "data") as server:
        there = said(tmp_path, "shard", "gc", "--dry-run", "--server", server.grpc)
    assert {**here, "seconds": 0} == {**there, "seconds": 0}
    bad = shardgit("shard", "gc", "--grace", "soon", cwd=tmp_path)
    assert (bad.returncode, "not a duration" in bad.stderr) == (2, True)
