"""Compare shardgit with its peers: suites on data sets, each into a JSON file, all into RESULTS.md.

    python bench/run.py [SUITE ...] [--repo PATH ...] [--rounds 5] [--smoke] [--work bench/out] [--keep FOLDER]

Suites are the modules of bench/suites; without names all run. Those about a repository run on each --repo, without one
on generated ones (seeded); the others make what they need. Results go to WORK/results, and `render.py` makes tables and
plots of them there; --keep also copies them to where the published ones are.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).parent))

import generate
import render
from bed import Bed
from result import Result, place_of

if TYPE_CHECKING:
    from types import ModuleType

HERE = Path(__file__).parent
GENERATED = "generated"
COMMITS, SMOKE_COMMITS = 20_000, 300


def suites(names: list[str]) -> dict[str, ModuleType]:
    """Return suites by name, in the order of a run; all without names."""
    there = sorted(path.stem for path in (HERE / "suites").glob("[a-z]*.py"))
    if unknown := set(names) - set(there):
        raise SystemExit(f"no such suite: {', '.join(unknown)}; there are {', '.join(there)}")
    wanted = sorted(names or there, key=place_of)
    return {name: importlib.import_module(f"suites.{name}") for name in wanted}


def prepare(source: Path, work: Path) -> Path:
    """Copy heads and tags of a repository into one pack with bitmap and commit-graph, as a careful host keeps it.

    What was copied before is taken again while the source's refs are the same.
    """
    target, stamp = work / "bench.git", work / "bench.stamp"

    def ask(*words: str) -> str:
        git = ["git", "-C", str(source), *words]
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout

    state = f"{source.resolve()}\n{ask('symbolic-ref', 'HEAD')}{ask('show-ref')}"
    if stamp.exists() and stamp.read_text() == state:
        return target
    stamp.unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(target), *words], check=True)

    subprocess.run(["git", "init", "--quiet", "--bare", str(target)], check=True)
    refs = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
    git("fetch", "--quiet", "--no-tags", f"file://{source.resolve()}", *refs)
    if head := ask("symbolic-ref", "HEAD").strip():
        git("symbolic-ref", "HEAD", head)
    git("config", "uploadpack.allowFilter", "true")
    # The source's deltas are kept: only packed together, with what makes http-backend fast.
    git("repack", "-adbq")
    git("commit-graph", "write", "--reachable", "--no-progress")
    stamp.write_text(state)
    return target


def machine() -> str:
    """Return what the machine is."""
    rows = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((row for row in rows if row.startswith("model name")), "")
    git = subprocess.run(["git", "version"], capture_output=True, text=True, check=True)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 30)
    return (
        f"{os.cpu_count()} cores ({model.partition(': ')[2]}), {memory} GiB, {platform.system()},"
        f" {git.stdout.strip()}, Python {platform.python_version()}"
    )


def revision() -> str:
    """Return the commit of this tree, with a + where files differ from it; BENCH_REVISION says it elsewhere."""
    if said := os.environ.get("BENCH_REVISION"):
        return said
    words = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def datasets(repositories: list[Path], kept: Path, commits: int) -> dict[str, Path]:
    """Return the repositories to measure on, by name: those given, or the generated ones."""
    if repositories:
        return {path.resolve().name.removesuffix(".git"): path for path in repositories}
    found = {"deep": generate.deep(kept / f"deep-{commits}.git", commits=commits)}
    if commits == COMMITS:  # the whole set
        found["wide"] = generate.wide(kept / "wide.git")
        found["blobs"] = generate.blobs(kept / "blobs.git")
    return found


def measure(bed: Bed, name: str, suite: ModuleType, out: Path, what: dict[str, str]) -> bool:
    """Run one suite and write its file; say whether it ran to its end."""
    begun = time.monotonic()
    print(f"{bed.dataset} {name} ...", file=sys.stderr, flush=True)
    try:
        rows = suite.rows(bed)
    except (Exception, SystemExit):  # the other suites of a long run are not lost for one
        traceback.print_exc()
        return False
    about = "" if bed.dataset == GENERATED else bed.about
    limits = dict(bed.known_limits)
    words = {"about": about, "limits": limits, **what}
    result = Result(bed.dataset, name, rounds=bed.rounds, rows=tuple(rows), **words)
    result.write(out)
    gc.collect()
    print(f"{bed.dataset} {name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return True


def main() -> None:
    """Run what was asked for, and render all results that are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", nargs="*")
    parser.add_argument("--repo", type=Path, action="append", default=[])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--work", type=Path, default=HERE / "out")
    parser.add_argument("--keep", type=Path, help="folder that the results are copied to as well")
    parser.add_argument("--smoke", action="store_true", help="small and once: does it run at all?")
    parser.add_argument("--commits", type=int, help="of the generated history; others are not made")
    parser.add_argument("--data", type=Path, help="folder of generated data; WORK/data")
    parser.add_argument("--no-render", action="store_true")
    words = parser.parse_args()
    work = words.work.resolve()
    kept = (words.data or work / "data").resolve()
    out = work / ("smoke" if words.smoke else "results")
    rounds = words.rounds or (1 if words.smoke else 5)
    wanted = suites(words.suite)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    what = {"revision": revision(), "date": today, "machine": machine()}
    commits = SMOKE_COMMITS if words.smoke else words.commits or COMMITS
    found = datasets(words.repo, kept, commits)
    limits: dict[str, float] = {}  # of the machine: one measurement for all data sets of a run
    made: list[Path] = []
    failed: list[str] = []

    def one(bed: Bed, name: str, suite: ModuleType) -> None:
        if measure(bed, name, suite, out, what):
            made.append(out / f"{bed.dataset}.{name}.json")
        else:
            failed.append(f"{bed.dataset} {name}")

    for number, (dataset, source) in enumerate(found.items()):
        repository = prepare(source, work / dataset)
        bed = Bed(work, dataset, repository, rounds, words.smoke, limits, kept)
        for name, suite in wanted.items():
            if not getattr(suite, "GENERATED", False):
                one(bed, name, suite)
            elif number == 0:  # its data does not depend on the repository
                own = Bed(work, GENERATED, repository, rounds, words.smoke, limits, kept)
                one(own, name, suite)
                own.clean()
        bed.clean()
        limits.pop("inflate", None)  # of this repository's pack
        limits.pop("inflate by zlib", None)
    if words.keep:
        words.keep.mkdir(parents=True, exist_ok=True)
        for path in made:
            shutil.copy(path, words.keep)
        out = words.keep
    if not words.no_render:
        print(render.write(out))
    if failed:
        raise SystemExit(f"did not run to the end: {', '.join(failed)}")


if __name__ == "__main__":
    main()
