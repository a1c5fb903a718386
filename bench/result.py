"""What a bench finds: sides that did the same work, rows that compare them, and the JSON files that keep rows.

A suite gives rows; `run.py` writes one JSON file for each data set and suite, `render.py` makes the tables of them. So
a suite can be measured anew by itself, and the table says at which revision each was.
"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

FORMAT = 1
# Of suites, in a run and in RESULTS.md; one that is not named here comes last.
ORDER = (
    *("limits", "imports", "receive", "storage", "clones", "storms", "fetches", "pushes"),
    *(
        "refs",
        "many_refs",
        "objects",
        "forks",
        "settled",
        "growth",
        "scaling",
        "cluster",
        "kernels",
    ),
)
SHARES = (0.5, 0.95, 0.99)
LEAST_IS_BEST = ("cpu", "wall", "p50", "p95", "p99", "memory", "size")
MOST_IS_BEST = ("rate", "throughput")


@dataclass(frozen=True, slots=True)
class Cost:
    """What something cost. ``memory_bytes`` is the peak of anonymous and shared memory, mapped files left out."""

    wall_s: float
    cpu_s: float
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Side:
    """What one of those compared did: medians over the rounds, of ``count`` operations in all.

    ``cpu_s`` is user + system time of the server (its children included) or of the process. ``memory_bytes`` is the
    peak of anonymous and shared pages beyond what was there before. ``size_bytes``: sent or stored by all operations,
    0 where it says nothing. ``latencies_s``: of all rounds; a file keeps their quantiles (``quantiles_s``) alone.
    """

    name: str
    wall_s: float
    cpu_s: float
    memory_bytes: int = 0
    size_bytes: int = 0
    count: int = 1
    latencies_s: tuple[float, ...] = ()
    quantiles_s: tuple[float, ...] = ()
    rounds: tuple[Cost, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        rounds: Sequence[Cost],
        *,
        size_bytes: int = 0,
        count: int = 1,
        latencies_s: Iterable[float] = (),
    ) -> Side:
        """Return the medians of some rounds, with the rounds; each did ``count`` operations."""
        return cls(
            name,
            statistics.median(one.wall_s for one in rounds),
            statistics.median(one.cpu_s for one in rounds),
            int(statistics.median(one.memory_bytes for one in rounds)),
            size_bytes,
            count,
            tuple(latencies_s),
            rounds=tuple(rounds),
        )

    def quantiles(self) -> tuple[float, ...]:
        """Return p50, p95 and p99 of the latencies in seconds, or nothing."""
        if self.quantiles_s or not self.latencies_s:
            return self.quantiles_s
        ordered = sorted(self.latencies_s)
        last = len(ordered) - 1
        return tuple(ordered[min(last, int(share * len(ordered)))] for share in SHARES)

    def value(self, what: str) -> float:
        """Return one measure of one operation: seconds, bytes, operations a second or bytes a second."""
        if what in ("p50", "p95", "p99"):
            found = self.quantiles()
            return found[("p50", "p95", "p99").index(what)] if found else 0.0
        if what == "rate":
            return self.count / self.wall_s if self.wall_s else 0.0
        if what == "throughput":
            return self.size_bytes / self.wall_s if self.wall_s else 0.0
        if what == "memory":
            return float(self.memory_bytes)
        whole = {"cpu": self.cpu_s, "wall": self.wall_s, "size": float(self.size_bytes)}[what]
        return whole / self.count

    def spread(self, what: str) -> float:
        """Return half the distance of the middle half of the rounds, as a share of the median; 0 if unknown."""
        values = sorted(getattr(one, f"{what}_s") for one in self.rounds)
        if len(values) < 3 or not (middle := statistics.median(values)):
            return 0.0
        low, _, high = statistics.quantiles(values, n=4)
        return float((high - low) / 2 / middle)


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted of a measure: of ours divided by the best peer's, or by one named; or ours by itself.

    ``what``: "cpu", "wall", "p50", "p95", "p99", "rate", "throughput" (bytes a second), "memory" or "size".
    With ``absolute`` the bounds are seconds, bytes, operations or bytes a second of one operation of ours.
    """

    what: str
    at_most: float | None = None
    at_least: float | None = None
    peer: str = ""
    absolute: bool = False

    def met(self, value: float) -> bool:
        """Say whether a ratio (or a measure, if it is absolute) is within the bounds."""
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True, slots=True)
class Plot:
    """Where a row stands in a plot: rows of one plot make a line for each side (and ``line``, if there are more)."""

    name: str
    x: float
    x_label: str
    y: str = "wall"
    line: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One path: what we and peers needed for the same work, in turn in the same run.

    ``absent`` names peers that cannot do it. ``limit`` names one of the run's measured limits, ``limit_share`` is the
    part of it that ours reaches. ``how`` says in a sentence how it was measured.
    """

    suite: str
    path: str
    ours: Side
    peers: tuple[Side, ...] = ()
    absent: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()
    limit: str = ""
    limit_share: float = 0.0
    how: str = ""
    plot: Plot | None = None

    def ratio(self, what: str, peer: str = "") -> float | None:
        """Return ours / the best peer's (or a named one's); None where either has no such figure."""
        ours = self.ours.value(what)
        others = [one.value(what) for one in self.peers if peer in ("", one.name)]
        others = [value for value in others if value > 0]
        if not others or ours <= 0:
            return None
        return ours / (max(others) if what in MOST_IS_BEST else min(others))

    def reached(self, goal: Goal) -> float | None:
        """Return the figure that a goal is about."""
        return self.ours.value(goal.what) if goal.absolute else self.ratio(goal.what, goal.peer)


@dataclass(frozen=True, slots=True)
class Result:
    """The rows of one suite on one data set, with what has to be known of the run."""

    dataset: str
    suite: str
    revision: str
    date: str
    machine: str
    rounds: int
    rows: tuple[Row, ...]
    about: str = ""  # the data set in a line: objects, bytes
    limits: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write the file of this data set and suite, all or nothing; latencies as quantiles."""
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{self.dataset}.{self.suite}.json"
        rows = tuple(map(_kept, self.rows))
        words = _short({"format": FORMAT, **asdict(replace(self, rows=rows))})
        lines = ",\n".join(json.dumps(row) for row in words.pop("rows", []))  # a row a line
        waiting = target.with_suffix(".part")
        waiting.write_text(json.dumps(words)[:-1] + f', "rows": [\n{lines}\n]}}\n')
        waiting.replace(target)
        return target


