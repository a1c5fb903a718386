"""What the console says of traffic: rates and quantiles from the counters of real requests."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgit.console.traffic import KEPT_S, POINTS_MAX, History, Totals, quantile, read_totals

if TYPE_CHECKING:
    from pathlib import Path

INFINITY = float("inf")
# What a worker does, with its counters in files.
WORKER = """
import sys
from shardgit import telemetry
from shardgit.errors import RepositoryMissing, Unavailable
telemetry.configure(level="error")
for number in range(int(sys.argv[1])):
    with telemetry.Request("http", "/x", method="info_refs") as request:
        telemetry.spend("work", 0.25)
        if number == 0: request.failed(RepositoryMissing("gone"))
        if number == 1: request.failed(Unavailable("away"))
with telemetry.Request("grpc", "/w", method="WatchRefs"): pass
telemetry.Request("ssh", "x").__enter__()
"""


def worked(folder: Path, requests: int) -> None:
    subprocess.run(
        [sys.executable, "-c", WORKER, str(requests)],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        check=True,
    )


def test_workers_counters_become_rates_and_times(tmp_path: Path) -> None:
    history = History()
    assert history.now().point is None
    worked(tmp_path, 3)
    first = read_totals(tmp_path)
    worked(tmp_path, 10)
    last = read_totals(tmp_path)
    last.at_s = first.at_s + 10
    history.add(first)
    history.add(last)
    now = history.now()
    assert now.active == 2  # one of each process, under way for ever
    (point,) = history.points
    assert point == now.recent
    assert (point.requests, point.faults, point.refused) == (1.1, 0.1, 0.1)
    assert point.p99_s is not None
    assert (
        0 < point.p99_s <= 0.25
    )  # of seconds of a busy machine; which hundredth it is, others tell
    rows = {(row.edge, row.method): row.requests for row in now.methods}
    assert rows == {("http", "info_refs"): 1.0, ("grpc", "WatchRefs"): 0.1}
    assert now.spent == {"work": 0.25}


def test_calls_that_last_do_not_count_as_slow() -> None:
    before = Totals(0.0, 0)
    key = ("grpc", "WatchRefs")
    now = Totals(1.0, 1_000, {(*key, "OK"): 5.0}, {key: {600.0: 0.0, INFINITY: 5.0}})
    history = History()
    history.add(before)
    history.add(now)
    assert (history.points[0].requests, history.points[0].p99_s) == (5.0, None)


def test_the_history_is_bounded_by_age_and_count() -> None:
    history = History()
    for number in range(3 * POINTS_MAX):
        history.add(Totals(number * 1.0, number * 1_000))
    assert len(history.points) == POINTS_MAX
    history.add(Totals(1e6, 10**9))
    assert len(history.points) == 1
    assert history.points[0].time_ms == 10**9
    assert KEPT_S * 1_000 < 10**9


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=8).filter(lambda counts: sum(counts) > 0),
    st.floats(0.01, 1.0),
)
def test_a_quantile_lies_in_the_bucket_of_the_request_that_it_is(
    counts: list[int], share: float
) -> None:
    bounds = [2.0**n for n in range(len(counts) - 1)] + [INFINITY]
    steps = [(bound, float(sum(counts[: at + 1]))) for at, bound in enumerate(bounds)]
    found = quantile(steps, share)
    assert found is not None
    wanted = share * sum(counts)
    at = next(n for n, (_, under) in enumerate(steps) if under >= wanted and under)
    low = bounds[at - 1] if at else 0.0
    high = bounds[at] if bounds[at] != INFINITY else bounds[-2]
    assert low <= found <= max(high, low)


@pytest.mark.parametrize("steps", [[], [(1.0, 0.0), (INFINITY, 0.0)]])
def test_without_requests_there_is_no_quantile(steps: list[tuple[float, float]]) -> None:
    assert quantile(steps, 0.5) is None
