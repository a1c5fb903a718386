"""shardgit ref update, log and restore, and repo fork: directly and through a server."""

from __future__ import annotations

import json
import os
import pwd
import time
from typing import TYPE_CHECKING, Any

import pytest
from served import git, serving, shardgit, small_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAIN = "refs/heads/main"
SIDE = "refs/heads/side"


class Place:
    """A store that holds a small repository as demo, and how it is reached."""

    def __init__(self, folder: Path, target: list[str]) -> None:
        self.folder = folder
        self.target = target

    def run(self, *words: str, code: int = 0) -> str:
        done = shardgit(*words, *self.target, cwd=self.folder)
        assert done.returncode == code, (words, done)
        return done.stderr if code else done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_repository(tmp_path_factory.mktemp("refs") / "source", commits=4)


@pytest.fixture(scope="module", params=["data", "server"])
def place(
    source: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp(request.param)
    here = Place(folder, ["--data", str(folder / "data")])
    assert shardgit("init", "data", cwd=folder).returncode == 0
    here.run("repo", "import", "demo", str(source))
    if request.param == "data":
        yield here
        return
    with serving(folder / "data", "--workers", "1") as server:
        yield Place(folder, ["--server", server.grpc])


@pytest.fixture
def name(place: Place, request: pytest.FixtureRequest) -> str:
    made = f"t/{request.node.originalname}"
    assert place.json("repo", "fork", "demo", made)["forked_from"] == 1
    return made


def test_refs_are_moved_made_and_deleted(place: Place, source: Path, name: str) -> None:
    head, before = git(source, "rev-parse", "main"), git(source, "rev-parse", "main~2")
    place.run("ref", "update", name, MAIN, "main~2", head)
    assert place.run("ref", "get", name, MAIN).strip() == before
    told = place.run("ref", "update", name, MAIN, head, head, code=1)
    assert "not at the expected object" in told
    made = place.json("ref", "update", name, "refs/heads/x", head, "0" * 40)
    assert (made["name"], made["target"]) == ("refs/heads/x", head)
    assert "expected" in place.run("ref", "update", name, "refs/heads/x", head, "0" * 40, code=1)
    place.run("ref", "update", name, "HEAD", "refs/heads/x", "--symbolic")
    assert place.json("ref", "get", name, "HEAD")["symbolic"] == "refs/heads/x"
    told = place.run("ref", "update", name, "HEAD", MAIN, MAIN, "--symbolic", code=1)
    assert "does not point where it should" in told
    place.run("ref", "update", name, MAIN, "--delete", before)
    assert MAIN not in place.run("ref", "list", name)
    for words in ([MAIN], [MAIN, head, head, "--delete"], [MAIN, "--delete", "--symbolic"]):
        place.run("ref", "update", name, *words, code=2)
    assert "full id" in place.run("ref", "update", name, MAIN, head, "abc", code=1)


def test_the_log_is_shown_by_ref_and_whole(place: Place, source: Path, name: str) -> None:
    ids = [git(source, "rev-parse", f"main~{n}") for n in range(3)]
    for oid in ids[1:]:
        place.run("ref", "update", name, MAIN, oid, "-m", f"back to {oid[:4]}")
    lines = place.run("ref", "log", name, MAIN).splitlines()
    assert [line.split()[0] for line in lines] == [ids[2], ids[1], ids[0]]
    assert [line.split()[1] for line in lines] == [f"{MAIN}@{{{n}}}:" for n in range(3)]
    assert lines[0].endswith(f"back to {ids[2][:4]}")
    assert lines[2].endswith("fork of demo")
    whole = place.json("ref", "log", name, "--limit", "2")["entries"]
    assert [entry["sequence"] for entry in whole] == [3, 2]
    actor = "anonymous" if "--server" in place.target else pwd.getpwuid(os.getuid()).pw_name
    assert {entry["actor"] for entry in whole} == {actor}
    assert whole[0]["changes"] == [
        {
            "name": MAIN,
            "old": ids[1],
            "new": ids[2],
            "old_symbolic": None,
            "new_symbolic": None,
        }
    ]
    assert f"    {ids[1]} {ids[2]} {MAIN}" in place.run("ref", "log", name).splitlines()


def test_a_ref_is_restored_by_moves_and_by_time(place: Place, source: Path, name: str) -> None:
    ids = [git(source, "rev-parse", f"main~{n}") for n in range(3)]
    place.run("ref", "update", name, SIDE, ids[1])
    time.sleep(1.1)
    moment = int(time.time())
    time.sleep(1.1)
    place.run("ref", "update", name, SIDE, ids[2])
    place.run("ref", "update", name, SIDE, "--delete")
    assert place.run("ref", "restore", name, f"{SIDE}@{{1}}").strip() == f"{SIDE} is again {ids[2]}"
    done = place.json("ref", "restore", name, f"{SIDE}@{{@{moment}}}")
    assert done["new"] == ids[1]
    assert place.run("ref", "get", name, SIDE).strip() == ids[1]
    assert place.run("ref", "restore", name, f"{SIDE}@{{now}}").split()[-1] == ids[1]
    assert "does not go back" in place.run("ref", "restore", name, f"{SIDE}@{{99}}", code=1)
    assert "did not exist then" in place.run(
        "ref", "restore", name, f"{SIDE}@{{1.year.ago}}", code=1
    )
    assert "not understood" in place.run("ref", "restore", name, f"{SIDE}@{{soon}}", code=1)
    told = place.run("ref", "restore", name, "refs/heads/none@{1}", code=1)
    assert "does not go back" in told
    assert (
        place.run("ref", "log", name, SIDE)
        .splitlines()[0]
        .endswith(f"restore {SIDE}@{{@{moment}}}")
    )


def test_what_no_ref_reaches_any_more_is_restored_while_the_store_has_it(
    place: Place, source: Path, name: str, tmp_path: Path
) -> None:
    clone = tmp_path / "c"
    git(tmp_path, "clone", "-q", str(source), "c")
    git(clone, "checkout", "-q", "-b", "lost")
    (clone / "lost").write_text(name + str(place.target))
    git(clone, "add", "lost")
    git(clone, "commit", "-qm", "lost")
    lost = git(clone, "rev-parse", "HEAD")
    git(clone, "checkout", "-q", "main")
    data = ("--data", str(place.folder / "data"))
    done = shardgit("repo", "import", name, str(clone), "--overwrite", *data, cwd=tmp_path)
    assert done.returncode == 0, done
    place.run("ref", "update", name, "refs/heads/lost", "--delete", lost)
    told = place.run("ref", "update", name, "refs/heads/again", lost, code=1)
    assert "not in the repository" in told
    place.run("ref", "restore", name, "refs/heads/lost@{1}")
    assert place.run("ref", "get", name, "refs/heads/lost").strip() == lost
    # Another repository of the pool never had it: its log cannot be made to tell of it.
    place.run("ref", "update", "demo", "refs/heads/stolen", lost, code=1)
    place.run("ref", "restore", "demo", "refs/heads/lost@{1}", code=1)


def test_short_names_are_told_how_to_be_written(tmp_path: Path) -> None:
    shardgit("init", "data", cwd=tmp_path)
    for words in (
        ("ref", "log", "demo", "main"),
        ("ref", "get", "demo", "main"),
        ("ref", "update", "demo", "main", "main~1"),
        ("ref", "restore", "demo", "main@{1}"),
    ):
        done = shardgit(*words, cwd=tmp_path)
        assert done.returncode == 2
        assert "write refs/heads/NAME" in done.stderr


def test_a_server_that_is_not_there_takes_one_short_line(tmp_path: Path) -> None:
    done = shardgit("repo", "list", "--server", "127.0.0.1:1", cwd=tmp_path)
    told = "shardgit: no server answers there (server=127.0.0.1:1, cause=Connection refused)\n"
    assert (done.returncode, done.stderr) == (1, told)
