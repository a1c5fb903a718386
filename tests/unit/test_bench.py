"""The bench's own parts: what is written is read, rendering repeats itself, what is chance is not called a change."""

from __future__ import annotations

import importlib
import itertools
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

BENCH = Path(__file__).parent.parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return what imports a module of the bench, which is no package."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and Path(origin).is_relative_to(BENCH):
            del sys.modules[name]


def result_of(kinds: Any) -> Any:
    costs = [kinds.Cost(1.0, 2.0, 30), kinds.Cost(1.5, 2.5, 40), kinds.Cost(2.0, 3.0, 50)]
    ours = kinds.Side.of("shardgit", costs, size_bytes=10, count=2, latencies_s=[0.3, 0.1, 0.2])
    peers = (kinds.Side("git", 6.0, 20.0, 100), kinds.Side("dulwich", 9.0, 10.0))
    row = kinds.Row(
        "imports",
        "import",
        ours,
        peers,
        absent=("JGit",),
        goals=(kinds.Goal("cpu", at_most=0.25), kinds.Goal("rate", at_least=9.0, peer="git")),
        limit="inflate",
        limit_share=0.5,
        how="So.",
        plot=kinds.Plot("import-by-size", 10.0, "objects"),
    )
    return kinds.Result("deep", "imports", "abc", "2026-01-01", "here", 3, (row,))


def test_a_result_is_read_as_it_was_written(bench: Any, tmp_path: Path) -> None:
    kinds = bench("result")
    written = result_of(kinds)
    read = kinds.read(written.write(tmp_path))
    assert read.rows[0].ours.rounds == written.rows[0].ours.rounds
    assert read.rows[0].ours.quantiles() == written.rows[0].ours.quantiles() == (0.2, 0.3, 0.3)
    assert read.rows[0].ours.latencies_s == ()  # a file keeps quantiles only
    assert read.rows[0].goals == written.rows[0].goals
    assert read.rows[0].plot == written.rows[0].plot
    assert [path.name for path in tmp_path.iterdir()] == ["deep.imports.json"]


def test_ratios_are_of_one_operation_against_the_best_peer(bench: Any) -> None:
    row = result_of(bench("result")).rows[0]
    assert row.ratio("cpu") == pytest.approx(1.25 / 10.0)
    assert row.ratio("cpu", "git") == pytest.approx(1.25 / 20.0)
    assert row.ratio("rate") == pytest.approx((2 / 1.5) / (1 / 6.0))
    assert row.ratio("memory") == pytest.approx(0.4)  # dulwich's is unknown
    assert row.ratio("size") is None
    assert [goal.met(row.reached(goal)) for goal in row.goals] == [True, False]


def test_rendering_twice_gives_the_same_bytes(bench: Any, tmp_path: Path) -> None:
    result_of(bench("result")).write(tmp_path / "results")
    render = bench("render")
    first = render.write(tmp_path / "results").read_bytes()
    plots = [path.read_bytes() for path in sorted(tmp_path.glob("plots/*"))]
    assert render.write(tmp_path / "results").read_bytes() == first
    assert [path.read_bytes() for path in sorted(tmp_path.glob("plots/*"))] == plots
    text = first.decode()
    assert "| import | deep | CPU <= 0.25 | 0.125, met |" in text
    assert "rate >= 9 of git: 8, **missed**" in text
    assert "| JGit | N/A |" in text


def test_a_missed_goal_is_explained_by_its_profile(bench: Any) -> None:
    kinds, render = bench("result"), bench("render")
    said = render.profiles("# Words\n\n## import\n\nThe disk.\n\nTwice.\n\n## other\n\nNo.\n")
    assert said == {"import": "The disk.\n\nTwice.", "other": "No."}
    # CPU is an eighth of the best peer's, as wanted; the rate is 8 times git's where 9 were wanted.
    result = result_of(kinds)
    told = "\n".join(render.short([result], said))
    assert told.count("**import**") == 1
    assert "deep: rate >= 9 of git: 8, missed" in told
    assert "CPU" not in told
    assert "The disk." in told
    assert "No." not in told
    assert "Not profiled yet" in "\n".join(render.short([result], {}))


def test_chance_is_what_counting_all_orders_gives(bench: Any) -> None:
    chance = bench("compare").chance
    some = random.Random(1)

    def below(mine: list[int], others: list[int]) -> int:
        return sum(a < b for a in mine for b in others)

    for _ in range(30):
        n, m = some.randint(2, 5), some.randint(2, 5)
        values = some.sample(range(100), n + m)
        at = below(values[:n], values[n:])
        far = min(at, n * m - at)
        orders = [
            below(list(each), [value for value in values if value not in each])
            for each in itertools.combinations(values, n)
        ]
        counted = sum(u <= far or u >= n * m - far for u in orders) / len(orders)
        assert chance(values[:n], values[n:]) == pytest.approx(min(1.0, counted))


def test_generated_repositories_are_the_same_each_time(bench: Any, tmp_path: Path) -> None:
    generate = bench("generate")
    made = []
    for name in ("one", "two"):
        generate.deep(tmp_path / name / "deep", commits=30, files=10)
        generate.wide(tmp_path / name / "wide", files=300, commits=3)
        generate.blobs(tmp_path / name / "blobs", count=2, mib=1, versions=2)
        packs = sorted((tmp_path / name).glob("*/objects/pack/*.pack"))
        made.append([path.read_bytes() for path in packs])
    assert len(made[0]) == 3
    assert made[0] == made[1]
