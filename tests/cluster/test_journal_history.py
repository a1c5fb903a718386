"""Three nodes of a journal on etcd under faults: everybody sees one order of all commits."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cluster.etcds import running
from cluster.history.checker import check
from cluster.history.nemesis import Called, Fault, Nemesis
from cluster.history.operation import Outcome
from cluster.history.recorder import Recorder, load, save
from cluster.history.rows import RowClients
from cluster.links import Link

from shardgit.etcd.access import Access
from shardgit.etcd.client import Etcd
from shardgit.journal.bundles import FileBundles, MemoryBundles
from shardgit.journal.etcd import EtcdJournal

if TYPE_CHECKING:
    from cluster.etcds import Etcds, Member

pytestmark = pytest.mark.cluster
NODES = 3
CHILD = Path(__file__).parent / "history" / "child.py"
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


class Children:
    """Processes of nodes, of which any may be killed; another one takes its place."""

    def __init__(self, folder: Path, etcds: Etcds, dice: random.Random) -> None:
        self.folder, self.etcds, self.dice = folder, etcds, dice
        self.running: list[tuple[str, subprocess.Popen[str]]] = []
        self.started = 0
        self.begun: set[int] = set()
        self.stopped: list[subprocess.Popen[str]] = []

    def start(self, node: str) -> None:
        self.started += 1
        words = [str(self.folder), node, str(100 * self.started), str(self.started)]
        with (self.folder / f"child{self.started}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, str(CHILD), *words, *self.etcds.endpoints],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.running.append((node, process))

    def kill(self) -> None:
        node, process = self.running.pop(self.dice.randrange(len(self.running)))
        assert process.poll() is None, "a child ended by itself"
        process.kill()
        self._reap(process)
        self.start(node)

    def stop(self) -> None:
        _, process = self.dice.choice(self.running)
        process.send_signal(signal.SIGSTOP)
        self.stopped.append(process)

    def go_on(self) -> None:
        while self.stopped:
            self.stopped.pop().send_signal(signal.SIGCONT)

    def end(self) -> None:
        while self.running:
            _, process = self.running.pop()
            process.kill()
            self._reap(process)

    def await_all(self) -> None:
        for _, process in self.running:
            assert process.stdout is not None
            if process.pid not in self.begun:
                while (line := process.stdout.readline()) != "begun\n":  # but what it logs
                    assert line, "a child ended by itself"
                self.begun.add(process.pid)

    def _reap(self, process: subprocess.Popen[str]) -> None:
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_nothing_is_lost_or_told_twice_when_processes_of_nodes_die(tmp_path: Path) -> None:
    dice = random.Random(1)
    with ExitStack() as opened:
        etcds = opened.enter_context(running(tmp_path / "etcd"))
        children = Children(tmp_path, etcds, dice)
        opened.callback(children.end)
        for node in ("node0", "node0", "node1"):  # two that share a replica, one alone
            children.start(node)
        children.await_all()
        etcd = Etcd(etcds.access())
        opened.callback(etcd.close)
        leaders = Leaders(etcds, etcd)
        chosen: list[Fault] = [
            Called("process killed", children.kill, lambda: None),
            Called("process killed", children.kill, lambda: None),
            Called("process stopped", children.stop, children.go_on),
            Called("leader killed", lambda: leaders.send(signal.SIGKILL), leaders.start),
        ]
        asyncio.run(Nemesis(chosen, dice).run(SECONDS, quiet_s=1.0))
        children.await_all()
        children.end()
        recorder = Recorder()
        bundles = FileBundles(tmp_path / "bundles")
        journal = EtcdJournal(tmp_path / "node2", etcds.access(), bundles)
        opened.callback(journal.close)
        RowClients([journal], recorder, 0).last()
    history = list(recorder.history)
    for file in tmp_path.glob("history-*.jsonl"):
        history += load(file)
    verdict = check(history)
    assert not verdict.violations, str(verdict.violations[0])
    assert verdict.good
    assert any(one.outcome is Outcome.DONE and one.puts for one in history)


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
