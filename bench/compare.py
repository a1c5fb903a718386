"""Compare two revisions of this project: build both, run suites in turn, say what changed beyond the noise.

    python bench/compare.py A B [SUITE ...] [--rounds 5] [--repo PATH] [--smoke] [--work bench/out/compare]

A and B are what git calls revisions; "." is the working tree as it stands. Each is built in a folder of its own, both
are measured by the bench of this tree, A and B in turn. Without suites the quick ones run (imports, fetches, clones and
kernels), without --repo on a generated history of 2,000 commits.

A change is outside the noise if the rounds of B and of A would hardly lie apart like that by chance (Mann-Whitney, 1 %:
of five rounds each, all of B's must be beyond all of A's; fewer than five show nothing), and the median of the rounds'
ratios is more than 2 % off and more than those of the peers, which cannot have changed, were in that suite. The exit
code is 0 whatever is found: a bench reports.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from result import Side, place_of, read_all

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
ROOT = HERE.parent
QUICK = ("imports", "clones", "fetches", "kernels")
MEASURES = ("cpu", "wall", "p50", "memory", "size")
LEAST = 0.02  # a smaller change is none
CONTROL = "peers"


@dataclass(frozen=True, slots=True)
class Tree:
    """A revision, built: what it is called, and where its package lies."""

    name: str
    library: Path
    out: Path  # where what it finds is written


@dataclass(frozen=True, slots=True)
class Change:
    """A measure of one path: what A and B took in each round."""

    path: str
    what: str
    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Return B / A of each round."""
        return [b / a for a, b in zip(self.before, self.after, strict=True)]

    @property
    def middle(self) -> float:
        """Return the median of the rounds' ratios."""
        return statistics.median(self.ratios)

    def outside(self, noise: float) -> bool:
        """Say whether the change is more than noise, of which the peers saw so much."""
        return abs(self.middle - 1) > max(LEAST, noise) and chance(self.before, self.after) <= 0.01


def chance(some: Sequence[float], others: Sequence[float]) -> float:
    """Return how likely two samples of the same lie as far apart as these: Mann-Whitney, two-sided, exact."""
    n, m = len(some), len(others)
    below = sum((a < b) + (a == b) / 2 for a in some for b in others)
    # ways[k][u]: choices of k of the values so far that have u pairs on one side
    ways: list[Counter[int]] = [Counter({0: 1})] + [Counter() for _ in range(n)]
    for value in range(n + m):
        for k in range(min(n, value + 1), 0, -1):
            for u, count in ways[k - 1].items():
                ways[k][u + value - (k - 1)] += count
    far = min(below, n * m - below)
    least = sum(count for u, count in ways[n].items() if u <= far)
    return min(1.0, 2 * least / math.comb(n + m, n))


# ---- building ----


def git(*words: str) -> str:
    """Run git in this tree; return what it prints."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip())
    return done.stdout


def build(revision: str, work: Path, out: Path) -> Tree:
    """Take a revision's files and build them, unless that was done before; the working tree always."""
    if revision == ".":
        name, folder = "worktree", work / "trees" / "worktree"
        _copy_files(folder)
    else:
        commit = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
        name, folder = commit[:10], work / "trees" / commit[:10]
        if (folder / "built").exists():
            return Tree(name, folder / "lib", out)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        words = ["git", "-C", str(ROOT), "archive", "--format=tar", commit]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as archive:
            subprocess.run(["tar", "-x", "-C", str(folder)], stdin=archive.stdout, check=True)
    print(f"building {name} ...", file=sys.stderr, flush=True)
    library = folder / "lib"
    words = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(library)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} does not build:\n{done.stdout}{done.stderr}")
    (folder / "built").touch()
    return Tree(name, library, out)


def _copy_files(folder: Path) -> None:
    """Copy what git would show as this tree; times are kept, so that only what changed is built."""
    words = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for each in git(*words, "--", "src", "proto", "*.py", "*.toml", "*.md", "LICENSE").split("\0"):
        if each and (ROOT / each).is_file():
            (folder / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / each, folder / each)


# ---- measuring ----


