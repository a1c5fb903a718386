"""What ``make fault`` runs: kills, a server under load, and the simulation; counts at the end."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter

TESTS = Path(__file__).resolve().parents[1]


WHATS = ("worker", "worker", "worker", "supervisor", "all", "fault", "fault", "stop")


def kills(words: argparse.Namespace, folder: Path) -> None:
    """Kill processes that work on a store, under a disk whose syncs can be stalled."""
    from fault.stall import Stall, build, run_under

    if not Stall.is_here():
        again = [f"--kills={words.kills}", f"--seed={words.seed}"]
        again += ["--points", *words.points] if words.points else []
        if run_under(build(folder), [__file__, "--only=kills", *again]):
            raise AssertionError("see above")
        return
    from fault.kills import kill_many

    begun = time.monotonic()
    arena = kill_many(folder / "kills", kills=words.kills, seed=words.seed, named=words.points)
    for name, count in sorted(arena.named.items()):
        print(f"{count:6} at {name}")
    print(
        f"{arena.kills} kills ({arena.random_kills} at random moments), {arena.survived} lived, {arena.judged} checks, "
        f"{arena.acknowledged} changes acknowledged, {arena.unknown} cut off, {arena.stores} stores, "
        f"{arena.leak_checks} stores after one gc without a leak ({arena.swept} blocks deleted); killed in trouble: "
        f"{_told(arena.troubles)}, {arena.stalled} of them in a sync; damaged copies: {_told(arena.damages)}; "
        f"{time.monotonic() - begun:.0f} s, seed {words.seed}",
        flush=True,
    )


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()) if what)


def server(words: argparse.Namespace, folder: Path) -> None:
    """Kill a server's processes under load."""
    from fault.server import Load

    begun = time.monotonic()
    load = Load(folder / "server", words.seed)
    load.run([load.dice.choice(WHATS) for _ in range(words.server_kills)])
    pushes = sum(one.pushes for one in load.branches)
    refused = sum(one.refused for one in load.branches)
    print(
        f"server: {', '.join(f'{count} {what}' for what, count in load.kills.items())}; {pushes} pushes, {refused} of "
        f"them cut off, {load.fsck} clones that git fsck passed; {time.monotonic() - begun:.0f} s, seed {words.seed}",
        flush=True,
    )


def simulation(words: argparse.Namespace, folder: Path) -> None:
    """Run seeds of the simulation."""
    del folder
    program = Path(__file__).parent / "sim" / "run.py"
    first = words.seed % 1_000_000 * 10_000 if words.fresh else 0
    seeds = f"--seeds={first}:{first + words.seeds}"
    subprocess.run([sys.executable, str(program), seeds, f"--jobs={words.jobs}"], check=True)


def variants(words: argparse.Namespace, folder: Path) -> None:
    """Look whether the simulation finds out every store that is wrong on purpose."""
    del words, folder
    from fault.sim.variants import VARIANTS

    program = Path(__file__).parent / "sim" / "run.py"
    for name in filter(None, VARIANTS):
        done = subprocess.run(
            [sys.executable, str(program), "--seeds=0:2000", "--failures=1", f"--variant={name}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, f"{name} was not found out: {done.stdout}{done.stderr}"
        seeds = done.stdout.rstrip().rpartition("\n")[2].partition(" ")[0]
        print(f"{name}: found out after {seeds} seeds", flush=True)


PARTS = {"variants": variants, "simulation": simulation, "kills": kills, "server": server}


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="some parts")
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--server-kills", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=10_000, help="of the simulation")
    parser.add_argument(
        "--fresh", action="store_true", help="seeds that follow from --seed, not the first ones"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--points", nargs="*", help="only these fault points")
    words = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    failed = []
    with tempfile.TemporaryDirectory(prefix="shardgit-fault-") as folder:
        for name in words.only or PARTS:
            try:
                PARTS[name](words, Path(folder))
            except (AssertionError, subprocess.CalledProcessError) as error:
                print(f"{name}: {error}", flush=True)
                failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "nothing was lost", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
