"""Many clones of one repository at once, and one as fast as it goes, to clients that throw all away in the kernel."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from discard import clone_request, discard_many, whole_answer
from measure import watched
from result import Cost, Goal, Plot, Row, Side
from servers import Server, clone_body, http_backend, shardgit, tips

if TYPE_CHECKING:
    from bed import Bed

HOW = (
    "Clients discard in the kernel (recv with MSG_TRUNC), one process for all; each answer is as long as one whose end"
    " was looked at. One worker; CPU is the server's, its CGI children included."
)


def rows(bed: Bed) -> list[Row]:
    """Clone by one client, then by 32 at once."""
    out = []
    with shardgit(bed.store) as ours, http_backend(bed.repository, bed.fresh("lighttpd")) as theirs:
        body = clone_body(tips(theirs.url))
        sizes = {one.name: whole_answer(one.url, body) for one in (ours, theirs)}
        many = bed.size(32, 4)
        out.append(storm(bed, (ours, theirs), sizes, body, 1))
        out.append(storm(bed, (ours, theirs), sizes, body, many))
    return out


def storm(
    bed: Bed, servers: tuple[Server, Server], sizes: dict[str, int], body: bytes, clients: int
) -> Row:
    """Clone by some clients at once; by one alone a few times in a row, for it takes a quarter of a second."""
    turns = 4 if clients == 1 else 1

    def once(server: Server) -> Cost:
        requests = [clone_request(server.url, body)] * clients

        def work() -> list[int]:
            return [size for _ in range(turns) for size in discard_many(server.url, requests)]

        cost, got = watched(server.pid, work, every_s=0.02)
        for size in got:
            # git's threads may choose deltas otherwise from clone to clone; ours are all alike.
            if abs(size - sizes[server.name]) > sizes[server.name] // 50 + 256:
                raise SystemExit(f"{server.name}: an answer of {size} bytes is not whole")
        return cost

    found = bed.alternate({one.name: partial(once, one) for one in servers})
    mine, theirs = (
        Side.of(name, some, size_bytes=sizes[name] * clients * turns, count=clients * turns)
        for name, some in found.items()
    )
    if clients == 1:
        path = "clone to a client that discards"
        goals: tuple[Goal, ...] = (Goal("throughput", at_least=1.2e9, absolute=True),)
    else:
        path = f"{clients} clones at once"
        goals = (Goal("cpu", at_most=0.1), Goal("memory", at_most=1 / 8))
    share = bed.share("loopback", mine.size_bytes, mine.cpu_s)
    return Row(
        "storms",
        path,
        mine,
        (theirs,),
        goals=goals,
        limit="loopback",
        limit_share=share,
        how=HOW,
        plot=Plot("clone-by-clients", clients, "clients", "cpu") if clients > 1 else None,
    )
