"""Clones, to clients that throw the stream away, against git http-backend with bitmaps behind lighttpd."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import load
from measure import run, watched
from result import Cost, Goal, Plot, Row, Side
from servers import BACKEND, Server, clone_body, discard, head, http_backend, shardgit, tips
from traffic import Traffic, fetch_of, measured, side_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from bed import Bed

PARTIAL = {
    "depth 1 clone": b"deepen 1",
    "blob:none clone": b"filter blob:none",
    "tree:0 clone": b"filter tree:0",
}
EACH = 3  # partial clones a round, one after another
HOW = "Clients discard the stream; CPU is the server's, its CGI children included; one worker."
FIRST = (
    "The first clone that a newly started server serves, its files in the page cache: blocks are checked against"
    " their ids, the pack is hashed."
)
LATER = " A worker knows the trailer of a pack that it sent, so later clones of the same objects hash nothing."
KEPT = " It keeps the entries that it deflates for shallow clones, 32 MiB of them: the first pays, later ones copy."


def rows(bed: Bed) -> list[Row]:
    """Measure first clones of new servers, then clones of servers that run."""
    out = [first(bed, "first clone of a server", b"")]
    for what in ("depth 1 clone", "blob:none clone")[: bed.size(2, 1)]:
        out.append(first(bed, f"first {what} of a server", PARTIAL[what]))
    with shardgit(bed.store) as ours, http_backend(bed.repository, bed.fresh("lighttpd")) as theirs:
        wants = tips(theirs.url)
        if set(wants) != set(tips(ours.url)):
            raise SystemExit("the servers show different refs")
        both = {server.name: server for server in (ours, theirs)}
        body = clone_body(wants)
        for clients in (1, 4):
            out.append(full(bed, both, body, clients))
        for what, extra in PARTIAL.items():
            out.append(part(bed, both, what, clone_body([head(theirs.url)], extra=extra)))
        out.append(stock(bed, both))
    return out


def clone(server: Server, body: bytes, clients: int = 1) -> tuple[Cost, int]:
    """Serve a clone, or several at once; returns what it cost, and the bytes of all."""
    at = urlsplit(server.url)
    where = (str(at.hostname), at.port or 80)
    sizes: list[int] = []
    request = replace(fetch_of(server.url, body), end=b"0000")
    cost, _ = watched(server.pid, lambda: load.run(where, [[request]] * clients, sizes))
    return cost, sum(sizes)


def _side(name: str, rounds: list[tuple[Cost, int]], count: int = 1) -> Side:
    costs = [cost for cost, _ in rounds]
    return Side.of(name, costs, size_bytes=rounds[0][1], count=count)


def first(bed: Bed, path: str, extra: bytes) -> Row:
    """Time the first clone of a newly started server."""

    def once(new: Callable[[], AbstractContextManager[Server]]) -> tuple[Cost, int]:
        with new() as server:
            wants = [head(server.url)] if extra else tips(server.url)
            return clone(server, clone_body(wants, extra=extra))

    folder = bed.fresh("lighttpd-first")
    found = bed.alternate(
        {
            "shardgit": partial(once, partial(shardgit, bed.store)),
            BACKEND: partial(once, partial(http_backend, bed.repository, folder)),
        }
    )
    ours, theirs = (_side(name, some) for name, some in found.items())
    return _row(bed, path, ours, theirs, how=f"{FIRST} {HOW}")


def full(bed: Bed, both: dict[str, Server], body: bytes, clients: int) -> Row:
    """Time full clones."""
    for server in both.values():
        clone(server, body)
    sides = {name: partial(clone, server, body, clients) for name, server in both.items()}
    found = bed.alternate(sides)
    ours, theirs = (_side(name, some, clients) for name, some in found.items())
    path = "full clone" if clients == 1 else f"{clients} clones at once"
    row = _row(bed, path, ours, theirs, (Goal("cpu", at_most=0.2),), HOW + LATER)
    return replace(row, plot=Plot("clone-by-clients", clients, "clients", "cpu"))


def part(bed: Bed, both: dict[str, Server], path: str, body: bytes) -> Row:
    """Time shallow and partial clones of HEAD."""
    sizes = {name: discard(server.url, body) for name, server in both.items()}

    def once(server: Server) -> Traffic:
        return measured(server, [[fetch_of(server.url, body)] * EACH])

    found = bed.alternate({name: partial(once, server) for name, server in both.items()})
    ours, theirs = (
        side_of(name, some, size_bytes=sizes[name] * EACH) for name, some in found.items()
    )
    goals = (Goal("cpu", at_most=0.2),)
    return _row(bed, path, ours, theirs, goals, HOW + (KEPT if "depth" in path else ""))


def stock(bed: Bed, both: dict[str, Server]) -> Row:
    """Time what a user of stock git waits for; the client's work is in it."""
    target = bed.fresh("cloned") / "clone.git"
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0"}

    def once(server: Server) -> Cost:
        subprocess.run(["rm", "-rf", str(target)], check=True)
        words = ["git", "clone", "-q", "--bare", "--depth=1", server.url, str(target)]
        cost, own = watched(server.pid, lambda: run(words, env=environment))
        return Cost(own.wall_s, cost.cpu_s, cost.memory_bytes)

    found = bed.alternate({name: partial(once, server) for name, server in both.items()})
    ours, theirs = (Side.of(name, some) for name, some in found.items())
    how = "git clone --bare --depth=1 by stock git: wall is the client's, indexing included, CPU the server's."
    return _row(bed, "depth 1 clone by stock git", ours, theirs, how=how)


def _row(
    bed: Bed, path: str, ours: Side, theirs: Side, goals: tuple[Goal, ...] = (), how: str = ""
) -> Row:
    share = bed.share("loopback", ours.size_bytes, ours.cpu_s) if ours.size_bytes else 0.0
    limit = "loopback" if share else ""
    return Row(
        "clones", path, ours, (theirs,), goals=goals, limit=limit, limit_share=share, how=how
    )