def once(tree: Tree, suite: str, work: Path, words: argparse.Namespace) -> bool:
    """Run one suite on one revision for one round; say whether it ran."""
    out = tree.out
    shutil.rmtree(out / "results", ignore_errors=True)
    shutil.rmtree(out / "smoke", ignore_errors=True)
    command = [sys.executable, str(HERE / "run.py"), suite, "--rounds", "1", "--work", str(out)]
    command += ["--data", str(work / "data"), "--no-render", "--commits", str(words.commits)]
    command += [word for path in words.repo for word in ("--repo", str(path))]
    command += ["--smoke"] if words.smoke else []
    more = {"PYTHONPATH": str(tree.library), "BENCH_REVISION": tree.name}
    log = out / f"{suite}.log"
    out.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(
            command, env={**os.environ, **more}, stdout=file, stderr=file, check=False
        )
    if done.returncode:
        last = log.read_text().strip().splitlines()[-1:]
        print(f"{suite} does not run at {tree.name}: {' '.join(last)} ({log})", file=sys.stderr)
    return done.returncode == 0


def sides(tree: Tree, *, smoke: bool) -> dict[tuple[str, str], Side]:
    """Return what a run found: our side of each path, and those of peers."""
    found = {}
    for result in read_all(tree.out / ("smoke" if smoke else "results")):
        for row in result.rows:
            path = f"{result.dataset}: {row.path}"
            if row.ours.name == "shardgit":
                found[path, ""] = row.ours
            for peer in row.peers:
                if not peer.name.startswith("shardgit"):
                    found[path, peer.name] = peer
    return found


def changes(pairs: list[tuple[Side, Side]], path: str) -> list[Change]:
    """Return how each measure of one side changed over the rounds."""
    out = []
    for what in MEASURES:
        values = [(a.value(what), b.value(what)) for a, b in pairs]
        if what == "wall" and all(a.wall_s == a.cpu_s for a, _ in pairs):
            continue  # only CPU time was measured
        # Less than a MiB of memory more than before is what happened to be kept.
        least = float(1 << 20) if what == "memory" else 0.0
        same = what == "size" and all(a == b for a, b in values)
        if not same and all(a > least and b > least for a, b in values):
            before, after = zip(*values, strict=True)
            out.append(Change(path, what, before, after))
    return out


def report(suite: str, found: dict[tuple[str, str], list[tuple[Side, Side]]]) -> list[str]:
    """Return the lines about one suite, those outside the noise marked."""
    ours = [
        each for (path, peer), some in found.items() if not peer for each in changes(some, path)
    ]
    peers = [each for (path, peer), some in found.items() if peer for each in changes(some, path)]
    noise = {
        what: statistics.median(abs(one.middle - 1) for one in peers if one.what == what)
        for what in {one.what for one in peers}
    }
    out = [f"{suite}"]
    for what in MEASURES:
        if what in noise:
            out.append(f"      {CONTROL}' {what} moved by {noise[what] * 100:.1f}% in the middle")
    for one in ours:
        low, high = min(one.ratios), max(one.ratios)
        mark = " "
        if one.outside(noise.get(one.what, 0.0)):
            mark = "+" if one.middle > 1 else "-"
        out.append(
            f"  {mark}   {one.middle:6.3f}  {low:6.3f} .. {high:6.3f}  {one.what:7} {one.path}"
        )
    return out


def main() -> None:
    """Build, run in turn, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", metavar="A")
    parser.add_argument("after", metavar="B")
    parser.add_argument("suite", nargs="*", default=list(QUICK))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commits", type=int, default=2_000)
    parser.add_argument("--repo", type=Path, action="append", default=[])
    parser.add_argument("--work", type=Path, default=HERE / "out" / "compare")
    parser.add_argument("--smoke", action="store_true")
    words = parser.parse_args()
    work = words.work.resolve()
    before, after = trees = [
        build(words.before, work, work / "A"),
        build(words.after, work, work / "B"),
    ]
    print(
        f"{after.name} / {before.name}: below 1 is less; + more and - less than before, outside the noise"
    )
    print("      middle  least .. most    measure path", flush=True)
    for suite in sorted(words.suite, key=place_of):
        found: dict[tuple[str, str], list[tuple[Side, Side]]] = defaultdict(list)
        for number in range(words.rounds):
            order = trees if number % 2 == 0 else trees[::-1]
            ran = [once(tree, suite, work, words) for tree in order]
            if not all(ran):
                break
            a, b = (sides(tree, smoke=words.smoke) for tree in trees)
            for key in a.keys() & b.keys():
                found[key].append((a[key], b[key]))
        if found:
            print("\n".join(report(suite, dict(sorted(found.items())))), flush=True)


if __name__ == "__main__":
    main()
