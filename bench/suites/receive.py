"""Receiving everything in one push, with and without fsck, against git index-pack --strict."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from bed import Bed, pack_of
from measure import run
from result import Cost, Goal, Row, Side

from suites.imports import least_cpu_s

SCRIPT = Path(__file__).parent.parent / "receive.py"
HOW = (
    "A process each. Ours parses, resolves, computes ids, checks connectivity, writes durably and moves all refs;"
    " index-pack writes an .idx."
)


def rows(bed: Bed) -> list[Row]:
    """Receive with and without checks; git index-pack likewise."""
    pack = str(pack_of(bed.repository))
    passed = let_pass(bed)

    def ours(*words: str) -> Cost:
        store = bed.fresh("received") / "store"
        some = [*words, *(f"--ignore={name}" for name in passed)]
        return run([sys.executable, str(SCRIPT), str(store), str(bed.repository), *some])

    def theirs(*words: str) -> Cost:
        target = bed.fresh("indexed") / "pack.idx"
        return run(["git", "index-pack", *words, "-o", str(target), pack], cwd=bed.repository)

    costs = bed.alternate(
        {
            "strict": ours,
            "unchecked": lambda: ours("--no-fsck"),
            "git strict": lambda: theirs(strict_word(passed)),
            "git unchecked": theirs,
        }
    )
    shutil.rmtree(bed.fresh("received"))
    strict, unchecked = (Side.of("shardgit", costs[name]) for name in ("strict", "unchecked"))
    git_strict = Side.of("git index-pack --strict", costs["git strict"])
    git_unchecked = Side.of("git index-pack", costs["git unchecked"])
    without = Side.of("shardgit, no fsck", costs["unchecked"])
    limit = "inflate + sha1 lanes"
    least = least_cpu_s(bed)
    how = HOW + (f" {', '.join(passed)} let pass by both." if passed else "")
    return [
        Row(
            "receive",
            "push of everything, with fsck",
            strict,
            (git_strict,),
            goals=(Goal("cpu", at_most=0.25),),
            limit=limit,
            limit_share=least / strict.cpu_s,
            how=how,
        ),
        Row(
            "receive",
            "push of everything, no fsck",
            unchecked,
            (git_unchecked,),
            limit=limit,
            limit_share=least / unchecked.cpu_s,
            how=how,
        ),
        Row("receive", "what fsck adds: ours", strict, (without,), how="The two rows above."),
        Row(
            "receive",
            "what fsck adds: git index-pack",
            git_strict,
            (git_unchecked,),
            how="The same of git: its side stands where ours does elsewhere.",
        ),
    ]


def strict_word(passed: list[str]) -> str:
    """Return the option with which index-pack checks all but some kinds of fault."""
    return "=".join(["--strict", ",".join(f"{name}=ignore" for name in passed)]).rstrip("=")


def let_pass(bed: Bed) -> list[str]:
    """Return the kinds of fault that this history has: a host that takes it has to let them pass. git names them."""
    found: list[str] = []
    while True:
        words = ["git", "index-pack", strict_word(found), "-o", str(bed.fresh("tried") / "x.idx")]
        done = subprocess.run(
            [*words, str(pack_of(bed.repository))],
            cwd=bed.repository,
            capture_output=True,
            text=True,
            check=False,
        )
        if not done.returncode:
            return found
        fault = re.search(r"^error: .*[0-9a-f]{40,64}: (\w+): ", done.stderr, re.MULTILINE)
        if fault is None or fault[1] in found:
            raise SystemExit(done.stderr)
        found.append(fault[1])
