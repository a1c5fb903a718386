"""Importing a repository, against what indexes its pack elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from bed import SHARDGIT, Bed, pack_of
from measure import run
from peers import indexers
from result import Goal, Row, Side

if TYPE_CHECKING:
    from pathlib import Path

    from result import Cost

HOW = "A process each, from start to end. An import is durable and readable when it returns, the others write an .idx."


def rows(bed: Bed) -> list[Row]:
    """Import with and without an .idx, peers index the same pack."""
    pack = pack_of(bed.repository)
    bare = without_index(bed)
    found = indexers(pack, bed.fresh("indexed"))

    def ours(source: Path) -> Cost:
        store = bed.fresh("imported") / "store"
        subprocess.run([*SHARDGIT, "init", str(store)], check=True, stdout=subprocess.DEVNULL)
        return run([*SHARDGIT, "repo", "import", "bench", str(source), "--data", str(store)])

    sides = {"with": lambda: ours(bed.repository), "without": lambda: ours(bare)}
    costs = bed.alternate({**sides, **found.present}, slow=found.slow)
    peers = tuple(Side.of(name, costs[name]) for name in found.present)
    rival = "git index-pack"
    goals = (Goal("cpu", at_most=0.25, peer=rival), Goal("wall", at_most=0.25, peer=rival))
    out = []
    for path, name, more in (
        ("import", "with", " The .idx beside the pack spares us the pass that finds the entries."),
        ("import without .idx", "without", " The pack has no .idx beside it."),
    ):
        mine = Side.of("shardgit", costs[name])
        out.append(
            Row(
                "imports",
                path,
                mine,
                peers,
                absent=found.absent,
                goals=goals,
                limit="inflate + sha1 lanes",
                limit_share=least_cpu_s(bed) / mine.cpu_s,
                how=HOW + more + found.note,
            )
        )
    shutil.rmtree(bed.fresh("imported"))
    return out


def without_index(bed: Bed) -> Path:
    """Return the repository with nothing beside its pack that says where entries are."""
    bare = bed.fresh("no-index") / "no-index.git"
    shutil.copytree(bed.repository, bare, copy_function=os.link)
    for each in (bare / "objects" / "pack").iterdir():
        if each.suffix != ".pack":
            each.unlink()
    return bare


def least_cpu_s(bed: Bed) -> float:
    """Return what must be spent on any machine like this: each entry inflated once, each object hashed once."""
    inflated = bed.inflated_bytes / bed.limit("inflate")
    return inflated + bed.object_bytes / bed.limit("sha1 lanes")


if __name__ == "__main__":
    sys.exit("python bench/run.py imports")
