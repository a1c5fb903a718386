"""Runs of clients against a cluster that is served: nodes, etcd, the object store and the links between them fail."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from cluster.history.checker import check
from cluster.history.clients import WORKS, Clients, Target, prepare, run_git
from cluster.history.embedded import OBJECTS, Ran
from cluster.history.etcd_runs import Leaders
from cluster.history.nemesis import Called, Fault, Nemesis, Signalled
from cluster.history.recorder import Recorder
from cluster.links import Link
from cluster.nodes import Nodes
from etcds import free_ports, running

from shardgit.client import connect
from shardgit.etcd.client import Etcd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cluster.history.clients import Place
    from etcds import Etcds

NAMES = ("one", "two", "three")
CLIENTS = 8
PORT_TRIES = 60
# A node that is cut off from etcd goes on with fetches over HTTP, by what it has: ls-remote may be stale there.
FRESH = tuple(work for work in WORKS if work != "ls-remote")


class Cluster:
    """Three nodes on ports that stay theirs; the first reaches etcd and the object store by links."""

    def __init__(
        self, folder: Path, etcds: Etcds, url: str, s3_port: int, opened: ExitStack
    ) -> None:
        self.to_etcd = [Link(member.client) for member in etcds.members]
        self.to_store = [Link(s3_port)] if s3_port else []
        for link in (*self.to_etcd, *self.to_store):
            opened.callback(link.close)
        self.nodes = Nodes(folder, etcds.endpoints, url, opened)
        self.nodes.endpoints_of["one"] = tuple(f"http://{link.target}" for link in self.to_etcd)
        for link in self.to_store:
            self.nodes.environment_of["one"] = {"AWS_ENDPOINT_URL": f"http://{link.target}"}
        self.ports = {name: free_ports(5) for name in NAMES}
        # What others ask of the first goes by a link, too.
        self.to_peer = Link(self.ports["one"][4])
        opened.callback(self.to_peer.close)
        self.targets = {
            name: Target(f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
            for name, ports in self.ports.items()
        }
        self.down: list[str] = []

    def start(self, name: str) -> None:
        grpc, http, ssh, admin, peers = self.ports[name]
        more = f'data = "{self.nodes.folder / name}"\nmaintenance_interval_s = 2\n'
        advertise = f'advertise = "{self.to_peer.target}"' if name == "one" else ""
        self.nodes.inside_of[name] = f'listen = "127.0.0.1:{peers}"\n{advertise}'
        words = ("--grpc", f"127.0.0.1:{grpc}", "--http", f"127.0.0.1:{http}")
        more_words = ("--ssh", f"127.0.0.1:{ssh}", "--admin", f"127.0.0.1:{admin}")
        for left in reversed(range(PORT_TRIES)):
            try:
                self.nodes.start(name, *words, *more_words, more=more)
            except AssertionError as error:
                # While a node is down anybody's connection may have its port for a while.
                if "address is in use" not in str(error) or not left:
                    raise
                time.sleep(0.5)
            else:
                return

    def kill(self, dice: random.Random, *, empty: bool = False) -> None:
        name = dice.choice(NAMES)
        self.nodes.kill(name)
        if empty:
            self.nodes.empty(name)
        self.down.append(name)

    def bring_back(self) -> None:
        while self.down:
            self.start(self.down.pop())

    def workers(self) -> list[int]:
        return [one for server in self.nodes.servers.values() for one in server.workers()]


def run_served(folder: Path, seed: int, *, seconds: float, url: str = "", s3_port: int = 0) -> Ran:
    """Serve two repositories from three nodes, and let clients and nemesis work on them for a time."""
    folder.mkdir(exist_ok=True)
    dice = random.Random(seed)
    places = [
        prepare(folder / f"p{n}.git", f"p{n}", commits=int(400 + 250 * seconds), objects=OBJECTS)
        for n in range(2)
    ]
    with ExitStack() as opened:
        etcds = opened.enter_context(running(folder / "etcd"))
        url = url or f"file://{folder}/blocks"
        cluster = Cluster(folder, etcds, url, s3_port, opened)
        for name in NAMES:
            cluster.start(name)
        for name in NAMES:
            json.loads(cluster.nodes.command(name, "cluster", "join", "--json"))
        with connect(cluster.targets["two"].grpc) as client:
            for place in places:
                client.create(place.repository)
        for place in places:
            at = f"http://{cluster.targets['two'].http}/{place.repository}.git"
            run_git(place.folder, "push", "-q", at, "refs/heads/all")
        etcd = Etcd(etcds.access())
        opened.callback(etcd.close)
        chosen = faults(cluster, Leaders(etcds, etcd), dice)
        return asyncio.run(_run(cluster, places, chosen, dice, seconds))


async def _run(
    cluster: Cluster,
    places: Sequence[Place],
    chosen: Sequence[Fault],
    dice: random.Random,
    seconds: float,
) -> Ran:
    recorder = Recorder()
    nemesis = Nemesis(chosen, dice)
    clients = Clients(list(cluster.targets.values()), places, recorder, dice, works=FRESH)
    async with asyncio.TaskGroup() as group:
        group.create_task(clients.run(CLIENTS))
        await nemesis.run(seconds, quiet_s=0.7, held_s=1.5)
        clients.stopping.set()
    await clients.last()
    return Ran(recorder, nemesis, check(recorder.history))


def faults(cluster: Cluster, leaders: Leaders, dice: random.Random) -> list[Fault]:
    """Return what may go wrong."""

    def broken(name: str, links: Sequence[Link], how: Callable[[Link], object]) -> Fault:
        def strike() -> None:
            for link in links:
                how(link)

        def mend() -> None:
            for link in links:
                link.mend()

        return Called(name, strike, mend)

    def held(link: Link) -> None:
        link.hold(there=True, back=True)

    def mute(link: Link) -> None:
        link.hold(back=True)

    both = [*cluster.to_etcd, *cluster.to_store]
    found: list[Fault] = [
        Called("node killed", lambda: cluster.kill(dice), cluster.bring_back),
        Called("node killed", lambda: cluster.kill(dice), cluster.bring_back),
        Called("node lost", lambda: cluster.kill(dice, empty=True), cluster.bring_back),
        Signalled("worker killed", cluster.workers, dice, signal.SIGKILL),
        Signalled("worker stopped", cluster.workers, dice, signal.SIGSTOP),
        Called("leader killed", lambda: leaders.send(signal.SIGKILL), leaders.start),
        Called("leader stopped", lambda: leaders.send(signal.SIGSTOP), leaders.go_on),
        broken("cut off from etcd", cluster.to_etcd, Link.cut),
        broken("etcd hangs", cluster.to_etcd, held),
        broken("etcd's answers held up", cluster.to_etcd, mute),
        broken("cut off from peers", [cluster.to_peer], Link.cut),
        broken("peers hang", [cluster.to_peer], held),
        broken("cut off from all", [*both, cluster.to_peer], Link.cut),
    ]
    if cluster.to_store:
        found += [
            broken("object store away", cluster.to_store, Link.cut),
            broken("object store hangs", cluster.to_store, held),
        ]
    return found
