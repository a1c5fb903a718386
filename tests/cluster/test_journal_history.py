"""Three nodes of a journal on etcd under faults: everybody sees one order of all commits."""

from __future__ import annotations

import asyncio
import random
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from cluster.etcds import running
from cluster.history.checker import check
from cluster.history.nemesis import Called, Fault, Nemesis
from cluster.history.recorder import Recorder, save
from cluster.history.rows import RowClients
from cluster.links import Link

from shardgit.etcd.access import Access
from shardgit.etcd.client import Etcd
from shardgit.journal.bundles import MemoryBundles
from shardgit.journal.etcd import EtcdJournal

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.etcds import Etcds, Member

pytestmark = pytest.mark.cluster
NODES = 3
CLIENTS = 9
SECONDS = 12.0


class Leaders:
    """Kills or stops whoever leads, and brings it back."""

    def __init__(self, etcds: Etcds, etcd: Etcd) -> None:
        self.etcds, self.etcd = etcds, etcd
        self.down: list[Member] = []

    def send(self, number: int) -> None:
        leader = self.etcds.leader(self.etcd)
        self.down.append(leader)
        leader.signal(number)

    def start(self) -> None:
        while self.down:
            self.etcds.start(self.down.pop())

    def go_on(self) -> None:
        while self.down:
            self.down.pop().signal(signal.SIGCONT)


def faults(etcds: Etcds, etcd: Etcd, links: list[Link]) -> list[Fault]:
    """Return what may go wrong: the leader, or one node's lines to all members."""
    leaders = Leaders(etcds, etcd)

    def mend() -> None:
        for link in links:
            link.mend()

    def lose() -> None:  # requests had passed: whoever waits cannot know what became of them
        for link in links:
            link.cut()
        mend()

    def each(how: str) -> None:
        for link in links:
            if how == "cut":
                link.cut()
            else:
                link.hold(there=how != "answers", back=how != "requests")

    return [
        Called("leader killed", lambda: leaders.send(signal.SIGKILL), leaders.start),
        Called("leader stopped", lambda: leaders.send(signal.SIGSTOP), leaders.go_on),
        Called("node cut off", lambda: each("cut"), mend),
        Called("answers held up", lambda: each("answers"), mend),
        Called("answers lost", lambda: each("answers"), lose),
        Called("answers lost", lambda: each("answers"), lose),
        Called("all held up", lambda: each("both"), mend),
    ]


@pytest.mark.parametrize("seed", [1])
def test_commits_and_reads_of_three_nodes_are_linearizable(tmp_path: Path, seed: int) -> None:
    recorder = Recorder()
    dice = random.Random(seed)
    with ExitStack() as opened:
        etcds = opened.enter_context(running(tmp_path / "etcd"))
        links = [Link(member.client) for member in etcds.members]
        for link in links:
            opened.callback(link.close)
        behind = Access(tuple(f"http://{link.target}" for link in links))
        etcd = Etcd(etcds.access())
        opened.callback(etcd.close)
        bundles = MemoryBundles()
        journals = []
        for number in range(NODES):
            access = etcds.access() if number else behind
            journal = EtcdJournal(tmp_path / f"node{number}", access, bundles)
            opened.callback(journal.close)
            journals.append(journal)
        clients = RowClients(journals, recorder, seed)
        nemesis = Nemesis(faults(etcds, etcd, links), dice)
        clients.start(CLIENTS)
        try:
            asyncio.run(nemesis.run(SECONDS, quiet_s=0.7, held_s=1.5))
        finally:
            clients.stop()
        clients.last()
    verdict = check(recorder.history)
    if not verdict.good:
        save(tmp_path / "history.jsonl", recorder.history)
    assert not verdict.violations, str(verdict.violations[0])
    assert verdict.good
    assert recorder.counts["done"]
