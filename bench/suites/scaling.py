"""More workers, more shards, more clients."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from bed import SHARDGIT, Bed, new_store
from grpc_load import ask_objects
from measure import run, watched
from result import Cost, Goal, Plot, Row, Side
from servers import Server, clone_body, http_backend, shardgit, tips
from traffic import Traffic, fetch_body, fetch_of, git, measured, side_of

from suites.clones import clone
from suites.objects import sample

if TYPE_CHECKING:
    from load import Exchange

WORKERS = (1, 2)
SHARDS, SMOKE_SHARDS = (1, 2, 4), (1, 2)
PER_CORE = 0.85


def rows(bed: Bed) -> list[Row]:
    """Measure each kind of scaling."""
    tip = git(bed.repository, "rev-parse", "HEAD")
    behind = git(bed.repository, "rev-parse", "HEAD~10")
    ten = fetch_body([tip], [behind], [])
    return [*workers(bed, ten), *object_reads(bed), *shards(bed), *clients(bed, ten)]


def workers(bed: Bed, ten: bytes) -> list[Row]:
    """Serve the same clones and fetches by one worker and by two.

    The client is one process that takes its part of the cores, so the rate cannot double on two cores; what the
    servers spend on each says whether workers hinder each other.
    """
    with (
        shardgit(bed.store, workers=WORKERS[0]) as one,
        shardgit(bed.store, workers=WORKERS[1]) as two,
    ):
        servers = {"one": one, "two": two}
        full = clone_body(tips(one.url))
        out = []
        for path, body, count, each in (
            ("full clones", full, 8, bed.size(1, 1)),
            ("fetches of ten new commits", ten, 16, bed.size(40, 2)),
        ):

            def jobs(
                server: Server, body: bytes = body, count: int = count, each: int = each
            ) -> list[list[Exchange]]:
                return [[fetch_of(server.url, body)] * each for _ in range(count)]

            def once(server: Server, jobs: object = jobs) -> Traffic:
                return measured(server, jobs(server))  # type: ignore[operator]

            for server in servers.values():  # all workers have seen it
                once(server)
            found = bed.alternate({name: partial(once, each) for name, each in servers.items()})
            mine = side_of("shardgit", found["two"])
            alone = side_of("shardgit, 1 worker", found["one"])
            goals = (
                Goal("rate", at_least=PER_CORE * WORKERS[1]),
                Goal("cpu", at_most=1 / PER_CORE),
            )
            how = (
                f"{count} clients in one process, which takes its part of the same two cores: the rate shows that, CPU"
                " each shows whether workers hinder each other."
            )
            out.append(Row("scaling", f"{path}, 2 workers", mine, (alone,), goals=goals, how=how))
    return out


def object_reads(bed: Bed) -> list[Row]:
    """Read objects at random by one worker and by two, four connections each."""
    connections, most = 4, bed.size(30_000, 300)
    ids = [bytes.fromhex(oid.decode()) for oid in sample(bed, most)]
    parts = [ids[at::connections] for at in range(connections)]
    with (
        shardgit(bed.store, workers=WORKERS[0]) as one,
        shardgit(bed.store, workers=WORKERS[1]) as two,
    ):

        def once(server: Server) -> tuple[Cost, int]:
            async def ask() -> int:
                asked = (ask_objects(server.grpc, "bench", some) for some in parts)
                return sum(await asyncio.gather(*asked))

            return watched(server.pid, lambda: asyncio.run(ask()))

        servers = {"one": one, "two": two}
        for server in servers.values():
            once(server)
        found = bed.alternate({name: partial(once, each) for name, each in servers.items()})
    mine, alone = (
        Side.of(name, [cost for cost, _ in found[which]], count=len(ids))
        for name, which in (("shardgit", "two"), ("shardgit, 1 worker", "one"))
    )
    goals = (Goal("rate", at_least=PER_CORE * WORKERS[1]), Goal("cpu", at_most=1 / PER_CORE))
    how = (
        f"{connections} connections of one process, GetObjects in any order; it reads answers on the same cores,"
        " CPU each shows whether workers hinder each other. Connections fall to workers as the kernel deals them."
    )
    path = "objects at random, 2 workers"
    return [Row("scaling", path, mine, (alone,), goals=goals, how=how)]


def shards(bed: Bed) -> list[Row]:
    """Import into stores of one, two and four shards, and clone from them; one disk has them all."""

    counts = SMOKE_SHARDS if bed.smoke else SHARDS

    def load(count: int) -> Cost:
        store = new_store(bed.fresh(f"shards{count}") / "store", shards=count)
        words = ["repo", "import", "bench", str(bed.repository), "--data", str(store)]
        return run([*SHARDGIT, *words])

    imported = bed.alternate({str(count): partial(load, count) for count in counts})
    cloned: dict[str, list[tuple[Cost, int]]] = {}
    for count in counts:
        with shardgit(bed.work / bed.dataset / f"shards{count}" / "store") as server:
            body = clone_body(tips(server.url))
            clone(server, body)
            cloned[str(count)] = [clone(server, body) for _ in range(bed.rounds)]
    how = "All shards on one disk: what spreading costs, not what more disks gain."
    out = []
    for what in ("import", "full clone"):
        sides = {}
        for count in counts:
            costs = (
                imported[str(count)]
                if what == "import"
                else [cost for cost, _ in cloned[str(count)]]
            )
            sides[count] = Side.of("shardgit", costs)
        alone = Side.of("shardgit, 1 shard", sides[1].rounds)
        for count, side in sides.items():
            plot = Plot("shards", count, "shards", "cpu", line=what)
            path = f"{what}, {count} shard{'s' * (count > 1)}"
            peers = (alone,) if count > 1 else ()
            goals = (Goal("cpu", at_most=1 / PER_CORE),) if count > 1 else ()
            out.append(Row("scaling", path, side, peers, goals=goals, how=how, plot=plot))
    return out


def clients(bed: Bed, ten: bytes) -> list[Row]:
    """Fetch ten commits from more and more clients at once; the same number of fetches in all."""
    in_all = bed.size(64, 8)
    counts = (1, 2, 4, 8, 16, 32) if not bed.smoke else (1, 4)
    folder = bed.fresh("lighttpd")
    out = []
    with shardgit(bed.store) as ours, http_backend(bed.repository, folder) as theirs:
        for count in counts:

            def once(server: Server, count: int = count) -> Traffic:
                each = max(1, in_all // count)
                return measured(server, [[fetch_of(server.url, ten)] * each] * count)

            found = bed.alternate({one.name: partial(once, one) for one in (ours, theirs)})
            mine, other = (side_of(name, some) for name, some in found.items())
            plot = Plot("fetch-by-clients", count, "clients", "p50")
            path = f"fetch of ten new commits, {count} client{'s' * (count > 1)}"
            how = f"{in_all} fetches a round in all, one worker."
            out.append(Row("scaling", path, mine, (other,), how=how, plot=plot))
    return out
