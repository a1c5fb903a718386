"""A push into a repository of a million refs against the same push into one of ten."""

from __future__ import annotations

import asyncio
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING

from bed import Bed, new_store
from measure import watched
from result import Goal, Row
from servers import Server, http_backend
from servers import shardgit as serve
from traffic import Traffic, git, measured, push_bodies, push_of, side_of

import shardgit.aio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from pathlib import Path

    from shardgit.aio.repo import Repo

GENERATED = True
FEW = 10
WITHIN = "shardgit, 10 refs"
GOALS = (Goal("cpu", at_most=1.2, peer=WITHIN), Goal("p50", at_most=1.2, peer=WITHIN))
HOW = "One worker, one client, each push durable when it is answered; the two repositories take turns."
OVER_HTTP = (
    " The advertisement is limited as it is by default: more than 10,000 refs show their branches only."
    " http-backend shows all. One push into each before: the first that a worker takes looks at all refs once (2 s)."
)


def rows(bed: Bed) -> list[Row]:
    """Push over HTTP, then over gRPC, then move refs alone."""
    refs = bed.size(1_000_000, 2_000)
    each = bed.size(30, 2)
    source, bodies = push_bodies(bed.fresh("many-source"), 2 * each * bed.rounds + 1)
    root = bed.fresh("many-root")
    bares = {"many": bare(root, "many", source, refs), "few": bare(root, "few", source, FEW)}
    store = new_store(bed.fresh("many-store") / "store", bares)
    first = git(source, "rev-parse", "HEAD").decode()
    out = []
    with serve(store, name="many") as ours:
        with http_backend(bares["many"], bed.fresh("lighttpd-many")) as theirs:
            out.append(over_http(bed, ours, theirs, bodies[: each * bed.rounds + 1], each, refs))
        packs = [parsed(body) for body in bodies[each * bed.rounds + 1 :]]
        out.append(over_grpc(bed, ours, packs, each, refs))
        out.append(moves(bed, ours, bytes.fromhex(first), bed.size(100, 3), refs))
    return out


def bare(root: Path, name: str, source: Path, refs: int) -> Path:
    """Make a repository of so many refs, packed as `git pack-refs` writes them."""
    target = root / f"{name}.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(source), str(target)], check=True)
    git(target, "config", "http.receivepack", "true")
    git(target, "config", "gc.auto", "0")
    oid = git(target, "rev-parse", "HEAD")
    names = sorted(b"refs/pull/%d/head" % number for number in range(refs - 1))
    head = b"# pack-refs with: peeled fully-peeled sorted \n"
    text = b"".join(oid + b" " + each + b"\n" for each in [b"refs/heads/main", *names])
    (target / "packed-refs").write_bytes(head + text)
    return target


def parsed(body: bytes) -> tuple[bytes, bytes, bytes]:
    """Return (old id, new id, pack) of a prepared push."""
    length = int(body[:4], 16)
    old, new = body[4:length].split(b" ", 2)[:2]
    return bytes.fromhex(old.decode()), bytes.fromhex(new.decode()), body[length + 4 :]


def over_http(
    bed: Bed, ours: Server, theirs: Server, bodies: list[bytes], each: int, refs: int
) -> Row:
    """Push one commit after another."""
    done = {"many": 0, "few": 0, theirs.name: 0}

    def once(side: str, url: str, server: Server, count: int) -> Traffic:
        some = bodies[done[side] : done[side] + count]
        done[side] += count
        return measured(server, [[push_of(url, body) for body in some]])

    few = ours.url.replace("/many.git", "/few.git")
    for side, url in (("many", ours.url), ("few", few)):
        once(side, url, ours, 1)
    found = bed.alternate(
        {
            "many": partial(once, "many", ours.url, ours, each),
            "few": partial(once, "few", few, ours, each),
            theirs.name: partial(once, theirs.name, theirs.url, theirs, bed.size(2, 1)),
        }
    )
    mine, small = side_of("shardgit", found["many"]), side_of(WITHIN, found["few"])
    peers = (small, side_of(theirs.name, found[theirs.name]))
    path = f"push over HTTP among {refs:,} refs"
    return Row("many_refs", path, mine, peers, goals=GOALS, how=HOW + OVER_HTTP)


def timed(
    server: Server, work: Callable[[Repo, int], Awaitable[None]], name: str, numbers: Sequence[int]
) -> Traffic:
    """Do some calls on a repository, one after another over one connection."""

    async def all_of_them() -> list[float]:
        times = []
        async with shardgit.aio.connect(server.grpc) as client:
            repo = client.repo(name)
            await repo.ref("refs/heads/main")
            for number in numbers:
                begun = time.monotonic()
                await work(repo, number)
                times.append(time.monotonic() - begun)
        return times

    made: Coroutine[None, None, list[float]] = all_of_them()
    cost, times = watched(server.pid, lambda: asyncio.run(made), every_s=0.05)
    return Traffic(cost, tuple(times))


def compared(
    bed: Bed,
    server: Server,
    work: Callable[[Repo, int], Awaitable[None]],
    each: int,
    path: str,
) -> Row:
    """Do the same calls on both repositories in turn."""
    done = {"many": 0, "few": 0}

    def once(name: str) -> Traffic:
        done[name] += each
        return timed(server, work, name, range(done[name] - each, done[name]))

    found = bed.alternate({name: partial(once, name) for name in done})
    mine, small = side_of("shardgit", found["many"]), side_of(WITHIN, found["few"])
    return Row("many_refs", path, mine, (small,), goals=GOALS, how=HOW)


def over_grpc(
    bed: Bed, server: Server, packs: list[tuple[bytes, bytes, bytes]], each: int, refs: int
) -> Row:
    """Store packs of one commit and move the branch to each."""

    async def push(repo: Repo, number: int) -> None:
        old, new, pack = packs[number]
        await repo.store_pack(pack)
        await repo.update_ref("refs/heads/main", new, old=old)

    path = f"StorePack and UpdateRefs among {refs:,} refs"
    return compared(bed, server, push, each, path)


def moves(bed: Bed, server: Server, target: bytes, each: int, refs: int) -> Row:
    """Make one ref after another."""

    async def make(repo: Repo, number: int) -> None:
        await repo.update_ref(f"refs/heads/new{number}", target, old=None)

    return compared(bed, server, make, each, f"UpdateRefs of one among {refs:,} refs")
