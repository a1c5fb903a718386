"""Receiving everything in one push, with and without fsck, against git index-pack --strict."""

from __future__ import annotations

import shutil
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

    def ours(*words: str) -> Cost:
        store = bed.fresh("received") / "store"
        return run([sys.executable, str(SCRIPT), str(store), str(bed.repository), *words])

    def theirs(*words: str) -> Cost:
        target = bed.fresh("indexed") / "pack.idx"
        return run(["git", "index-pack", *words, "-o", str(target), pack], cwd=bed.repository)

    costs = bed.alternate(
        {
            "strict": ours,
            "unchecked": lambda: ours("--no-fsck"),
            "git strict": lambda: theirs("--strict"),
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
    return [
        Row(
            "receive",
            "push of everything, with fsck",
            strict,
            (git_strict,),
            goals=(Goal("cpu", at_most=0.25),),
            limit=limit,
            limit_share=least / strict.cpu_s,
            how=HOW,
        ),
        Row(
            "receive",
            "push of everything, no fsck",
            unchecked,
            (git_unchecked,),
            limit=limit,
            limit_share=least / unchecked.cpu_s,
            how=HOW,
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
