"""Measuring processes: CPU, wall, peak memory of our own."""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from result import Cost

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

TICKS = os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> int:
    """Return RssAnon + RssShmem of a process in bytes, 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return sum(int(rows.get(key, "0 kB").split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))


def cpu_of(pid: int) -> float:
    """Return CPU seconds of a process and of its children that have ended.

    Its own from its CPU clock, in nanoseconds; those of its children count in ticks of 10 ms each time they are read.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own = time.clock_gettime(
            (~pid << 3) | 2
        )  # CPUCLOCK_SCHED of another process, see clock_getcpuclockid(3)
    except OSError:
        return 0.0
    return own + sum(int(fields[at]) for at in (13, 14)) / TICKS


def children_of(pid: int) -> list[int]:
    """Return the processes below a process, itself first."""
    found = [pid]
    for at in found:
        try:
            for task in Path(f"/proc/{at}/task").glob("*/children"):
                found += [int(word) for word in task.read_text().split() if int(word) not in found]
        except OSError:  # it ended meanwhile
            continue
    return found


class Peak:
    """Samples the memory of a process tree every few milliseconds while it is entered."""

    def __init__(self, pid: int, *, every_s: float = 0.005) -> None:
        self.pid = pid
        self.every_s = every_s
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.wait(self.every_s):
            self.bytes = max(self.bytes, sum(memory_of(pid) for pid in children_of(self.pid)))

    def __enter__(self) -> Peak:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stop.set()
        self._thread.join()


def run(command: list[str], **words: object) -> Cost:
    """Run a command to its end and return what it cost."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **words)  # type: ignore[call-overload]
    with Peak(process.pid) as peak:
        code = process.wait()
    wall = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise SystemExit(f"{' '.join(command[:4])} ... failed with {code}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu, peak.bytes)


def wait_for_children(pid: int, before: list[int], most_s: float = 1.0) -> None:
    """Wait until those of a request have ended: a CGI child ends after its answer, and counts when it was reaped."""
    begun = time.monotonic()
    while not set(children_of(pid)) <= set(before) and time.monotonic() - begun < most_s:
        time.sleep(0.005)


def watched(pid: int, work: Callable[[], T], *, every_s: float = 0.005) -> tuple[Cost, T]:
    """Do something that a server works for; return what it cost the server and its children, and what came of it."""
    pids = children_of(pid)
    base, cpu = sum(map(memory_of, pids)), sum(map(cpu_of, pids))
    with Peak(pid, every_s=every_s) as peak:
        begun = time.monotonic()
        made = work()
        wall = time.monotonic() - begun
    wait_for_children(pid, pids)
    spent = sum(map(cpu_of, children_of(pid))) - cpu
    return Cost(wall, max(0.0, spent), max(0, peak.bytes - base)), made
