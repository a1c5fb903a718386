"""What a server's processes hold, looked at again and again: memory of their own, files, threads, CPU."""

from __future__ import annotations

import math
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

    @property
    def now_s(self) -> float:
        """Seconds since it began to look."""
        return time.monotonic() - self._begun

    def _look(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.samples.append(sample(self.process, self.now_s))


def growth(samples: list[Sample], key: str, rests: list[tuple[float, float]]) -> dict[str, float]:
    """Return how much more of it a server holds in the last of its rests than in the first, spans of seconds.

    At rest: connections that clients keep open, and what is under way, are theirs. Moments with more processes than
    usual, as when workers are being replaced, are left out. Infinitely more where nothing was seen of one of the two.
    """
    if not samples:
        return {"mean": 0.0, "at_rest": 0.0, "grown": math.inf, "most": 0.0}
    counts = sorted(one.processes for one in samples)
    usual = counts[len(counts) // 2]
    held = [
        [
            float(getattr(one, key))
            for one in samples
            if begun <= one.at_s < ended and one.processes <= usual
        ]
        for begun, ended in rests
    ]
    means = [mean(values) if values else math.nan for values in (held[0], held[-1])]
    grown = means[1] - means[0]
    return {
        "mean": mean(float(getattr(one, key)) for one in samples),
        "at_rest": means[0],
        "grown": math.inf if math.isnan(grown) else grown,
        "most": max(float(getattr(one, key)) for one in samples),
    }


def rows(samples: list[Sample]) -> list[dict[str, float]]:
    """Return samples as JSON takes them."""
    return [{key: round(value, 3) for key, value in asdict(one).items()} for one in samples]
