"""Listing a million refs, and a few among them."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

from bed import Bed, new_store
from generate import many_refs
from result import Row
from servers import Server, http_backend, line, shardgit
from traffic import Traffic, fetch_of, git, measured, new_ref, push_of, side_of

GENERATED = True
HOW = "One worker, protocol v2. git keeps them in packed-refs."


def rows(bed: Bed) -> list[Row]:
    """List all, those under a prefix that few have, and all after a push made one more."""
    count = bed.size(1_000_000, 2_000)
    bare = many_refs(bed.fresh("many-refs") / "many.git", refs=count)
    git(bare, "config", "http.receivepack", "true")
    oid = git(bare, "rev-parse", "HEAD")
    store = new_store(bed.fresh("many-refs-store") / "store", {"many": bare})
    head = line(b"command=ls-refs\n") + b"0001" + line(b"symrefs\n")
    whole = head + b"0000"
    few = head + line(b"ref-prefix refs/heads/\n") + b"0000"
    folder = bed.fresh("lighttpd-refs")
    made: dict[str, int] = defaultdict(int)

    def once(server: Server, body: bytes, each: int, *, new: bool = False) -> Traffic:
        if new:
            made[server.name] += 1
            measured(server, [[push_of(server.url, new_ref(oid, made[server.name]))]])
        return measured(server, [[fetch_of(server.url, body)] * each])

    out = []
    with shardgit(store, name="many") as ours, http_backend(bare, folder) as theirs:
        for path, body, each, new in (
            (f"ls-refs of {count:,} refs", whole, 2, False),
            (f"ls-refs of a prefix among {count:,} refs", few, bed.size(100, 2), False),
            (f"ls-refs of {count:,} refs, one of them new", whole, 1, True),
        ):
            sides = {one.name: partial(once, one, body, each, new=new) for one in (ours, theirs)}
            mine, other = (side_of(name, some) for name, some in bed.alternate(sides).items())
            out.append(Row("refs", path, mine, (other,), how=HOW))
    return out
