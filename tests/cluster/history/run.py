"""Randomized fault runs, each with a history that is checked; the history of a bad one is kept."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cluster.history.embedded import run
from cluster.history.recorder import save


def main() -> None:
    """Run so many, seed after seed; exit with 1 at the first that nothing explains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1, help="of the first run")
    parser.add_argument("--keep", type=Path, default=Path("build"), help="where bad histories go")
    words = parser.parse_args()
    operations = 0
    for seed in range(words.seed, words.seed + words.runs):
        with tempfile.TemporaryDirectory(prefix="shardgit-history-") as folder:
            ran = run(Path(folder) / "run", seed, seconds=words.seconds, clients=words.clients)
        operations += len(ran.recorder.history)
        print(f"seed {seed}: {ran}", flush=True)
        if not ran.verdict.good:
            words.keep.mkdir(parents=True, exist_ok=True)
            save(words.keep / f"history-{seed}.jsonl", ran.recorder.history)
            sys.exit("\n".join(str(one) for one in ran.verdict.violations) or "undecided")
    print(f"{words.runs} runs, {operations} operations: all histories are linearizable")


if __name__ == "__main__":
    main()
