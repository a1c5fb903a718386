"""Three nodes over etcd and S3: against one node, against one machine, against what they have on their disks."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import hosts
import nodes
from bed import new_store
from discard import clone_request, discard_each, discard_many
from load import run_each
from measure import children_of, cpu_of
from result import Cost, Goal, Row, Side
from servers import clone_body, shardgit, tips
from traffic import (
    Traffic,
    fetch_body,
    fetch_of,
    git,
    measured,
    push_bodies,
    push_of,
    side_of,
    whole_fetch_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bed import Bed
    from load import Exchange
    from nodes import Node
    from servers import Server

HOST_BYTES_PER_S = 40 << 20  # 320 Mbit/s, less than the cores can send
CLONERS = 6
PUSHERS = 96
MIB = 1 << 20


def rows(bed: Bed) -> list[Row]:
    """Measure what can be measured here; without etcd and weed nothing."""
    if not nodes.can():
        sys.stderr.write("cluster: .ci/cluster-setup brings etcd and weed\n")
        return []
    found: list[Row] = []
    with nodes.cluster(bed.fresh("cluster"), 3) as three:
        three[0].command(
            *("repo", "import", "bench", str(bed.repository), "--data", str(three[0].folder))
        )
        found += [cold(bed, three), *warm_fetch(bed, three[2])]
        found += pushes(bed, three)
    if hosts.can():
        with (
            hosts.hosts(3) as places,
            nodes.cluster(bed.fresh("cluster-hosts"), 3, places=places) as three,
        ):
            for place in places:
                place.hold_to(HOST_BYTES_PER_S)
            found.append(bandwidth(bed, three))
            found.append(cold(bed, three, shaped=True))
    else:
        sys.stderr.write("cluster: hosts of their own take root, ip and tc\n")
    return found


def clone(server: Server) -> Cost:
    """Clone once, all thrown away."""
    begun = time.monotonic()
    discard_many(server.url, [clone_request(server.url, clone_body(tips(server.url)))])
    return Cost(time.monotonic() - begun, 0.0)


def cold(bed: Bed, three: Sequence[Node], *, shaped: bool = False) -> Row:
    """Clone from nodes that were all emptied, from the same when it has the blocks, and carry these blocks alone."""
    cold_costs, warm_costs, transfers, requests = [], [], [], []
    size = 0
    for _ in range(bed.size(3 if shaped else bed.rounds, 1)):
        for node in three:
            node.empty()
        server = three[-1].server("bench")
        before = gets(three)
        cold_costs.append(clone(server))
        requests.append(gets(three) - before)
        warm_costs.append(clone(server))
        transfers.append(three[-1].carry_blocks())
        request = clone_request(server.url, clone_body(tips(server.url)))
        size = discard_many(server.url, [request])[0]
    allowed = [
        Cost(2 * warm.wall_s + wall, 0.0)
        for warm, (wall, _) in zip(warm_costs, transfers, strict=True)
    ]
    ours = Side.of("emptied nodes", cold_costs, size_bytes=size)
    peers = (
        Side.of("twice the same, warm, and the transfer", allowed, size_bytes=size),
        Side.of("the same, warm", warm_costs, size_bytes=size),
    )
    how = (
        f"One clone from a node when the folders of all three were removed, and one behind it: {max(requests):.0f}"
        f" requests to S3 for {size / MIB:.0f} MiB of pack, {max(requests) / (size / MIB + 20):.2f} of one for each MiB"
        f" and 20. The transfer is the bare time to get the {transfers[0][1] / MIB:.0f} MiB of blocks from the S3"
        " server, 32 side by side."
    )
    path = "cold clone"
    if shaped:
        path += ", hosts"
        how += f" Each node is a host of its own held to {HOST_BYTES_PER_S / MIB:.0f} MiB/s."
    else:
        how += " Nodes, etcd, S3 and client share the two cores."
    goals = (Goal("wall", at_most=1.0, peer=peers[0].name),)
    return Row("cluster", path, ours, peers, goals=goals, how=how)


def gets(some: Sequence[Node]) -> float:
    """Return how often nodes have asked S3 for something since they were started."""
    return sum(n.counted("shardgit_object_store_requests_total", 'operation="get"') for n in some)


def warm_fetch(bed: Bed, node: Node) -> list[Row]:
    """Fetch ten new commits from a node and from one machine."""
    tip = git(bed.repository, "rev-parse", "HEAD")
    behind = git(bed.repository, "rev-parse", "HEAD~10")
    body = fetch_body([tip], [behind], [])
    ways = (
        (
            "fetch of ten new commits, warm",
            whole_fetch_of,
            "One client; capabilities, HEAD and the pack are asked for. A node of a cluster asks etcd once, for refs.",
            (Goal("p50", at_most=1.3),),
        ),
        (
            "pack of ten new commits, warm",
            fetch_of,
            "The last of these requests alone. It names ids, and etcd is asked only when one is missing.",
            (),
        ),
    )
    rows = []
    with shardgit(bed.store) as alone:
        servers = {"a node of three": node.server("bench"), "one machine": alone}
        for path, exchange_of, how, goals in ways:

            def once(server: Server, exchange_of: Callable[..., Exchange] = exchange_of) -> Traffic:
                return measured(server, [[exchange_of(server.url, body)] * bed.size(40, 2)])

            for server in servers.values():
                once(server)
            found = bed.alternate({name: partial(once, one) for name, one in servers.items()})
            mine, other = (side_of(name, some) for name, some in found.items())
            rows.append(Row("cluster", path, mine, (other,), goals=goals, how=how))
    return rows


def pushes(bed: Bed, three: Sequence[Node]) -> list[Row]:
    """Push small commits to many repositories, over all nodes; and to one machine."""
    clients, each = bed.size(PUSHERS, 6), bed.size(20, 2)
    source, bodies = push_bodies(bed.fresh("cluster-pushes"), each * (bed.rounds + 1))
    names = [f"r{number}" for number in range(clients)]
    for name in names:
        three[0].command("repo", "import", name, str(source), "--data", str(three[0].folder))
    store = new_store(bed.fresh("cluster-alone") / "store", dict.fromkeys(names, source))
    with shardgit(store, name=names[0], workers=2) as alone:
        done = {"three nodes": 0, "one machine, two workers": 0}
        counted = {"txns": 0.0, "bundles": 0.0, "pushes": 0}

        def take(name: str) -> list[bytes]:
            some = bodies[done[name] : done[name] + each]
            done[name] += each
            return some

        def on_three() -> Traffic:
            some = take("three nodes")
            before = totals(three)
            urls = [three[n % 3].server(name).url for n, name in enumerate(names)]
            begun = time.monotonic()
            spent, latencies = on_all(urls, some)
            wall = time.monotonic() - begun
            after = totals(three)
            counted["txns"] += after[0] - before[0]
            counted["bundles"] += after[1] - before[1]
            counted["pushes"] += clients * each
            return Traffic(Cost(wall, spent), latencies)

        def on_all(urls: list[str], some: list[bytes]) -> tuple[float, tuple[float, ...]]:
            pids = [pid for node in three if node.process for pid in children_of(node.process.pid)]
            before = sum(map(cpu_of, pids))
            jobs = [
                (
                    three[n % 3].address,
                    three[n % 3].ports[1],
                    [push_of(url, body) for body in some],
                )
                for n, url in enumerate(urls)
            ]
            times = run_each([((host, port), job) for host, port, job in jobs])
            return sum(map(cpu_of, pids)) - before, tuple(times)

        def on_one() -> Traffic:
            some = take("one machine, two workers")
            urls = [alone.url.replace(f"/{names[0]}.git", f"/{name}.git") for name in names]
            return measured(alone, [[push_of(url, body) for body in some] for url in urls])

        found = bed.alternate({"three nodes": on_three, "one machine, two workers": on_one})
    mine, other = (side_of(name, some) for name, some in found.items())
    total = counted["pushes"]
    how = (
        f"{clients} clients, each with a repository of its own, a third of them at each node; etcd, the S3 server and"
        f" the nodes share the two cores. A push took {counted['txns'] / total:.2f} transactions of etcd and"
        f" {counted['bundles'] / total:.3f} objects in S3."
    )
    goals = (Goal("rate", at_least=1_000.0, absolute=True),)
    return [
        Row(
            "cluster",
            "one-commit pushes to many repositories",
            mine,
            (other,),
            goals=goals,
            how=how,
        )
    ]


def totals(three: Sequence[Node]) -> tuple[float, float]:
    """Return the transactions of etcd and the bundles of all nodes."""
    txns = sum(n.counted("shardgit_journal_transactions_total", "outcome=") for n in three)
    bundles = sum(n.counted("shardgit_journal_bundles_total", 'outcome="done"') for n in three)
    return txns, bundles


def bandwidth(bed: Bed, three: Sequence[Node]) -> Row:
    """Clone one repository from three nodes and from one, each held to the same bandwidth."""
    three[0].command(
        *("repo", "import", "bench", str(bed.repository), "--data", str(three[0].folder))
    )
    servers = [node.server("bench") for node in three]
    body = clone_body(tips(servers[0].url))

    def once(some: Sequence[Server]) -> tuple[Cost, int]:
        urls = [some[number % len(some)].url for number in range(CLONERS)]
        begun = time.monotonic()
        sizes = discard_each([(url, clone_request(url, body)) for url in urls])
        return Cost(time.monotonic() - begun, 0.0), sum(sizes)

    once(servers)  # warm
    found = bed.alternate(
        {"three nodes": partial(once, servers), "one node": partial(once, servers[:1])}
    )
    mine, other = (
        Side.of(name, [cost for cost, _ in some], size_bytes=some[0][1], count=CLONERS)
        for name, some in found.items()
    )
    how = (
        f"{CLONERS} clients clone one repository and throw it away. Each node is a host of its own (a network"
        f" namespace) that sends and receives {HOST_BYTES_PER_S / MIB:.0f} MiB/s at most; nodes talk over TLS."
    )
    goals = (Goal("throughput", at_least=2.5),)
    return Row("cluster", "clones of one repository", mine, (other,), goals=goals, how=how)
