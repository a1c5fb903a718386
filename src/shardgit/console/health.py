"""How the server is, of what its workers told last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from shardgit import clock

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from shardgit.report import Report

REPORT_LATE_S = 30.0  # a worker that tells nothing of itself for so long does not serve


class Served(Protocol):
    """The supervisor, as the admin port sees it: ``serving`` are the numbers of the workers that serve now."""

    @property
    def serving(self) -> Collection[int]:
        """The numbers of the workers that serve."""
        ...

    @property
    def count(self) -> int:
        """How many workers there are to be."""
        ...

    @property
    def draining(self) -> bool:
        """Whether the server stops."""
        ...

    @property
    def started(self) -> bool:
        """Whether some worker has served."""
        ...

    @property
    def restarts(self) -> int:
        """How many workers died and were started again."""
        ...

    def metrics(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        ...

    def reports(self) -> list[Report]:
        """Return what the workers that serve told of themselves last."""
        ...


class Trouble(msgspec.Struct, frozen=True):
    """Something that is not as it should be, and how many workers say so."""

    what: str
    words: str
    workers: int


class Health(msgspec.Struct, frozen=True):
    """``state`` is starting, well, warning, problem (some workers do not serve), down (none does) or draining."""

    state: str
    serving: int
    workers: int
    restarts: int
    problems: list[Trouble]
    warnings: list[Trouble]


def health_of(served: Served, reports: Sequence[Report]) -> Health:
    """Return how a server is."""
    well = set(served.serving)
    problems: dict[tuple[str, str], int] = {}
    warnings: dict[tuple[str, str], int] = {}
    for report in reports:
        found = problems_of(report)
        if found:
            well.discard(report.number)
        for sums, told in ((problems, found), (warnings, report.warnings)):
            for words in told.items():
                sums[words] = sums.get(words, 0) + 1
    return Health(
        state=_state(served, well, troubled=bool(problems), warned=bool(warnings)),
        serving=len(served.serving),
        workers=served.count,
        restarts=served.restarts,
        problems=_troubles(problems),
        warnings=_troubles(warnings),
    )


def readiness(served: Served, reports: Sequence[Report]) -> tuple[bool, str]:
    """Return whether a server is ready, and in words, a line each, how it is."""
    if served.draining:
        return False, "draining\n"
    lines = [f"{len(served.serving)} of {served.count} workers serve"]
    well = set(served.serving)
    for report in reports:
        problems = problems_of(report)
        if problems:
            well.discard(report.number)
        lines += [f"problem: {what}: {words}" for what, words in sorted(problems.items())]
        lines += [f"warning: {what}: {words}" for what, words in sorted(report.warnings.items())]
    return bool(well), "\n".join(dict.fromkeys(lines)) + "\n"


def problems_of(report: Report) -> dict[str, str]:
    """Return a worker's problems; that it has told nothing for long is one."""
    late_s = (clock.now_ms() - report.time_ms) / 1_000
    late = {"event loop": f"nothing was heard for {late_s:.0f} s"}
    return {**report.problems, **(late if late_s > REPORT_LATE_S else {})}


def _state(served: Served, well: set[int], *, troubled: bool, warned: bool) -> str:
    if served.draining:
        return "draining"
    if not well:
        return "down" if served.started else "starting"
    if troubled or len(served.serving) < served.count:
        return "problem"
    return "warning" if warned else "well"


def _troubles(sums: dict[tuple[str, str], int]) -> list[Trouble]:
    return [Trouble(what, words, count) for (what, words), count in sorted(sums.items())]
