"""What each worker tells the supervisor of itself every few seconds: a file of JSON beside its metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

PATTERN = "report-*.json"


class Hot(msgspec.Struct, frozen=True):
    """A repository and what is asked of it: requests and seconds of work in the last half minute or so."""

    repository: str
    requests: float
    work_s: float


class Slow(msgspec.Struct, frozen=True):
    """A slow request that has ended, and what its time went into."""

    time_ms: int
    edge: str
    method: str
    what: str
    code: str
    seconds: float
    spent: dict[str, float]


class Report(msgspec.Struct, frozen=True):
    """A worker: ``problems`` keep it from serving, ``warnings`` do not; both in words by what they are about."""

    number: int
    pid: int
    time_ms: int
    problems: dict[str, str] = {}
    warnings: dict[str, str] = {}
    hot: list[Hot] = []
    slow: list[Slow] = []


def write_report(folder: Path, report: Report) -> None:
    """Leave a worker's report, in place of its last one. Errors: OSError."""
    target = folder / f"report-{report.number}.json"
    fresh = folder / f"report-{report.number}.new"
    fresh.write_bytes(msgspec.json.encode(report))
    fresh.replace(target)


def read_reports(folder: Path) -> list[Report]:
    """Return the newest report of each worker; what does not parse is passed over."""
    found = []
    for path in sorted(folder.glob(PATTERN)):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Report))
        except (OSError, msgspec.MsgspecError):
            continue
    return found


def hottest(reports: list[Report], most: int) -> list[Hot]:
    """Return the repositories that had most work, of all workers together."""
    sums: dict[str, tuple[float, float]] = {}
    for report in reports:
        for one in report.hot:
            requests, work = sums.get(one.repository, (0.0, 0.0))
            sums[one.repository] = (requests + one.requests, work + one.work_s)
    rows = [Hot(name, requests, work) for name, (requests, work) in sums.items()]
    return sorted(rows, key=lambda one: (-one.work_s, -one.requests, one.repository))[:most]
