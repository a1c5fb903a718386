"""Objects by id, at random, streamed over gRPC, against what reads them from a pack on the same core."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from grpc_load import get_objects
from measure import children_of, run, watched
from peers import build
from result import Cost, Goal, Row, Side
from servers import shardgit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bed import Bed

SCRIPT = Path(__file__).parent.parent / "peers" / "read_objects.py"
HOW = (
    "The same shuffled ids (seeded) for all, the server or the process on one core, the client on another; over gRPC"
    " the server's CPU, its answers counted and thrown away. "
)
ONE = "All ids in one message, in any order: read in the store's. cat-file --buffer answers in the order asked."
MANY = "2,000 ids a message, a message answered before the next is read."


def rows(bed: Bed) -> list[Row]:
    """Read the same ids by all means."""
    most = bed.size(30_000, 300)
    ids = sample(bed, most)
    names = bed.fresh("objects") / "ids"
    names.write_bytes(b"\n".join(ids) + b"\n")
    few = names.with_name("few")  # a library needs milliseconds an object
    fewer = ids[: bed.size(3_000, 100)]
    few.write_bytes(b"\n".join(fewer) + b"\n")
    raw = [bytes.fromhex(oid.decode()) for oid in ids]
    with shardgit(bed.store) as server, pinned(server.pid) as core:

        def ours(per_message: int) -> tuple[Cost, int]:
            return watched(
                server.pid,
                lambda: get_objects(server.grpc, "bench", raw, per_message=per_message),
            )

        ours(most)
        sides: dict[str, Callable[[], tuple[Cost, int]]] = {
            "shardgit": partial(ours, most),
            "shardgit, 2,000 a message": partial(ours, 2_000),
            "git cat-file --batch --buffer": partial(cat_file, core, bed, names, "--buffer"),
            "git cat-file --batch": partial(cat_file, core, bed, names),
        }
        counts = dict.fromkeys(sides, len(ids))
        absent = []
        for library in ("pygit2", "dulwich"):
            if importlib.util.find_spec(library):
                command = [sys.executable, str(SCRIPT), library, str(bed.repository), str(few)]
                sides[library], counts[library] = partial(read_by, core, command), len(fewer)
            else:
                absent.append(library)
        for peer, said in build.NAMES.items():
            if words := build.command(peer):
                command = [*words, "read", str(bed.repository), str(names)]
                sides[said], counts[said] = partial(read_by, core, command), len(ids)
            else:
                absent.append(said)
        found = bed.alternate(sides, slow=("dulwich", "go-git"))
    made = {
        name: Side.of(
            name,
            [cost for cost, _ in some],
            size_bytes=some[0][1],
            count=counts[name],
        )
        for name, some in found.items()
    }
    goals = (
        Goal("cpu", at_most=1 / 3, peer="git cat-file --batch --buffer"),
        Goal("cpu", at_most=1 / 8, peer="dulwich"),
        Goal("rate", at_least=3, peer="git cat-file --batch --buffer"),
        Goal("rate", at_least=8, peer="dulwich"),
    )
    peers = tuple(side for name, side in made.items() if not name.startswith("shardgit"))
    mine, small = made["shardgit"], made["shardgit, 2,000 a message"]
    out = []
    for path, side, how in (
        (f"{len(ids):,} objects at random", mine, ONE),
        (f"{len(ids):,} objects at random, 2,000 a message", small, MANY),
    ):
        share = bed.share("grpc", side.size_bytes, side.cpu_s)
        row = Row(
            "objects",
            path,
            Side.of("shardgit", side.rounds, size_bytes=side.size_bytes, count=side.count),
            peers,
            tuple(absent),
            goals if side is mine else (),
            "grpc",
            share,
            HOW
            + how
            + f" dulwich and pygit2 read {len(fewer):,} of them, dulwich and go-git in one round.",
        )
        out.append(row)
    return out


def sample(bed: Bed, most: int) -> list[bytes]:
    """Return ids of the repository in hex, in an order of chance."""
    words = ["cat-file", "--batch-all-objects", "--unordered", "--batch-check=%(objectname)"]
    done = subprocess.run(
        ["git", "-C", str(bed.repository), *words], capture_output=True, check=True
    )
    ids = sorted(done.stdout.split())
    random.Random(7).shuffle(ids)
    return ids[:most]


@contextmanager
def pinned(pid: int) -> Iterator[int]:
    """Keep a server and all its threads on one core, which is returned, and this process on the others."""
    cores = os.sched_getaffinity(0)
    core = min(cores)
    for each in children_of(pid):
        _keep_on(f"/proc/{each}/task", {core})
    _keep_on("/proc/self/task", cores - {core} or cores)
    try:
        yield core
    finally:
        _keep_on("/proc/self/task", cores)


def _keep_on(tasks: str, cores: set[int]) -> None:
    for thread in Path(tasks).iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread that ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)


def cat_file(core: int, bed: Bed, names: Path, *more: str) -> tuple[Cost, int]:
    """Let git cat-file print the objects."""
    command = ["git", "-C", str(bed.repository), "cat-file", "--batch", *more]
    with names.open("rb") as file:
        return run(["taskset", "-c", str(core), *command], stdin=file), 0


def read_by(core: int, command: list[str]) -> tuple[Cost, int]:
    """Let another implementation read the objects."""
    return run(["taskset", "-c", str(core), *command]), 0
