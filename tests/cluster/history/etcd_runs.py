"""Runs of clients against nodes of a journal on etcd, whose members, links and processes fail."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.history.checker import check
from cluster.history.embedded import Ran
from cluster.history.nemesis import Called, Fault, Nemesis
from cluster.history.recorder import Recorder, load
from cluster.history.rows import RowClients
from cluster.links import Link
from etcds import running

from shardgit.etcd.access import Access
from shardgit.etcd.client import Etcd
from shardgit.journal.bundles import FileBundles, MemoryBundles
from shardgit.journal.etcd import EtcdJournal

if TYPE_CHECKING:
    from etcds import Etcds, Member

NODES = 3
CLIENTS = 9
CHILD = Path(__file__).parent / "child.py"


def run_nodes(folder: Path, seed: int, *, seconds: float) -> Ran:
    """Let clients work on three nodes in this process; the leader fails, and one node's lines."""
    recorder = Recorder()
    with ExitStack() as opened:
        etcds = opened.enter_context(running(folder / "etcd"))
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
            journal = EtcdJournal(folder / f"node{number}", access, bundles)
            opened.callback(journal.close)
            journals.append(journal)
        clients = RowClients(journals, recorder, seed)
        nemesis = Nemesis(faults(etcds, etcd, links), random.Random(seed))
        clients.start(CLIENTS)
        try:
            asyncio.run(nemesis.run(seconds, quiet_s=0.7, held_s=1.5))
        finally:
            clients.stop()
        clients.last()
    return Ran(recorder, nemesis, check(recorder.history))


def run_processes(folder: Path, seed: int, *, seconds: float) -> Ran:
    """Let clients work in three processes of two nodes, which die and are stopped; the leader dies too."""
    dice = random.Random(seed)
    recorder = Recorder()
    with ExitStack() as opened:
        etcds = opened.enter_context(running(folder / "etcd"))
        children = Children(folder, etcds, dice)
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
        nemesis = Nemesis(chosen, dice)
        asyncio.run(nemesis.run(seconds, quiet_s=1.0))
        children.await_all()
        children.end()
        bundles = FileBundles(folder / "bundles")
        journal = EtcdJournal(folder / "node2", etcds.access(), bundles)
        opened.callback(journal.close)
        RowClients([journal], recorder, 0).last()
    for file in folder.glob("history-*.jsonl"):
        for one in load(file):
            recorder.count(one.outcome.value if one.puts else "read", one)
    return Ran(recorder, nemesis, check(recorder.history))


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
