"""Runs of clients against one embedded server whose workers and links fail."""

from __future__ import annotations

import asyncio
import random
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.history.checker import Verdict, check
from cluster.history.clients import Clients, Place, Target, prepare, run_git
from cluster.history.link import Link, State
from cluster.history.nemesis import Broken, Fault, Nemesis, Signalled
from cluster.history.recorder import Recorder
from served import Server, serving

from shardgit.node import create_store, open_store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OBJECTS = (1, 1, 2, 3)  # refs of each


@dataclass(frozen=True, slots=True)
class Ran:
    """What one run did and found."""

    recorder: Recorder
    nemesis: Nemesis
    verdict: Verdict

    def __str__(self) -> str:
        """Counts, on a line."""
        counts = {**self.recorder.counts, **{f"x {k}": v for k, v in self.nemesis.counts.items()}}
        shown = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        return f"{shown}; {self.verdict.objects} objects, {self.verdict.steps} steps"


def run(folder: Path, seed: int, *, seconds: float, clients: int = 8) -> Ran:
    """Serve a store of two repositories and let clients and nemesis work on it for a time."""
    folder.mkdir()
    places = [
        prepare(folder / f"p{n}.git", f"p{n}", commits=int(400 + 250 * seconds), objects=OBJECTS)
        for n in range(2)
    ]
    create_store(folder / "data", shards=2)
    with open_store(folder / "data", threads=1) as store:
        for place in places:
            store.create_repository(place.repository)
    with serving(folder / "data", "--workers", "2") as server:
        for place in places:
            run_git(place.folder, "push", "-q", server.url(place.repository), "refs/heads/all")
        return asyncio.run(_run(server, places, random.Random(seed), seconds, clients))


async def _run(
    server: Server, places: Sequence[Place], dice: random.Random, seconds: float, count: int
) -> Ran:
    recorder = Recorder()
    async with AsyncExitStack() as stack:
        links = [
            await stack.enter_async_context(Link(address)) for address in (server.grpc, server.http)
        ]
        # One way through links, one straight: what is cut off here is seen there.
        targets = [
            Target(links[0].address, links[1].address),
            Target(server.grpc, server.http),
        ]
        faults: list[Fault] = [
            Signalled("kill -9", server.workers, dice, signal.SIGKILL),
            Signalled("kill -9", server.workers, dice, signal.SIGKILL),
            Signalled("stop", server.workers, dice, signal.SIGSTOP),
            Broken("cut", links, State.CUT),
            Broken("hang", links, State.HUNG),
            Broken("slow", links, State.SLOW, delay_s=0.05),
            Broken("mute", links, State.MUTE),
        ]
        nemesis = Nemesis(faults, dice)
        clients = Clients(targets, places, recorder, dice)
        async with asyncio.TaskGroup() as group:
            group.create_task(clients.run(count))
            await nemesis.run(seconds)
            clients.stopping.set()
        await clients.last()
    return Ran(recorder, nemesis, check(recorder.history))
