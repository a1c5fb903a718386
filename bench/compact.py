"""What a compaction gains: bytes and CPU against `git repack -adf`, and clones after many small pushes.

    python bench/compact.py density REPOSITORY   # a bare repository; it is copied
    python bench/compact.py pushes REPOSITORY [--pushes 10000]

`density` repacks a copy with git's own window and depth, imports the copy as it was, compacts that fully, and prints
bytes of pack + idx against bytes of blocks, and CPU seconds of both. `pushes` brings the last commits of the
repository's HEAD one push each, with the settles and compactions that a server would do, and compares what a clone
costs then (CPU of this process, bytes sent) with what it costs from a store that imported `git repack -adf`.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.operate.compact import bytes_of, compact, wants_compaction
from shardgit.operate.operation import silent_control
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.access import Principal
from shardgit.service.importing import import_repository
from shardgit.service.look import Look
from shardgit.service.push import Push

if TYPE_CHECKING:
    from shardgit.service.store import Store

CLONES = 7


def git(folder: Path, *words: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(
        ["git", "-C", str(folder), *words], input=stdin, capture_output=True, check=True
    ).stdout


def repacked(source: Path, target: Path) -> tuple[int, float]:
    """Copy a repository, repack the copy anew; returns bytes of pack and idx, and git's CPU seconds."""
    shutil.copytree(source, target)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    git(target, "repack", "-adfq", "--window=10", "--depth=50", "--no-write-bitmap-index")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    packs = [*target.glob("objects/pack/*.pack"), *target.glob("objects/pack/*.idx")]
    return sum(path.stat().st_size for path in packs), cpu


def stored(store: Store) -> int:
    """Return the bytes of all blocks of the pool's runs."""
    view = Look(store, "demo").view
    assert view is not None
    return bytes_of(view, view.runs)


def pool_of(store: Store):  # type: ignore[no-untyped-def]
    with store.journal.snapshot() as snapshot:
        return store.repository(snapshot, "demo").pool


def density(source: Path, scratch: Path) -> None:
    theirs, their_cpu = repacked(source, scratch / "git.git")
    create_store(scratch / "data")
    with open_store(scratch / "data") as store:
        import_repository(store, "demo", str(source))
        print(f"imported as it was: {stored(store):,} bytes")
        begun = time.process_time()
        done = compact(store, pool_of(store), control=silent_control(), full=True)
        cpu = time.process_time() - begun
        ours = stored(store)
    print(f"git repack -adf:    {theirs:,} bytes of pack and idx, {their_cpu:.1f} s of CPU")
    print(
        f"compacted:          {ours:,} bytes of blocks, {cpu:.1f} s of CPU, {done.deltas:,} deltas"
    )
    print(f"ratio:              {ours / theirs:.3f} of the bytes, {cpu / their_cpu:.2f} of the CPU")


def clone_cost(store: Store) -> tuple[float, int]:
    """Return the median CPU seconds and the bytes of a full clone's pack."""
    look = Look(store, "demo")
    assert look.view is not None
    costs, size = [], 0
    for _ in range(CLONES):
        begun = time.process_time()
        options = TransferOptions(sideband=True)
        size = sum(map(len, Transfer(look.view, look.reachable, options=options).chunks()))
        costs.append(time.process_time() - begun)
    return statistics.median(costs), size


def pushes(source: Path, scratch: Path, count: int) -> None:
    line = git(source, "rev-list", "--first-parent", f"--max-count={count + 1}", "HEAD").split()
    line.reverse()
    git(scratch, "clone", "-q", "--bare", "--no-local", str(source), "whole.git")
    create_store(scratch / "pushed")
    create_store(scratch / "fresh")
    with open_store(scratch / "pushed") as store:
        store.create_repository("demo")
        old: bytes | None = None
        compactions = 0
        for number, new in enumerate(line):
            wanted = new + (b"\n^" + old if old else b"") + b"\n"
            pack = git(source, "pack-objects", "--revs", "--stdout", "-q", "--thin", stdin=wanted)
            command = Command(
                b"refs/heads/main",
                ObjectId(bytes.fromhex(old.decode())) if old else None,
                ObjectId(bytes.fromhex(new.decode())),
            )
            push = Push(store, "demo", PushRequest((command,)), principal=Principal("bench"))
            push.take(pack)
            push.check()
            push.commit()
            old = new
            if number % 64 == 0:  # as the maintenance of a server looks now and then
                view = Look(store, "demo").view
                if view is not None and wants_compaction(view):
                    compact(store, pool_of(store), control=silent_control())
                    compactions += 1
        pushed_cpu, pushed_bytes = clone_cost(store)
        view = Look(store, "demo").view
        assert view is not None
        print(f"{len(line):,} pushes: {len(view.runs)} runs, {compactions} compactions")
        compact(store, pool_of(store), control=silent_control(), full=True)
        full_cpu, full_bytes = clone_cost(store)
    tip = git(source, "rev-parse", "HEAD").strip().decode()
    git(scratch / "whole.git", "update-ref", "refs/heads/main", tip)
    git(scratch / "whole.git", "repack", "-adfq", "--window=10", "--depth=50")
    with open_store(scratch / "fresh") as store:
        import_repository(store, "demo", str(scratch / "whole.git"))
        fresh_cpu, fresh_bytes = clone_cost(store)
    print(f"clone after pushes: {pushed_cpu * 1000:.1f} ms of CPU, {pushed_bytes:,} bytes")
    print(f"clone, fresh:       {fresh_cpu * 1000:.1f} ms of CPU, {fresh_bytes:,} bytes")
    print(f"clone, compacted:   {full_cpu * 1000:.1f} ms of CPU, {full_bytes:,} bytes (--full)")
    ratios = f"{full_cpu / fresh_cpu:.3f} of the CPU, {full_bytes / fresh_bytes:.3f}"
    print(f"ratio, compacted:   {ratios} of the bytes")
    ratios = f"{pushed_cpu / fresh_cpu:.3f} of the CPU, {pushed_bytes / fresh_bytes:.3f}"
    print(f"ratio:              {ratios} of the bytes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", choices=["density", "pushes"])
    parser.add_argument("repository", type=Path)
    parser.add_argument("--pushes", type=int, default=10_000)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if words.suite == "density":
            density(words.repository, Path(folder))
        else:
            pushes(words.repository, Path(folder), words.pushes)


if __name__ == "__main__":
    main()
