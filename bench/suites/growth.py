"""What ten times the data costs: histories that share nothing, so that ten of them are ten times one."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import generate
from bed import SHARDGIT, Bed, new_store, pack_of
from measure import run
from result import Cost, Goal, Plot, Row, Side
from servers import clone_body, http_backend, shardgit, tips

from suites.clones import clone

if TYPE_CHECKING:
    from pathlib import Path

GENERATED = True
TIMES, SMOKE_TIMES = (1, 3, 10), (1, 2)
GIT = "git index-pack"


def rows(bed: Bed) -> list[Row]:
    """Import and clone once, three and ten times the data."""
    commits = bed.size(4_000, 60)
    sources = {
        times: _prepared(bed.kept / f"several{times}-{commits}.git", times, commits)
        for times in (SMOKE_TIMES if bed.smoke else TIMES)
    }
    empty = generate.several(bed.kept / "several-none.git", histories=1, commits=1, files=1)
    return [*imports(bed, sources, empty), *clones(bed, sources)]


def _prepared(folder: Path, times: int, commits: int) -> Path:
    generate.several(folder, histories=times, commits=commits)
    git = ["git", "-C", str(folder)]
    if not list(folder.glob("objects/pack/*.bitmap")):
        subprocess.run([*git, "repack", "-adbq"], check=True)
        subprocess.run([*git, "commit-graph", "write", "--reachable", "--no-progress"], check=True)
    return folder


def objects_of(repository: Path) -> int:
    """Return how many objects a packed repository has."""
    words = ["git", "-C", str(repository), "count-objects", "-v"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(dict(line.split(": ") for line in done.stdout.splitlines())["in-pack"])


def imports(bed: Bed, sources: dict[int, Path], empty: Path) -> list[Row]:
    """Import each, git index-pack beside; then ten times against once."""

    def ours(source: Path) -> Cost:
        store = new_store(bed.fresh("growing") / "store")
        return run([*SHARDGIT, "repo", "import", "bench", str(source), "--data", str(store)])

    def theirs(source: Path) -> Cost:
        target = bed.fresh("growing-index") / "pack.idx"
        return run(["git", "index-pack", "-o", str(target), str(pack_of(source))])

    sides = {f"ours {times}": partial(ours, source) for times, source in sources.items()}
    sides |= {f"git {times}": partial(theirs, source) for times, source in sources.items()}
    found = bed.alternate({**sides, "start": partial(ours, empty)})
    start = Side.of("start", found["start"])
    out, nets = [], {}
    for times, source in sources.items():
        mine = Side.of("shardgit", found[f"ours {times}"])
        other = Side.of(GIT, found[f"git {times}"])
        count = objects_of(source)
        plot = Plot("import-by-size", count, "objects", "cpu")
        path = f"import of {count:,} objects"
        how = "Histories that share nothing, one, three and ten of them, in one pack."
        out.append(Row("growth", path, mine, (other,), how=how, plot=plot))
        nets[times] = Side(
            f"shardgit, {times}x",
            mine.wall_s - start.wall_s,
            mine.cpu_s - start.cpu_s,
            mine.memory_bytes,
        )
    how = (
        f"The import of an empty repository ({start.cpu_s:.2f} s CPU, {start.wall_s:.2f} s: Python starts, modules"
        " load) is taken off the times of both, not off memory."
    )
    least, most = min(sources), max(sources)
    goals = (
        Goal("wall", at_most=1.05 * most),
        Goal("cpu", at_most=1.05 * most),
        Goal("memory", at_most=2.0),
    )
    ten = replace(nets[most], name="shardgit")
    path = f"import of {most}x the data"
    out.append(Row("growth", path, ten, (nets[least],), goals=goals, how=how))
    first, last = (Side.of(f"{GIT}, {times}x", found[f"git {times}"]) for times in (least, most))
    how = "git's side stands where ours does elsewhere."
    out.append(Row("growth", f"the same by {GIT}", last, (first,), how=how))
    return out


def clones(bed: Bed, sources: dict[int, Path]) -> list[Row]:
    """Clone each in full."""
    out = []
    for times, source in list(sources.items())[-bed.size(len(sources), 1) :]:
        store = new_store(bed.fresh("growing") / "store", {"bench": source})
        with shardgit(store) as ours, http_backend(source, bed.fresh("lighttpd")) as theirs:
            body = clone_body(tips(theirs.url))
            for server in (ours, theirs):
                clone(server, body)
            found = bed.alternate(
                {server.name: partial(clone, server, body) for server in (ours, theirs)}
            )
        mine, other = (
            Side.of(name, [cost for cost, _ in some], size_bytes=some[0][1])
            for name, some in found.items()
        )
        count = objects_of(sources[times])
        plot = Plot("clone-by-size", count, "objects", "cpu")
        how = "Full clones, discarded, after one to warm up."
        path = f"clone of {count:,} objects"
        out.append(Row("growth", path, mine, (other,), how=how, plot=plot))
    return out
