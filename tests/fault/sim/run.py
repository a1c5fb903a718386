"""Run seeds of the simulation.

python tests/fault/sim/run.py --seeds 0:1000 --jobs 2      a range of seeds, with counts at the end
python tests/fault/sim/run.py --seed 17 --trace            one of them again, exactly, step by step
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
HASH_SEED = "0"  # the order of sets of bytes is part of what a seed replays


def run_seed(
    seed: int, *, trace: bool = False, variant: str = ""
) -> tuple[list[str], Counter[str], list[str]]:
    """Run one seed; returns what went wrong, counts, and the steps when they are wanted."""
    from fault.sim.client import Client
    from fault.sim.judge import judge
    from fault.sim.variants import varied
    from fault.sim.world import World

    world = World(seed, trace=trace)
    world.check = judge
    dice = world.dice
    for number in range(dice.choice((1, 2, 2, 3))):
        clients = [Client(world, dice.choice((3, 6))) for _ in range(dice.choice((1, 2, 3)))]
        if world.rewinds:
            clients.append(Client(world, 6, gc_only=True))
        if world.moves and number < 2:
            clients.append(Client(world, 4, moves_only=True))
        world.start(f"p{number}", [*clients])
    with varied(variant):
        world.run(Client(world, 0).create_first)
    counts = Counter(
        seeds=1,
        steps=world.scheduler.steps,
        attempts=len(world.attempts),
        acknowledged=sum(one.done for one in world.attempts),
        unknown=sum(one.unknown for one in world.attempts),
        reads=world.reads,
        crashes=world.crashes,
        checks=world.checks,
        backups_restored=world.restored,
        **world.counts,
        commits_lost=world.disk.lost,
        commits_unanswered=world.disk.unanswered,
    )
    return world.scheduler.failures, counts, world.scheduler.trace or []


def main() -> int:
    """Run what the command line asks for; 1 when a seed failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:100", help="FIRST:END")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--variant", default="", help="a store that is wrong on purpose")
    parser.add_argument("--trace", action="store_true", help="print every step")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--failures", type=int, default=3, help="stop after so many")
    words = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        os.execve(
            sys.executable,
            [sys.executable, *sys.argv],
            os.environ | {"PYTHONHASHSEED": HASH_SEED},
        )
    first, end = (int(word) for word in words.seeds.split(":"))
    if words.seed is not None:
        first, end = words.seed, words.seed + 1
    if words.jobs > 1:
        return _side_by_side(words, first, end)
    sys.path.insert(0, str(TESTS))
    return _run(words, first, end)


def _run(words: argparse.Namespace, first: int, end: int) -> int:
    begun, busy = time.monotonic(), time.process_time()
    total: Counter[str] = Counter()
    failed = 0
    gc.disable()  # when cycles are collected must not depend on the seeds before
    for seed in range(first, end):
        failures, counts, steps = run_seed(seed, trace=words.trace, variant=words.variant)
        total += counts
        if words.trace:
            print("\n".join(steps))
        if failures:
            failed += 1
            variant = f" --variant {words.variant}" if words.variant else ""
            print(
                f"seed {seed} failed; again: python tests/fault/sim/run.py --seed {seed}{variant}"
            )
            print("\n".join(failures[:3]), flush=True)
            if failed >= words.failures:
                break
        if seed % 50 == 0:
            gc.collect()
            if seed == first:
                gc.freeze()
    total["failed"] = failed
    seconds, cpu = time.monotonic() - begun, time.process_time() - busy
    shown = ", ".join(f"{count} {name}" for name, count in total.items())
    print(
        f"{shown}; {seconds:.1f} s, {cpu:.1f} s of CPU, {total['seeds'] / cpu:.0f} seeds/s",
        flush=True,
    )
    return 1 if failed else 0


def _side_by_side(words: argparse.Namespace, first: int, end: int) -> int:
    """Run the seeds in several processes."""
    cuts = [first + (end - first) * part // words.jobs for part in range(words.jobs + 1)]
    children = [
        subprocess.Popen(
            [sys.executable, __file__, f"--seeds={low}:{high}", f"--variant={words.variant}"]
        )
        for low, high in pairwise(cuts)
    ]
    return max(child.wait() for child in children)


if __name__ == "__main__":
    sys.exit(main())
