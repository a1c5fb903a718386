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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.operate.compact import bytes_of, compact, wants_compaction
from shardgit.operate.operation import silent_control
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.access import trusted
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


def clone_cost(store: Store, clones: int = CLONES) -> tuple[float, int]:
    """Return the least CPU seconds and the bytes of a full clone's pack, the client's and the network's share aside."""
    costs, size = [], 0
    for _ in range(clones):
        look = Look(store, "demo")
        assert look.view is not None
        begun = time.process_time()
        options = TransferOptions(sideband=True)
        size = sum(map(len, Transfer(look.view, look.reachable, options=options).chunks()))
        costs.append(time.process_time() - begun)
    return min(costs), size


@dataclass(frozen=True, slots=True)
class Steps:
    """The pushes: ids of the tips, one more than there are packs between them, in a folder that may be kept."""

    tips: tuple[str, ...]
    folder: Path

    def pack(self, number: int) -> bytes:
        return (self.folder / f"{number}.pack").read_bytes()

    def fresh(self, number: int) -> Path:
        """Return a bare repository with one pack of the history up to a push, made by `git repack -adf`."""
        return self.folder / f"{number}.git"


def prepared(source: Path, folder: Path, count: int, every: int) -> Steps:
    """Make the packs of the pushes, and what a clone is compared with after each ``every`` of them.

    The first one brings all that was before the others, packed as well as what a clone is compared with: how somebody
    packed the repository that is measured is another question.
    """
    line = git(source, "rev-list", "--first-parent", "--reverse", "HEAD").decode().split()
    tips = line[-count - 1 :]
    folder.mkdir(exist_ok=True)
    steps = Steps(tuple(tips), folder)
    for number in range(every, len(tips), every):
        repack_history(source, steps, number)
    repack_history(source, steps, 0)
    for number, new in enumerate(tips):
        target = folder / f"{number}.pack"
        if not target.exists():
            wanted = f"{new}\n" + (f"^{tips[number - 1]}\n" if number else "")
            words = ("pack-objects", "--revs", "--stdout", "-q", "--thin", "--delta-base-offset")
            target.write_bytes(
                git(source if number else steps.fresh(0), *words, stdin=wanted.encode())
            )
    return steps


def repack_history(source: Path, steps: Steps, number: int) -> None:
    """Make the repository of the history up to a push, in one pack by ``git repack -adf``, unless it is there."""
    if steps.fresh(number).exists():
        return
    new = steps.tips[number]
    waiting = steps.folder / "waiting.git"
    shutil.rmtree(waiting, ignore_errors=True)
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(waiting)], check=True)
    words = ("pack-objects", "--revs", "--stdout", "-q", "--delta-base-offset")
    pack = git(source, *words, stdin=f"{new}\n".encode())
    git(waiting, "index-pack", "--stdin", stdin=pack)
    git(waiting, "update-ref", "refs/heads/main", new)
    git(waiting, "repack", "-adfq", "--window=10", "--depth=50")
    waiting.rename(steps.fresh(number))


def fresh_cost(steps: Steps, number: int, scratch: Path) -> tuple[float, int]:
    """Return what a clone costs from a store that imported the history as `git repack -adf` left it."""
    folder = scratch / f"fresh{number}"
    create_store(folder)
    with open_store(folder) as store:
        import_repository(store, "demo", str(steps.fresh(number)))
        return clone_cost(store)


def push(store: Store, steps: Steps, number: int) -> None:
    old = ObjectId(bytes.fromhex(steps.tips[number - 1])) if number else None
    new = ObjectId(bytes.fromhex(steps.tips[number]))
    request = PushRequest((Command(b"refs/heads/main", old, new),))
    made = Push(store, "demo", request, principal=trusted("bench"))
    made.take(steps.pack(number))
    made.check()
    assert made.commit().results[0].error is None


def maintain(store: Store) -> int:
    """Do what the maintenance of a server does in a round, as long as something is due; returns the compactions."""
    for done in range(100):
        view = Look(store, "demo").view
        if view is None or not wants_compaction(view):
            return done
        compact(store, pool_of(store), control=silent_control())
    raise SystemExit("compactions are due again and again")


