"""Forks over gRPC, ten thousand of them in a row, against what git has for it."""

from __future__ import annotations

import shutil
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING

import grpc
from bed import Bed, new_store
from measure import run, watched
from result import Cost, Goal, Row, Side
from servers import Server
from servers import shardgit as serve
from traffic import Traffic, side_of

from shardgit.v1.repository_pb2 import ForkRepositoryRequest
from shardgit.v1.repository_pb2_grpc import RepositoryServiceStub

if TYPE_CHECKING:
    from pathlib import Path

HOW = "ForkRepository over gRPC, one after another, each durable when it is answered; one worker."
PEERS = (
    " git clone --shared --bare and cp -a of such a clone are processes each, and neither waits for the disk; their"
    " CPU is the process's."
)


def rows(bed: Bed) -> list[Row]:
    """Fork a few times in turn with git, then very many times."""
    folder = bed.fresh("forks")
    store = new_store(folder / "store", {"bench": bed.repository})
    each, most = bed.size(100, 4), bed.size(10_000, 40)
    with serve(store) as server:
        some = few(bed, server, folder, each)
        many = linear(bed, server, store, most)
    return [some, *many]


def forks(server: Server, first: int, count: int) -> Traffic:
    """Make some forks; those before were made."""

    def make(stub: RepositoryServiceStub) -> list[float]:
        times = []
        for number in range(first, first + count):
            asked = ForkRepositoryRequest(source="bench", target=f"forks/{number}")
            begun = time.monotonic()
            stub.ForkRepository(asked)
            times.append(time.monotonic() - begun)
        return times

    with grpc.insecure_channel(server.grpc) as channel:
        grpc.channel_ready_future(channel).result()
        stub = RepositoryServiceStub(channel)
        cost, times = watched(server.pid, lambda: make(stub), every_s=0.05)
    return Traffic(cost, tuple(times))


def few(bed: Bed, server: Server, folder: Path, each: int) -> Row:
    """Fork in turn with git."""
    made = {"shardgit": 0}
    shared = folder / "shared.git"
    clone = ["git", "clone", "-q", "--shared", "--bare", str(bed.repository)]
    subprocess.run([*clone, str(shared)], check=True)

    def ours() -> Traffic:
        made["shardgit"] += each
        return forks(server, made["shardgit"] - each, each)

    def theirs(command: list[str]) -> Traffic:
        costs, count = [], max(1, each // 5)
        for _ in range(count):
            target = folder / "fork.git"
            shutil.rmtree(target, ignore_errors=True)
            costs.append(run([*command, str(target)]))
        whole = Cost(sum(one.wall_s for one in costs), sum(one.cpu_s for one in costs))
        return Traffic(whole, tuple(one.wall_s for one in costs))

    found = bed.alternate(
        {
            "shardgit": ours,
            "git clone --shared --bare": partial(theirs, clone),
            "cp -a": partial(theirs, ["cp", "-a", str(shared)]),
        }
    )
    mine, *peers = (side_of(name, some) for name, some in found.items())
    goals = (Goal("p99", at_most=0.005, absolute=True),)
    share = bed.share("fsync", mine.count, mine.wall_s)
    return Row(
        "forks",
        "fork",
        mine,
        tuple(peers),
        goals=goals,
        limit="fsync",
        limit_share=share,
        how=HOW + PEERS,
    )


def linear(bed: Bed, server: Server, store: Path, most: int) -> list[Row]:
    """Make very many forks; compare the last tenth with the first, and count the store's bytes."""
    begun, before = 1_000_000, bytes_of(store)
    tenth = most // 10
    parts = [forks(server, begun + number * tenth, tenth) for number in range(10)]
    grown = bytes_of(store) - before
    first, last = side_of("the first tenth", parts[:1]), side_of("shardgit", parts[-1:])
    how = f"{most:,} forks of one repository in a row: the last {tenth:,} against the first. {HOW}"
    goals = (Goal("cpu", at_most=1.1), Goal("p50", at_most=1.1))
    whole = Side.of(
        "shardgit",
        [Cost(sum(one.cost.wall_s for one in parts), sum(one.cost.cpu_s for one in parts))],
        size_bytes=grown,
        count=most,
        latencies_s=[each for one in parts for each in one.latencies_s],
    )
    size = "Bytes are what the store's files take on the disk more than before, for each fork."
    return [
        Row("forks", f"the last of {most:,} forks", last, (first,), goals=goals, how=how),
        Row(
            "forks",
            f"{most:,} forks",
            whole,
            goals=(Goal("size", at_most=1_024, absolute=True),),
            how=f"{HOW} {size}",
        ),
    ]


def bytes_of(store: Path) -> int:
    """Return the bytes that a store's files take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in store.rglob("*") if path.is_file())
