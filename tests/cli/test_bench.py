"""shardgit bench: over a path, a store of its own, a server that runs; nothing is left behind."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from served import git, serving, shardgit, small_repository

from shardgit.cli.bench_load import one_commit

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop
SUITES = ["clone", "fetch", "push", "objects", "refs"]
QUICK = ("--seconds", "0.1", "--clients", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    small_repository(folder / "work", commits=14)
    for words in (("init", "data"), ("repo", "import", "demo", "work", "--data", "data")):
        assert shardgit(*words, cwd=folder).returncode == 0
    return folder


def checked(text: str, suites: list[str], *, own: bool) -> list[dict[str, Any]]:
    facts = json.loads(text)
    assert [one["suite"] for one in facts["suites"]] == suites
    for one in facts["suites"]:
        assert one["operations"] >= one["clients"] == 2
        assert one["items"] >= one["operations"]
        assert 0 < one["p50_s"] <= one["p95_s"] <= one["p99_s"]
        assert one["bytes"] > 0
        assert (one["cpu_s"] is not None) is own
    assert all(value > 0 for value in facts["machine"].values())
    return list(facts["suites"])


def test_a_path_is_measured_in_a_store_of_its_own(folder: Path) -> None:
    done = shardgit("bench", "--repo", "./work", *QUICK, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    checked(done.stdout, SUITES, own=True)


def test_a_server_that_runs_is_measured_and_left_as_it_was(folder: Path) -> None:
    with serving(folder / "data", "--workers", "1") as server:
        words = ("--server", server.grpc, "--http", f"http://{server.http}")
        done = shardgit("bench", *words, *QUICK, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        checked(done.stdout, SUITES, own=False)
        table = shardgit("bench", "refs", *words, *QUICK, cwd=folder)
        assert table.returncode == 0, table.stderr
        assert table.stdout.splitlines()[1].split()[:2] == ["refs", "2"]
        assert "N/A" in table.stdout
        listed = shardgit("repo", "list", "--server", server.grpc, "--json", cwd=folder)
        assert [one["name"] for one in json.loads(listed.stdout)["repositories"]] == ["demo"]
        for more, said in (
            (("--http", "http://127.0.0.1:9"), "server does not answer"),
            (("--repo", "missing"), "repository does not exist"),
            (("--workers", "2"), "--workers"),
            (("--repo", "./work"), "a path alone"),
        ):
            refused = shardgit("bench", "clone", *words, *QUICK, *more, cwd=folder)
            assert refused.returncode in (1, 2)
            assert said in refused.stderr
            assert len(refused.stderr.splitlines()) == 1


def test_a_store_is_served_for_as_long_as_it_is_measured(folder: Path) -> None:
    done = shardgit("bench", "fetch", "--data", "data", *QUICK, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    checked(done.stdout, ["fetch"], own=True)
    with serving(folder / "data", "--workers", "1"):  # nobody has it any more
        pass


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (("nothing",), "no such suite", 2),
        (("--data", "nowhere"), "not", 1),
        (("--repo", "./nowhere"), "nowhere", 1),
        (("--http", "http://x", "--data", "data"), "--http goes with --server", 2),
        (("clone", "--server", "127.0.0.1:1", "--repo", "x"), "127.0.0.1:1", 1),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(
    folder: Path, words: tuple[str, ...], said: str, code: int
) -> None:
    done = shardgit("bench", *words, *QUICK, cwd=folder)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_pushes_are_commits_to_git(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", ".")
    parent = None
    for number in (1, 2, 3):
        parent, pack = one_commit(parent, number)
        (tmp_path / "pack").write_bytes(pack)
        with (tmp_path / "pack").open("rb") as file:
            subprocess.run(
                ["git", "-C", str(tmp_path), "index-pack", "--strict", "--stdin", "--fix-thin"],
                stdin=file,
                check=True,
                capture_output=True,
            )
        git(tmp_path, "update-ref", "refs/heads/main", parent.hex())
    git(tmp_path, "fsck", "--strict")
    assert git(tmp_path, "rev-list", "--count", "main").strip() == "3"
