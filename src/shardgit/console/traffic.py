"""What the workers' counters say of the last minutes: rates, and times as quantiles, from two looks at them."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from prometheus_client import multiprocess

from shardgit import clock
from shardgit.telemetry import LONG

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

KEPT_S = 900.0  # of the history
POINTS_MAX = 450
WINDOW_S = 20.0  # over which the table of methods counts
FILES = ("counter_*.db", "histogram_*.db", "gauge_livesum_*.db")
# The server is at fault, or has no room; what else is no success is the asker's.
FAULTS = frozenset(("INTERNAL", "DATA_LOSS", "UNAVAILABLE", "RESOURCE_EXHAUSTED"))
GOOD = frozenset(("OK", "CANCELLED"))


@dataclass(slots=True)
class Totals:
    """The workers' counters at one moment, by edge and method; buckets hold what is up to their bound, summed up."""

    at_s: float
    time_ms: int
    requests: dict[tuple[str, str, str], float] = field(default_factory=dict)  # and code
    buckets: dict[tuple[str, str], dict[float, float]] = field(default_factory=dict)
    spent: dict[tuple[str, str], float] = field(default_factory=dict)  # edge, into
    active: float = 0.0


class Point(msgspec.Struct, frozen=True, array_like=True):
    """The traffic of some seconds: requests, faults and refusals a second, and times in s; None without requests."""

    time_ms: int
    requests: float
    faults: float
    refused: float
    p50_s: float | None
    p99_s: float | None


class MethodRow(msgspec.Struct, frozen=True):
    """The traffic of one method."""

    edge: str
    method: str
    requests: float
    faults: float
    refused: float
    p50_s: float | None
    p99_s: float | None


class Traffic(msgspec.Struct, frozen=True):
    """What goes on now: the newest point, the last WINDOW_S as one, requests under way, methods by traffic.

    ``spent`` are seconds a second by what requests' time went into.
    """

    point: Point | None
    recent: Point | None
    active: int
    methods: list[MethodRow]
    spent: dict[str, float]


def read_totals(folder: Path) -> Totals:
    """Return what the files of all workers add up to."""
    found = Totals(time.monotonic(), clock.now_ms())
    files = [str(path) for pattern in FILES for path in folder.glob(pattern)]
    merged = multiprocess.MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
    for metric in merged:
        for sample in metric.samples:
            labels = sample.labels
            match sample.name:
                case "shardgit_requests_total":
                    key = (labels["edge"], labels["method"], labels["code"])
                    found.requests[key] = sample.value
                case "shardgit_request_seconds_bucket":
                    place = (labels["edge"], labels["method"])
                    found.buckets.setdefault(place, {})[float(labels["le"])] = sample.value
                case "shardgit_request_spent_seconds_total":
                    found.spent[labels["edge"], labels["into"]] = sample.value
                case "shardgit_requests_active":
                    found.active += sample.value
    return found


class History:
    """Looks at the counters taken in turn, and what lies between them; bounded by age and count."""

    def __init__(self) -> None:
        self.points: deque[Point] = deque(maxlen=POINTS_MAX)
        self._looks: deque[Totals] = deque(maxlen=64)

    def add(self, now: Totals) -> None:
        """Take in a look."""
        if self._looks:
            self.points.append(_point(self._looks[-1], now))
        self._looks.append(now)
        while len(self._looks) > 2 and now.at_s - self._looks[1].at_s >= WINDOW_S:
            self._looks.popleft()
        while self.points and now.time_ms - self.points[0].time_ms > KEPT_S * 1_000:
            self.points.popleft()

    def now(self) -> Traffic:
        """Return what goes on."""
        if not self._looks:
            return Traffic(None, None, 0, [], {})
        first, last = self._looks[0], self._looks[-1]
        seconds = max(last.at_s - first.at_s, 1e-3)
        spent: defaultdict[str, float] = defaultdict(float)
        for key, value in last.spent.items():
            spent[key[1]] += (value - first.spent.get(key, 0.0)) / seconds
        return Traffic(
            point=self.points[-1] if self.points else None,
            recent=_point(first, last) if last is not first else None,
            active=round(last.active),
            methods=_methods(first, last, seconds),
            spent={into: round(part, 4) for into, part in sorted(spent.items())},
        )


def _point(before: Totals, now: Totals) -> Point:
    seconds = max(now.at_s - before.at_s, 1e-3)
    every, faults, refused = _counts(before, now, now.requests, seconds)
    asked = [place for place in now.buckets if place[1] not in LONG]
    steps = _steps(before, now, asked)
    return Point(now.time_ms, every, faults, refused, quantile(steps, 0.5), quantile(steps, 0.99))


def _methods(first: Totals, last: Totals, seconds: float) -> list[MethodRow]:
    places: defaultdict[tuple[str, str], list[tuple[str, str, str]]] = defaultdict(list)
    for key in last.requests:
        places[key[0], key[1]].append(key)
    rows = []
    for place, keys in places.items():
        every, faults, refused = _counts(first, last, keys, seconds)
        if not every:
            continue
        steps = _steps(first, last, [place] if place in last.buckets else [])
        edge, method = place
        p50_s, p99_s = quantile(steps, 0.5), quantile(steps, 0.99)
        rows.append(MethodRow(edge, method, every, faults, refused, p50_s, p99_s))
    return sorted(rows, key=lambda row: (-row.requests, row.edge, row.method))


def _counts(
    before: Totals, now: Totals, keys: Iterable[tuple[str, str, str]], seconds: float
) -> tuple[float, float, float]:
    """Return how many requests a second ended between two looks: all, by fault of the server, by that of who asked."""
    every = faults = refused = 0.0
    for key in keys:
        count = max(0.0, now.requests[key] - before.requests.get(key, 0.0)) / seconds
        every += count
        if key[2] in FAULTS:
            faults += count
        elif key[2] not in GOOD:
            refused += count
    return round(every, 3), round(faults, 3), round(refused, 3)


def _steps(
    before: Totals, now: Totals, places: Iterable[tuple[str, str]]
) -> list[tuple[float, float]]:
    """Return how many requests took up to each bound between two looks, by rising bound."""
    sums: defaultdict[float, float] = defaultdict(float)
    for place in places:
        known = before.buckets.get(place, {})
        for bound, count in now.buckets[place].items():
            sums[bound] += max(0.0, count - known.get(bound, 0.0))
    return sorted(sums.items())


def quantile(steps: Sequence[tuple[float, float]], share: float) -> float | None:
    """Return the time that a share of the requests stayed under, within its bucket by rule of three; None without any.

    ``steps`` are (bound, count up to it) by rising bound, infinity the last; what lies past the others counts as the
    largest of them.
    """
    if not steps or not steps[-1][1]:
        return None
    wanted = share * steps[-1][1]
    low, under = 0.0, 0.0
    for bound, count in steps:
        if count >= wanted and count > under:
            if bound == float("inf"):
                return low
            return round(low + (bound - low) * (wanted - under) / (count - under), 6)
        low, under = bound, count
    return low
