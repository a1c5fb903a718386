"""A clone of a repository that came by many small pushes, against one of the same history freshly packed."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from compact import Steps, git, maintain, prepared, push
from result import Cost, Goal, Row, Side

from shardgit.node import create_store, open_store
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.service.importing import import_repository
from shardgit.service.look import Look

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bed import Bed

    from shardgit.service.store import Store

QUICK = 1_000  # pushes; BENCH_PUSHES=10000 for all that the goal names, which takes an hour
LOOK = 50  # pushes between two rounds of maintenance
HOW = (
    "The last {count:,} commits of HEAD's first parents, pushed one by one, with the settles and compactions that a"
    " server does meanwhile, into an import of what was before them, as `git repack -adf` packs it. Then the pack of a"
    " full clone, made in this process and thrown away, against that of a store that imported the same history"
    " as `git repack -adf` packs it."
)


def rows(bed: Bed) -> list[Row]:
    """Push, maintain, and make clones from both stores in turn."""
    count = int(os.environ.get("BENCH_PUSHES") or bed.size(QUICK, 20))
    line = git(bed.repository, "rev-list", "--first-parent", "--count", "HEAD")
    count = min(count, int(line) - 1)
    steps = prepared(bed.repository, bed.kept / f"pushes-{bed.dataset}-{count}", count, count)
    folder = bed.fresh("settled")
    with ExitStack() as held:
        pushed = held.enter_context(new(folder / "pushed"))
        fill(pushed, steps)
        fresh = held.enter_context(new(folder / "fresh"))
        import_repository(fresh, "demo", str(steps.fresh(count)))
        sides = {"shardgit": partial(clone, pushed), "freshly packed": partial(clone, fresh)}
        for one in sides.values():
            one()
        found = bed.alternate(sides)
    mine, other = (
        Side.of(name, [cost for cost, _ in some], size_bytes=some[0][1])
        for name, some in found.items()
    )
    goals = (Goal("size", at_most=1.1), Goal("cpu", at_most=1.1))
    path = f"clone after {count:,} pushes"
    return [Row("settled", path, mine, (other,), goals=goals, how=HOW.format(count=count))]


@contextmanager
def new(folder: Path) -> Iterator[Store]:
    """Make a store, open for as long as the block is entered."""
    create_store(folder)
    with open_store(folder) as store:
        yield store


def fill(store: Store, steps: Steps) -> None:
    """Import what was before, push the rest, and maintain as a server does."""
    import_repository(
        store, "demo", str(steps.fresh(0))
    )  # old histories may hold what fsck refuses a push
    for number in range(1, len(steps.tips)):
        push(store, steps, number)
        if number % LOOK == 0:
            maintain(store)
    maintain(store)


def clone(store: Store) -> tuple[Cost, int]:
    """Make the pack of a full clone; returns what it cost and its bytes."""
    look = Look(store, "demo")
    assert look.view is not None
    cpu, begun = time.process_time(), time.monotonic()
    made = Transfer(look.view, look.reachable, options=TransferOptions(sideband=True))
    size = sum(map(len, made.chunks()))
    return Cost(time.monotonic() - begun, time.process_time() - cpu), size
