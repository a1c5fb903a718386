"""The parts that the simulation of a large cluster is made of."""

from __future__ import annotations

import importlib
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
    yield importlib.import_module
    for name in [name for name in sys.modules if name.partition(".")[0] == "scale"]:
        del sys.modules[name]


@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.1])
def test_sums_of_many_ranks_are_those_of_all(bench: Any, alpha: float) -> None:
    exact = sum(n**-alpha for n in range(1, 200_001))
    assert bench("scale.given").harmonic(200_000, alpha) == pytest.approx(exact, rel=1e-6)


def test_a_lognormal_has_its_mean_and_its_parts(bench: Any) -> None:
    given = bench("scale.given")
    values = given.lognormal(100.0, 2.0)
    assert sum(values) / len(values) == pytest.approx(100.0)
    small = sum(value < 50 for value in values) / len(values)
    assert given.below(50.0, 100.0, 2.0) == pytest.approx(small, abs=0.02)


def test_pushes_share_puts_when_they_come_faster_than_puts_end(bench: Any) -> None:
    group = bench("scale.pushes").group
    assert group(1.0, 10.0, 2.0, 1).pushes_a_put < 1.1
    assert 15 < group(1_000.0, 20.0, 2.0, 1).pushes_a_put < 30  # 20 come in 20 ms


@pytest.mark.parametrize("foreign", [False, True])
def test_a_tier_never_holds_more_than_it_may(bench: Any, foreign: bool) -> None:
    dice = random.Random(1)
    tier = bench("scale.caches").Tier(80, dice, foreign=foreign)
    for _ in range(5_000):
        tier.read(int(dice.expovariate(0.01)))
        assert sum(map(len, tier.members.values())) <= 80
        assert len(tier.where) <= 80


def test_text_is_wrapped_and_tables_are_not(bench: Any) -> None:
    flow = bench("scale.pages").flow
    row = "| " + "x" * 150 + " |"
    text = flow(f"# A head\n\n{'word ' * 40}\nmore\n- {'item ' * 30}\n{row}\n")
    assert max(len(line) for line in text.split("\n") if line != row) <= 120
    assert row in text.split("\n")
