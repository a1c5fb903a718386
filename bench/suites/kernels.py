"""The kernels by themselves: pytest-benchmark runs bench/kernels, its JSON becomes rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from result import Cost, Row, Side

if TYPE_CHECKING:
    from bed import Bed

GENERATED = True
FOLDER = Path(__file__).parent.parent / "kernels"
HOW = (
    "CPU time by pytest-benchmark: medians of a session's calls, then of the sessions, one a round; all sides in one"
    " process, on one thread."
)


def rows(bed: Bed) -> list[Row]:
    """Run a session a round."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(bed.rounds):
        for each in session(bed):
            side = each["name"].removeprefix("test_").replace("_", " ")
            groups[each["group"]][side].append(each)
    out = []
    for group, sides in groups.items():
        made = {name: side_of(name, some) for name, some in sides.items()}
        ours = made.pop("shardgit")
        amount = sides["shardgit"][0]["extra_info"]
        path = f"{group}, {amount['amount']:,} {amount['unit']}"
        out.append(Row("kernels", path, ours, tuple(made.values()), how=HOW))
    return out


def session(bed: Bed) -> list[dict[str, Any]]:
    """Run all benchmarks once."""
    report = bed.fresh("kernels") / "report.json"
    least = "1" if bed.smoke else "3"
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(FOLDER),
        "-q",
        "-o",
        "addopts=",
        "-c",
        os.devnull,
    ]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider", "-p", "no:randomly"]
    command += ["-o", f"pythonpath={FOLDER}", f"--rootdir={FOLDER}"]
    command += ["--benchmark-timer=time.process_time", f"--benchmark-json={report}"]
    command += [f"--benchmark-min-rounds={least}", f"--benchmark-max-time={bed.size(3, 1) / 10}"]
    commits = str(bed.size(2_000, 60))
    environment = {"BENCH_KERNEL_DATA": str(bed.kept), "BENCH_KERNEL_COMMITS": commits}
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{done.stderr}")
    found: list[dict[str, Any]] = json.loads(report.read_text())["benchmarks"]
    return found


def side_of(name: str, sessions: list[dict[str, Any]]) -> Side:
    """Return one side: what a call took."""
    info = sessions[0]["extra_info"]
    costs = [Cost(each["stats"]["median"], each["stats"]["median"]) for each in sessions]
    size = info["amount"] if info["unit"] == "bytes" else 0
    return Side.of(
        name.replace("zlib inflate alone", "zlib (inflates only)"), costs, size_bytes=size
    )
