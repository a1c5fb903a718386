"""Pushes of one commit, acknowledged and durable, from one client and from 16."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from bed import Bed, new_store
from result import Goal, Row
from servers import Server, http_backend, shardgit
from traffic import Traffic, git, measured, push_bodies, push_of, side_of

if TYPE_CHECKING:
    from pathlib import Path

GENERATED = True
HOW = (
    "A push is two requests (the refs, the pack) on a connection that stays open, durable when it is answered. Each"
    " client has a repository of its own; two workers of ours serve them. http-backend runs without fsck, ours with it."
)


def rows(bed: Bed) -> list[Row]:
    """Push from one client and from 16; what a client's first push costs is a small part of a round."""
    each = {1: bed.size(40, 3), bed.size(16, 4): bed.size(60, 2)}
    most = max(each.values()) * bed.rounds
    source, bodies = push_bodies(bed.fresh("push-source"), most)
    return [pushes(bed, source, bodies, clients=clients, each=each[clients]) for clients in each]


def pushes(bed: Bed, source: Path, bodies: list[bytes], *, clients: int, each: int) -> Row:
    """Push one commit after another from several clients."""
    names = [f"r{number}" for number in range(clients)]
    root = bed.fresh("push-root")
    store = new_store(bed.fresh("push-store") / "store", dict.fromkeys(names, source))
    for name in names:
        subprocess.run(
            ["git", "clone", "-q", "--bare", str(source), str(root / f"{name}.git")], check=True
        )
        git(root / f"{name}.git", "config", "http.receivepack", "true")
        git(root / f"{name}.git", "config", "gc.auto", "0")
    with ExitStack() as held:
        ours = held.enter_context(shardgit(store, name=names[0], workers=2))
        theirs = held.enter_context(
            http_backend(root / f"{names[0]}.git", bed.fresh("lighttpd-push"))
        )
        done = {ours.name: 0, theirs.name: 0}

        def once(server: Server) -> Traffic:
            some = bodies[done[server.name] : done[server.name] + each]
            done[server.name] += each
            urls = [server.url.replace(f"/{names[0]}.git", f"/{name}.git") for name in names]
            return measured(server, [[push_of(url, body) for body in some] for url in urls])

        found = bed.alternate({one.name: partial(once, one) for one in (ours, theirs)})
    mine, other = (side_of(name, some) for name, some in found.items())
    return Row(
        "pushes",
        f"one-commit push, {clients} client{'s' * (clients > 1)}",
        mine,
        (other,),
        goals=(Goal("rate", at_least=10.0),) if clients > 1 else (),
        limit="fsync",
        limit_share=bed.share("fsync", mine.count, mine.wall_s),
        how=HOW + " The limit is one fsync after another; pushes that wait together share one.",
    )
