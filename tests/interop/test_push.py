"""Pushes of stock git over HTTP; what is there afterwards is judged by git fsck of a clone."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from typing import TYPE_CHECKING

import pytest
from served import clean_environment, git, serving, shardgit, small_repository

from shardgit.node import create_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from served import Server

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("push")
    create_store(folder / "data", shards=2)
    with serving(folder / "data") as running:
        yield running


@pytest.fixture(params=["sha1", "sha256"])
def remote(server: Server, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    name = f"t{abs(hash(request.node.nodeid))}"
    done = shardgit(
        *("repo", "create", name, "--object-format", request.param, "--server", server.grpc),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return server.url(name), str(request.param)


def work(tmp_path: Path, kind: str, commits: int = 3) -> Path:
    os.environ["GIT_DEFAULT_HASH"] = kind
    try:
        return small_repository(tmp_path / "work", commits)
    finally:
        del os.environ["GIT_DEFAULT_HASH"]


def attempt(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-C", str(folder), *words],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def same(url: str, origin: Path, clone: Path) -> None:
    git(origin.parent, "clone", "--quiet", "--mirror", url, str(clone))
    git(clone, "fsck", "--strict", "--full")
    refs = ["for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags"]
    assert git(clone, *refs) == git(origin, *refs)


def test_what_is_found_out_as_refs_move_is_told_as_well(server: Server, tmp_path: Path) -> None:
    name = "aliased"
    done = shardgit("repo", "create", name, "--server", server.grpc, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    origin, url = work(tmp_path, "sha1"), server.url(name)
    git(origin, "push", "--quiet", url, "main")
    words = ("ref", "update", name, "refs/heads/alias", "refs/heads/main", "--symbolic")
    done = shardgit(*words, "--server", server.grpc, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    git(origin, "branch", "other", "HEAD~1")
    refused = attempt(origin, "push", "--force", url, "other:main", "HEAD~2:alias")
    assert refused.returncode == 1
    assert "refusing inconsistent update between symref" in refused.stderr


def test_first_and_later_pushes_arrive_whole(remote: tuple[str, str], tmp_path: Path) -> None:
    url, kind = remote
    origin = work(tmp_path, kind)
    git(origin, "push", "--quiet", url, "main", "--tags")
    same(url, origin, tmp_path / "first.git")
    for number in range(5):
        (origin / "README.md").write_text(f"changed {number}\n" * 50)
        git(origin, "commit", "--quiet", "-am", f"change {number}")
        git(origin, "push", "--quiet", url, "main")
    same(url, origin, tmp_path / "second.git")


def test_a_hundred_pushes_are_settled_and_stay_whole(
    server: Server, remote: tuple[str, str], tmp_path: Path
) -> None:
    url, kind = remote
    origin = work(tmp_path, kind)
    git(origin, "push", "--quiet", url, "main", "--tags")
    for number in range(100):
        (origin / f"file{number % 7}").write_text(f"changed {number}\n" * (number + 1))
        git(origin, "add", "-A")
        git(origin, "commit", "--quiet", "-m", f"change {number}")
        git(origin, "push", "--quiet", url, "main")
    same(url, origin, tmp_path / "clone.git")
    name = url.rsplit("/", 1)[1].removesuffix(".git")
    shown = shardgit("repo", "show", name, "--server", server.grpc, "--json", cwd=tmp_path)
    assert '"generation": 0' not in shown.stdout


def test_branches_are_made_moved_and_deleted(remote: tuple[str, str], tmp_path: Path) -> None:
    url, kind = remote
    origin = work(tmp_path, kind)
    git(origin, "push", "--quiet", url, "main", "main:refs/heads/other")
    git(origin, "push", "--quiet", url, ":refs/heads/other", "main~1:refs/heads/old")
    assert git(origin, "ls-remote", url, "refs/heads/*").split() == [
        *(git(origin, "rev-parse", "main"), "refs/heads/main"),
        *(git(origin, "rev-parse", "main~1"), "refs/heads/old"),
    ]
    refused = attempt(origin, "push", url, "main~2:refs/heads/old")
    assert refused.returncode == 1
    assert "non-fast-forward" in refused.stderr
    git(origin, "push", "--quiet", "--force", url, "main~2:refs/heads/old")
    assert git(origin, "rev-parse", "main~2") in git(origin, "ls-remote", url, "refs/heads/old")


def test_atomic_pushes_do_all_or_nothing(remote: tuple[str, str], tmp_path: Path) -> None:
    url, kind = remote
    origin = work(tmp_path, kind)
    git(origin, "push", "--quiet", url, "main")
    before = git(origin, "ls-remote", url)
    # Deleting the current branch is refused, and so is all that goes with it.
    refused = attempt(origin, "push", "--atomic", url, "main:refs/heads/new", ":refs/heads/main")
    assert refused.returncode == 1
    assert git(origin, "ls-remote", url) == before
    partly = attempt(origin, "push", url, "main:refs/heads/new", ":refs/heads/main")
    assert partly.returncode == 1
    assert "deletion of the current branch prohibited" in partly.stderr
    assert "refs/heads/new" in git(origin, "ls-remote", url)


def test_bad_objects_are_refused_in_gits_words(remote: tuple[str, str], tmp_path: Path) -> None:
    url, kind = remote
    origin = work(tmp_path, kind)
    git(origin, "push", "--quiet", url, "main")
    before = git(origin, "ls-remote", url)
    tree = git(origin, "rev-parse", "main^{tree}")
    bad = f"tree {tree}\nauthor A <a@b.c 1 +0000\ncommitter C <c@d.e> 1 +0000\n\nbad\n"
    made = subprocess.run(
        ["git", "-C", str(origin), "hash-object", "-t", "commit", "--literally", "-w", "--stdin"],
        input=bad,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    refused = attempt(origin, "push", url, f"{made}:refs/heads/bad")
    assert refused.returncode == 1
    assert "badEmail" in refused.stderr
    assert made in refused.stderr
    assert git(origin, "ls-remote", url) == before


def test_a_push_that_lacks_objects_is_refused(remote: tuple[str, str], tmp_path: Path) -> None:
    url, kind = remote
    origin = work(tmp_path, kind)
    blob = git(origin, "rev-parse", "main:README.md")
    (origin / ".git" / "objects" / blob[:2] / blob[2:]).chmod(0o600)
    (origin / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    tree, commit = git(origin, "rev-parse", "main^{tree}"), git(origin, "rev-parse", "main")
    pack = subprocess.run(
        ["git", "-C", str(origin), "pack-objects", "--stdout"],
        input=f"{tree}\n{commit}\n".encode(),
        env=clean_environment(),
        capture_output=True,
        check=True,
    ).stdout
    line = f"{'0' * len(commit)} {commit} refs/heads/main\0report-status object-format={kind}"
    body = f"{len(line) + 4:04x}{line}0000".encode() + pack
    asked = urllib.request.Request(
        f"{url}/git-receive-pack",
        body,
        {"Content-Type": "application/x-git-receive-pack-request"},
    )
    with urllib.request.urlopen(asked, timeout=60) as response:
        answer = response.read().decode()
    assert "unpack ok" in answer
    assert "ng refs/heads/main missing necessary objects" in answer
    assert git(origin, "ls-remote", url) == ""


def test_a_large_push_goes_into_the_shards(remote: tuple[str, str], tmp_path: Path) -> None:
    url, kind = remote
    origin = work(tmp_path, kind)
    git(origin, "push", "--quiet", url, "main")
    for number in range(3):
        (origin / f"large{number}").write_bytes(os.urandom(1_500_000))
    git(origin, "add", "-A")
    git(origin, "commit", "--quiet", "-m", "large")
    git(origin, "push", "--quiet", url, "main")
    (origin / "README.md").write_text("on top\n")
    git(origin, "commit", "--quiet", "-am", "on top")
    git(origin, "push", "--quiet", url, "main", "v1")
    same(url, origin, tmp_path / "clone.git")
