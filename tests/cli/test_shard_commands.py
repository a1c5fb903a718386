"""shardgit shard: what operators see and do, on a folder and through a server."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import unittest.mock
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from served import clean_environment, git, serving, shardgit, small_repository
from waiting import until

from shardgit.cli.context import UsageRefused
from shardgit.cli.operations import speed

if TYPE_CHECKING:
    from collections.abc import Iterator

SVG = "{http://www.w3.org/2000/svg}"


class Place:
    """A store in ./data with a repository in three shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.source = small_repository(folder / "source", commits=12)
        self.ok("init", "data", "--shards", "3")
        self.ok("repo", "import", "demo", "source")

    def run(self, *words: str) -> Any:
        return shardgit(*words, cwd=self.folder)

    def ok(self, *words: str) -> str:
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, ""), words
        return str(done.stdout)

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "--json"))

    def fails(self, *words: str, code: int = 1) -> str:
        done = self.run(*words)
        assert done.returncode == code, (words, done)
        assert done.stdout == ""
        assert done.stderr.startswith("shardgit: ")
        assert done.stderr.count("\n") == 1
        return str(done.stderr)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module", params=["data", "server"])
def target(place: Place, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    if request.param == "data":
        yield ["--data", str(place.data)]
        return
    with serving(place.data, "--workers", "1") as server:
        yield ["--server", server.grpc]


def test_a_plan_tells_what_would_move_and_changes_nothing(place: Place, target: list[str]) -> None:
    before = place.json("shard", "list", *target)
    calm = place.json("shard", "plan", *target)
    assert (calm["moved_bytes"], calm["epoch"]) == (0, 1)
    assert sum(one["bytes_before"] for one in calm["shards"]) == calm["bytes"] > 0
    plan = place.json("shard", "plan", "--drain", "1", "--add", "2", *target)
    assert [one["weight"] for one in plan["shards"]] == [1, 0, 1, 2]
    assert plan["shards"][1]["partitions_after"] == plan["shards"][1]["bytes_after"] == 0
    assert sum(one["partitions_after"] for one in plan["shards"]) == 65_536
    assert sum(one["bytes_after"] for one in plan["shards"]) == plan["bytes"] == calm["bytes"]
    assert sum(flow["bytes"] for flow in plan["flows"]) == plan["moved_bytes"]
    assert plan["moved_share"] == pytest.approx(plan["moved_bytes"] / plan["bytes"])
    assert [one["share_wanted"] for one in plan["shards"]] == pytest.approx([0.25, 0, 0.25, 0.5])
    assert "would move" in place.ok("shard", "plan", "--weight", "0=3", *target)
    assert place.json("shard", "list", *target) == before


def test_a_plan_is_drawn_as_it_is(place: Place, target: list[str]) -> None:
    drawing = place.folder / "plan.svg"
    words = ("shard", "plan", "--drain", "0", "--add", "1", "--svg", str(drawing))
    plan = place.json(*words, *target)
    root = ElementTree.parse(drawing).getroot()
    assert root.tag == f"{SVG}svg"
    paths = list(root.iter(f"{SVG}path"))

    def drawn(kind: str, *keys: str) -> list[tuple[int, ...]]:
        return [
            tuple(int(path.get(f"data-{key}", "")) for key in keys)
            for path in paths
            if path.get("class") == kind
        ]

    for kind in ("before", "after"):
        assert drawn(kind, "shard", "bytes") == [
            (one["id"], one[f"bytes_{kind}"]) for one in plan["shards"]
        ]
    assert drawn("move", "source", "target", "bytes") == [
        (flow["source"], flow["target"], flow["bytes"]) for flow in plan["flows"] if flow["bytes"]
    ]
    assert all("nan" not in (path.get("d") or "") for path in paths)


def test_a_plan_that_makes_no_ring_is_refused(place: Place, target: list[str]) -> None:
    assert "no such shard" in place.fails("shard", "plan", "--drain", "9", *target)
    assert "out of range" in place.fails("shard", "plan", "--add", "-1", *target)
    drained = ["--drain", "0", "--drain", "1", "--drain", "2"]
    assert "fewer shards" in place.fails("shard", "plan", *drained, *target)
    assert "changed twice" in place.fails(
        "shard", "plan", "--drain", "0", "--weight", "0=1", *target, code=2
    )
    assert "ID=WEIGHT" in place.fails("shard", "plan", "--weight", "x", *target, code=2)
    assert "not a rate" in place.fails("shard", "plan", "--throttle", "fast", *target, code=2)


def test_rates_are_read_as_people_write_them() -> None:
    for text, rate in (
        ("50MiB/s", 50 << 20),
        ("50m", 50 << 20),
        ("1.5 GB/s", 3 << 29),
        ("4096", 4_096),
        ("10kB", 10_240),
    ):
        assert speed(text).rate_bytes_s == rate
    assert speed(None).rate_bytes_s is None
    for text in ("", "0", "-1M", "1X", "M", "1e9", "9" * 40):
        with pytest.raises(UsageRefused):
            speed(text)


class Full(Place):
    """A store whose repository takes some twenty blocks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.source = small_repository(folder / "source")
        chance = random.Random(5)
        for number in range(20):
            (self.source / f"{number}.bin").write_bytes(chance.randbytes(700_000))
        git(self.source, "add", ".")
        git(self.source, "commit", "--quiet", "-m", "large files")
        self.ok("init", "data", "--shards", "2")
        self.ok("repo", "import", "demo", "source")


@pytest.mark.parametrize("served", [pytest.param(False, marks=pytest.mark.heavy), True])
def test_a_disk_joins_and_another_leaves_while_git_clones_and_pushes(
    tmp_path: Path, served: bool
) -> None:
    place = Full(tmp_path)
    receipt = str(tmp_path / "receipt.json")
    with serving(place.data, "--workers", "2") as server:
        target = ["--server", server.grpc] if served else ["--data", str(place.data)]
        url = f"http://{server.http}/demo.git"

        def push_and_clone(name: str) -> None:
            clone = tmp_path / name
            git(tmp_path, "clone", "--quiet", url, str(clone))
            git(clone, "fsck", "--strict")
            (clone / name).write_bytes(random.Random(name).randbytes(900_000))
            git(clone, "add", ".")
            git(clone, "commit", "--quiet", "-m", name)
            git(clone, "push", "--quiet", "origin", "HEAD:main")

        push_and_clone("before")
        added = place.json("shard", "add", "--path", str(tmp_path / "disk"), *target)
        assert (added["id"], added["path"]) == (2, str(tmp_path / "disk"))
        plan = place.json("shard", "plan", *target)
        assert 0 < plan["moved_share"] <= 1 / 3 + 0.1  # some twenty blocks: each is 5%
        keep = ["--keep", "2", "--throttle", "40MiB/s"]
        words = ["shard", "rebalance", *keep, "--receipt", receipt, "--json", *target]
        with running(tmp_path, *words) as mover:
            push_and_clone("during")
            out, err = mover.communicate(timeout=120)
        assert (mover.returncode, err) == (0, "")
        done = json.loads(out)
        assert done["state"] == "done"
        assert done == json.loads((tmp_path / "receipt.json").read_text())
        assert place.json("shard", "rebalance", "--status", *target) == {
            "rebalance": unittest.mock.ANY,
            "running": False,
        }
        checked = place.json("shard", "receipt", receipt, *target)
        assert (checked["ok"], checked["problems"]) == (True, 0)
        assert "partitions are as they were moved" in place.ok("shard", "receipt", receipt, *target)
        assert "no rebalance is under way" in place.fails("shard", "rebalance", "--abort", *target)
        assert "drain it" in place.fails("shard", "remove", "0", *target)
        place.ok("shard", "drain", "0", *target)
        states = [one["state"] for one in place.json("shard", "list", *target)["shards"]]
        assert states == ["draining", "active", "active"]
        assert "moved" in place.ok("shard", "rebalance", "--keep", "0", *target)
        states = [one["state"] for one in place.json("shard", "list", *target)["shards"]]
        assert states == ["drained", "active", "active"]
        place.ok("shard", "remove", "0", *target)
        push_and_clone("after")
        compacted = place.json("shard", "compact", "--all", "--force", *target)
        assert [one["copied"] for one in compacted["shards"]] == [True, True]
        push_and_clone("compacted")
        assert place.ok("shard", "weight", "2", "1.5", *target)
        assert "no such shard" in place.fails("shard", "weight", "0", "2", *target)
        git(tmp_path, "clone", "--quiet", url, str(tmp_path / "last"))
        git(tmp_path / "last", "fsck", "--strict")
        assert (tmp_path / "last" / "during").exists()
        until(lambda: not mapped(place.data / "shards" / "000"))
    assert list((place.data / "shards" / "000").iterdir()) == []


@contextmanager
def running(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shardgit", *words],
        cwd=folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def mapped(folder: Path) -> bool:
    """Say whether any process of ours still holds a file of a folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(folder) in (process / "maps").read_text():
                return True
    return False


def test_commands_of_moves_refuse_words_that_make_no_sense(place: Place) -> None:
    data = ["--data", str(place.data)]
    assert "not both" in place.fails("shard", "rebalance", "--abort", "--status", *data, code=2)
    assert "--all" in place.fails("shard", "compact", *data, code=2)
    assert "above 0" in place.fails("shard", "add", "--weight", "0", *data, code=2)
    assert "no rebalance has come to its end" in place.fails(
        "shard", "rebalance", "--status", "--receipt", "r.json", *data
    )
    (place.folder / "other.json").write_text("{}")
    assert "no receipt" in place.fails("shard", "receipt", "other.json", *data)
    assert "no rebalance yet" in place.ok("shard", "rebalance", "--status", *data)
