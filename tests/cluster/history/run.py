"""Randomized fault runs, each with a history that is checked; the history of a bad one is kept."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))

from cluster.history.embedded import Ran, run
from cluster.history.recorder import save

STORE: dict[str, Any] = {}  # where served runs keep their blocks; a folder of their own by default
WHATS = ("embedded", "nodes", "processes", "served")


def one(what: str, folder: Path, seed: int, seconds: float) -> Ran:
    """Run one of them."""
    if what == "embedded":
        return run(folder / "run", seed, seconds=seconds)
    if what == "served":
        from cluster.history.served_runs import run_served

        store = {**STORE, "url": f"{STORE['url']}/{seed}"} if STORE else {}
        return run_served(folder / "run", seed, seconds=seconds, **store)
    from cluster.history.etcd_runs import run_nodes, run_processes  # they want etcd

    return (run_nodes if what == "nodes" else run_processes)(folder, seed, seconds=seconds)


def main() -> None:
    """Run so many, seed after seed; exit with 1 at the first that nothing explains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=[*WHATS, "all"], default="embedded")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--seed", type=int, default=1, help="of the first run")
    parser.add_argument("--keep", type=Path, default=Path("build"), help="where bad histories go")
    parser.add_argument(
        "--s3", action="store_true", help="served: blocks in SeaweedFS, which fails too"
    )
    words = parser.parse_args()
    with ExitStack() as opened:
        if words.s3:
            into_s3(opened)
        every(words)


def into_s3(opened: ExitStack) -> None:
    """Let served runs keep their blocks in an S3 server."""
    from seaweed import seaweed

    folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="shardgit-s3-")))
    server = opened.enter_context(seaweed(folder / "s3"))
    os.environ.update(server.environment)
    STORE.update(url=server.fresh_url(), s3_port=int(server.endpoint.rpartition(":")[2]))


def every(words: argparse.Namespace) -> None:
    """Run all of them."""
    operations = 0
    for seed in range(words.seed, words.seed + words.runs):
        with tempfile.TemporaryDirectory(prefix="shardgit-history-") as folder:
            what = WHATS[seed % len(WHATS)] if words.what == "all" else words.what
            ran = one(what, Path(folder), seed, words.seconds)
        operations += len(ran.recorder.history)
        print(f"seed {seed}, {what}: {ran}", flush=True)
        if not ran.verdict.good:
            words.keep.mkdir(parents=True, exist_ok=True)
            save(words.keep / f"history-{seed}.jsonl", ran.recorder.history)
            sys.exit("\n".join(map(str, ran.verdict.violations)) or "undecided")
    print(f"{words.runs} runs, {operations} operations: all histories are linearizable")


if __name__ == "__main__":
    main()
