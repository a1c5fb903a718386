"""shardgit shard: what operators see and do, on a folder and through a server."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING, Any

import pytest
from served import serving, shardgit, small_repository

from shardgit.cli.context import UsageRefused
from shardgit.cli.operations import speed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
