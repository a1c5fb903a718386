"""Importing a repository, against what indexes its pack elsewhere."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from bed import SHARDGIT, new_store, pack_of
from measure import run
from peers import indexers
from result import Goal, Row, Side

if TYPE_CHECKING:
    from pathlib import Path

    from bed import Bed
    from result import Cost

HOW = "A process each, from start to end. An import is durable and readable when it returns, the others write an .idx."


def rows(bed: Bed) -> list[Row]:
    """Import with and without an .idx, peers index the same pack."""
    pack = pack_of(bed.repository)
    bare = without_index(bed)
    found = indexers(pack, bed.fresh("indexed"))

    def ours(source: Path, detect: str = "never") -> Cost:
        store = new_store(bed.fresh("imported") / "store")
        words = ["repo", "import", "bench", str(source), "--data", str(store)]
        environment = {**os.environ, "SHARDGIT_DETECT_COLLISIONS": detect}
        return run([*SHARDGIT, *words], env=environment)

    sides = {"with": lambda: ours(bed.repository), "without": lambda: ours(bare)}
    sides["detecting"] = lambda: ours(bed.repository, "always")
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
    mine = Side.of("shardgit", costs["detecting"])
    off = Side.of("shardgit, not detecting", costs["with"])
    out.append(
        Row(
            "imports",
            "import, SHA-1 collision attacks looked for",
            mine,
            (off, *(peer for peer in peers if peer.name == rival)),
            goals=(
                Goal("cpu", at_most=1.4, peer=off.name),
                Goal("wall", at_most=1.4, peer=off.name),
            ),
            how="SHARDGIT_DETECT_COLLISIONS=always; git looks for them always.",
        )
    )
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