def read(path: Path) -> Result:
    """Read what ``Result.write`` wrote."""
    words = json.loads(path.read_text())
    if words.pop("format", None) != FORMAT:
        raise SystemExit(f"{path}: written by another version of the bench")
    rows = tuple(_row(row) for row in words.pop("rows"))
    return Result(rows=rows, **words)


def read_all(folder: Path) -> list[Result]:
    """Read all results of a folder, in the order of their names."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def place_of(suite: str) -> tuple[int, str]:
    """Return what suites are sorted by."""
    return (ORDER.index(suite) if suite in ORDER else len(ORDER), suite)


def _kept(row: Row) -> Row:
    def side(one: Side) -> Side:
        return replace(one, latencies_s=(), quantiles_s=one.quantiles())

    return replace(row, ours=side(row.ours), peers=tuple(map(side, row.peers)))


def _short(value: Any) -> Any:
    """Round floats to six digits: what is beyond them is noise, and files stay small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        if value.keys() == {"wall_s", "cpu_s", "memory_bytes"}:
            return _short(list(value.values()))
        empty = (None, "", (), [], {})
        return {key: _short(each) for key, each in value.items() if each not in empty}
    if isinstance(value, (list, tuple)):
        return [_short(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _side(words: dict[str, Any]) -> Side:
    rounds = tuple(Cost(*one) for one in words.pop("rounds", ()))
    quantiles = tuple(words.pop("quantiles_s", ()))
    return Side(rounds=rounds, quantiles_s=quantiles, **words)


def _row(words: dict[str, Any]) -> Row:
    ours = _side(words.pop("ours"))
    peers = tuple(map(_side, words.pop("peers", ())))
    goals = tuple(Goal(**goal) for goal in words.pop("goals", ()))
    plot = Plot(**words.pop("plot")) if "plot" in words else None
    absent = tuple(words.pop("absent", ()))
    return Row(ours=ours, peers=peers, goals=goals, absent=absent, plot=plot, **words)