def pushes(steps: Steps, scratch: Path, *, every: int, look: int) -> None:
    """Push, maintain and clone; a clone between two references is compared with the line between them."""
    create_store(scratch / "pushed")
    seen: list[tuple[int, float, int]] = []
    compactions, worked = 0, 0.0
    begun = time.process_time()
    with open_store(scratch / "pushed") as store:
        store.create_repository("demo")
        for number in range(len(steps.tips)):
            push(store, steps, number)
            if number % look == 0 and number:
                at = time.process_time()
                compactions += maintain(store)
                worked += time.process_time() - at
                seen.append((number, *clone_cost(store, 3)))
        spent = time.process_time() - begun
        view = Look(store, "demo").view
        assert view is not None
        print(
            f"{len(steps.tips):,} pushes: {len(view.runs)} runs, {compactions} compactions of {worked:.1f} s CPU in"
            f" all, {spent:.1f} s CPU with pushes, settles and clones"
        )
    shutil.copytree(scratch / "pushed", scratch / "full")
    with open_store(scratch / "full") as store:
        compact(store, pool_of(store), control=silent_control(), full=True)
        full = clone_cost(store)
    marks = {at: fresh_cost(steps, at, scratch) for at in range(every, len(steps.tips), every)}
    grown = sizes(steps, sorted({*marks, *(at for at, _, _ in seen)}))
    worst: dict[int, list[float]] = {}
    for at, cpu, size in seen:
        low = at // every * every
        high = low if at == low else low + every
        if low not in marks or high not in marks:
            continue
        part = (grown[at] - grown[low]) / (grown[high] - grown[low]) if high > low else 0.0
        wanted = [a + (b - a) * part for a, b in zip(marks[low], marks[high], strict=True)]
        ratios = [size / wanted[1], cpu / wanted[0]]
        if at == low:
            print(
                f"{at:6} pushes: {size:11,} bytes, {ratios[0]:.3f}; {cpu * 1000:6.1f} ms CPU, {ratios[1]:.3f}"
            )
        worst.setdefault(low, []).append(ratios[0])
        worst.setdefault(-low, []).append(ratios[1])
    for low in sorted(low for low in worst if low > 0):
        cpu = statistics.median(worst[-low])
        print(
            f"{low:6} pushes and after, {len(worst[low])} looks: {max(worst[low]):.3f} of the bytes at most;"
            f" {cpu:.3f} of the CPU in the middle, {max(worst[-low]):.3f} at most"
        )
    last = marks[max(marks)]
    print(
        f"after --full:   {full[1] / last[1]:.3f} of the bytes, {full[0] / last[0]:.3f} of the CPU"
    )


def sizes(steps: Steps, numbers: list[int]) -> dict[int, int]:
    """Return how many bytes the objects up to each of some pushes take in the last reference's pack."""
    last = max((at for at in numbers if steps.fresh(at).exists()), default=0)
    found: dict[int, int] = {}
    total, before = 0, ""
    for at in numbers:
        if at > last:
            break
        since = [f"^{before}"] if before else []
        words = ("rev-list", "--objects", "--disk-usage", steps.tips[at], *since)
        total += int(git(steps.fresh(last), *words))
        found[at], before = total, steps.tips[at]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", choices=["density", "pushes"])
    parser.add_argument("repository", type=Path)
    parser.add_argument("--pushes", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1_000, help="pushes between two references")
    parser.add_argument("--look", type=int, default=50, help="pushes between two looks")
    parser.add_argument("--keep", type=Path, help="folder in which packs and references stay")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if words.suite == "density":
            density(words.repository, Path(folder))
        else:
            kept = words.keep or Path(folder) / "steps"
            steps = prepared(words.repository, kept, words.pushes, words.every)
            pushes(steps, Path(folder), every=words.every, look=words.look)


if __name__ == "__main__":
    main()
