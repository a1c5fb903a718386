"""Fetches of what is new, and refs, as fleets of CI machines ask for them."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING

from result import Goal, Row
from servers import Server, http_backend, line, shardgit
from traffic import Traffic, fetch_body, fetch_of, git, measured, side_of

if TYPE_CHECKING:
    from bed import Bed

HOW = "One worker of ours; clients share the cores with the servers; latencies of all rounds."
NEW = (
    " Here two workers, since http-backend uses both cores too. A worker keeps short answers: each request also names a"
    " commit that the server lacks, always another."
)


def rows(bed: Bed) -> list[Row]:
    """Each row alternates between the servers, after one request of each to warm up."""
    tip = git(bed.repository, "rev-parse", "HEAD")
    behind = git(bed.repository, "rev-parse", "HEAD~10")
    refs = line(b"command=ls-refs\n") + b"0001" + line(b"peel\n") + line(b"symrefs\n") + b"0000"
    ten = fetch_body([tip], [behind], [])
    eighth = (Goal("p50", at_most=1 / 8), Goal("p99", at_most=1 / 8))
    asked: dict[str, tuple[int, int, bytes, tuple[Goal, ...]]] = {
        "fetch of ten new commits, 1 client": (1, 20, ten, ()),
        "fetch of ten new commits, 16 clients": (16, 8, ten, eighth),
        "ls-refs": (1, 60, refs, ()),
    }
    out = []
    folder = bed.fresh("lighttpd-fetch")
    with shardgit(bed.store) as ours, http_backend(bed.repository, folder) as theirs:
        for path, (clients, full, body, goals) in asked.items():
            each = bed.size(full, 2)

            def once(
                server: Server, clients: int = clients, each: int = each, body: bytes = body
            ) -> Traffic:
                jobs = [[fetch_of(server.url, body)] * each for _ in range(clients)]
                return measured(server, jobs)

            for server in (ours, theirs):
                measured(server, [[fetch_of(server.url, body)]])
            found = bed.alternate({one.name: partial(once, one) for one in (ours, theirs)})
            mine, other = (side_of(name, some) for name, some in found.items())
            out.append(Row("fetches", path, mine, (other,), goals=goals, how=HOW))
    with shardgit(bed.store, workers=2) as ours, http_backend(bed.repository, folder) as theirs:
        for server in (ours, theirs):
            measured(server, [[fetch_of(server.url, ten)]] * 16)
        out.append(apart(bed, ours, theirs, tip, behind))
    return out


def apart(bed: Bed, ours: Server, theirs: Server, tip: bytes, behind: bytes) -> Row:
    """Fetch the same by requests of which no two are equal: each client has a commit of its own, too."""
    numbers = itertools.count(1)
    each = bed.size(8, 2)

    def once(server: Server) -> Traffic:
        def body() -> bytes:
            return fetch_body([tip], [behind, b"%040x" % next(numbers)], [])

        jobs = [[fetch_of(server.url, body()) for _ in range(each)] for _ in range(16)]
        return measured(server, jobs)

    found = bed.alternate({one.name: partial(once, one) for one in (ours, theirs)})
    mine, other = (side_of(name, some) for name, some in found.items())
    path = "fetch of ten new commits, 16 clients, no two requests equal"
    goals = tuple(Goal(what, at_most=1 / 8) for what in ("cpu", "p50", "p99"))
    return Row("fetches", path, mine, (other,), goals=goals, how=HOW + NEW)
