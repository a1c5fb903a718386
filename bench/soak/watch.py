"""What a server's processes hold, looked at again and again: memory of their own, files, threads, CPU."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

EVERY_S = 1.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sample:
    """All processes of a server together, at one moment of the run."""

    at_s: float
    processes: int
    memory_mib: float  # RssAnon + RssShmem
    files: int
    threads: int
    cpu_s: float


def family(process: int) -> list[int]:
    """Return a process and all below it."""
    found, ahead = [], [process]
    while ahead:
        one = ahead.pop()
        found.append(one)
        for tasks in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                ahead += map(int, tasks.read_text().split())
            except OSError:
                continue
    return found


def sample(process: int, at_s: float) -> Sample:
    """Look at a server once; what ends meanwhile counts for nothing."""
    memory = files = threads = count = 0
    cpu = 0.0
    for one in family(process):
        place = Path(f"/proc/{one}")
        try:
            rows = dict(
                line.split(":", 1)
                for line in (place / "status").read_text().splitlines()
                if ":" in line
            )
            ticks = (place / "stat").read_text().rpartition(")")[2].split()[11:15]
            files += sum(1 for _ in (place / "fd").iterdir())
        except OSError:
            continue
        if "RssAnon" not in rows:  # it has ended and is not reaped
            continue
        memory += sum(int(rows[key].split()[0]) for key in ("RssAnon", "RssShmem"))
        threads += int(rows["Threads"])
        cpu += sum(map(int, ticks)) / TICKS
        count += 1
    return Sample(at_s, count, memory / 1_024, files, threads, cpu)


class Watch:
    """Looks at a server in a thread while the block lasts."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._begun = time.monotonic()

    def __enter__(self) -> Watch:
        self._begun = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.samples.append(sample(self.process, time.monotonic() - self._begun))


def slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of the line that fits points best."""
    if len(points) < 2:
        return 0.0
    x0, y0 = mean(x for x, _ in points), mean(y for _, y in points)
    below = sum((x - x0) ** 2 for x, _ in points)
    return sum((x - x0) * (y - y0) for x, y in points) / below if below else 0.0


def growth(samples: list[Sample], key: str) -> dict[str, float]:
    """Return how much more the last two thirds end with than they began, by the line that fits them best.

    Moments with more processes than usual, as when workers are being replaced, are left out.
    """
    if not samples:
        return {"mean": 0.0, "grown": 0.0, "most": 0.0}
    last = samples[-1].at_s
    counts = sorted(one.processes for one in samples)
    usual = counts[len(counts) // 2]
    late = [one for one in samples if one.at_s >= last / 3 and one.processes <= usual]
    points = [(one.at_s, float(getattr(one, key))) for one in late]
    return {
        "mean": mean(y for _, y in points) if points else 0.0,
        "grown": slope(points) * (points[-1][0] - points[0][0]) if points else 0.0,
        "most": max(float(getattr(one, key)) for one in samples),
    }


def rows(samples: list[Sample]) -> list[dict[str, float]]:
    """Return samples as JSON takes them."""
    return [{key: round(value, 3) for key, value in asdict(one).items()} for one in samples]
