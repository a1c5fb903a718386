"""A real server under real clients, whose processes are killed, stopped and started again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from served import Server, clean_environment

import shardgit
from shardgit.errors import ShardgitError
from shardgit.node import create_store, open_store
from shardgit.operate.verify import verify_repository
from shardgit.service.forks import fork
from shardgit.service.repositories import Repositories

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shardgit.oid import ObjectId
    from shardgit.service.store import Store

START_S = 90.0
STOP_MAX_S = 2.0
FAULTS = (
    "receive.before_commit",
    "receive.after_commit",
    "commit.before_commit",
    "commit.after_commit",
    "journal.before_commit",
    "journal.after_commit",
    "journal.before_commit:2:sleep",
    "journal.before_commit:4:fail",
    "settle.before_commit",
    "settle.after_commit",
)


def git(folder: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run git; the caller looks at the code."""
    return subprocess.run(
        ["git", "-c", "gc.auto=0", "-C", str(folder), *words],
        env=clean_environment(),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def sure(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command printed; AssertionError when it failed."""
    assert done.returncode == 0, f"{done.args}: {done.stderr}"
    return done.stdout.strip()


@dataclass
class Branch:
    """One client's branch: what was acknowledged, and what may have happened."""

    repository: str
    ref: str
    acknowledged: str = ""
    trying: set[str] = field(default_factory=set)
    pushes: int = 0
    refused: int = 0


class Load:
    """A server, its clients and its killer."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.dice = random.Random(seed)
        self.data = folder / "data"
        self.server: Server | None = None
        self.stopping = threading.Event()
        self.errors: list[str] = []
        self.kills: Counter[str] = Counter()
        self.branches: list[Branch] = []
        self.fsck = 0
        folder.mkdir(parents=True)
        create_store(self.data, shards=2)
        with open_store(self.data, threads=1) as store:
            store.create_repository("demo")
            store.create_repository("other")
            fork(store, "demo", "fork")

    # ---- the server ----

    def start(self, fault: str = "") -> None:
        """Start the server, with workers that meet ``fault``."""
        ports = [w for key in ("http", "ssh", "grpc", "admin") for w in (f"--{key}", "127.0.0.1:0")]
        log = self.folder / f"server-{sum(self.kills.values())}.log"
        words = ["serve", "--json", "--data", str(self.data), "--workers", "2", *ports]
        faulty = {"SHARDGIT_FAULT": fault} if fault else {}
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "shardgit", *words],
                env={**clean_environment(), **faulty},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.server = Server(process, log)

    def kill(self, what: str) -> None:
        """Kill workers, the supervisor or all at once; where the supervisor died, start anew."""
        server = self.server
        assert server is not None
        workers = _alive(server.workers())
        if what == "worker" and workers:
            _signal(self.dice.choice(workers), signal.SIGKILL)
        elif what == "stop" and workers:
            worker = self.dice.choice(workers)
            _signal(worker, signal.SIGSTOP)
            time.sleep(self.dice.random() * STOP_MAX_S)
            _signal(worker, signal.SIGCONT)
        elif what in ("supervisor", "all", "fault"):
            for pid in [server.process.pid, *(workers if what == "all" else [])]:
                _signal(pid, signal.SIGKILL)
            self.end(workers)
            self.start(self.dice.choice(FAULTS) if what == "fault" else "")
        self.kills[what] += 1

    def end(self, workers: list[int]) -> None:
        """Wait until a killed server is gone, its workers too."""
        server = self.server
        assert server is not None
        server.process.wait(timeout=30)
        assert server.process.stdout is not None
        server.process.stdout.close()
        until = time.monotonic() + START_S
        while any(_runs(pid) for pid in workers):
            assert time.monotonic() < until, "workers outlive their supervisor"
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the clients' server for good."""
        server = self.server
        assert server is not None
        workers = _alive(server.workers())
        assert server.stop() == 0
        self.end(workers)

    # ---- clients ----

    def pusher(self, number: int, repository: str) -> None:
        """Push commit after commit over HTTP, to a branch of its own."""
        branch = Branch(repository, f"refs/heads/push{number}")
        self.branches.append(branch)
        work = self.folder / f"work{number}"
        sure(git(self.folder, "init", "-q", str(work)))
        tip = ""
        while not self.stopping.is_set():
            branch.pushes += 1
            blob = sure(
                git(work, "hash-object", "-w", "--stdin", stdin=f"{number} {branch.pushes}")
            )
            tree = sure(git(work, "mktree", stdin=f"100644 blob {blob}\tfile\n"))
            parent = ["-p", tip] if tip else []
            commit = sure(git(work, "commit-tree", tree, *parent, "-m", f"{branch.pushes}"))
            branch.trying.add(commit)
            server = self.server
            assert server is not None
            url = f"http://{server.http}/{repository}.git"
            pushed = git(work, "push", "-q", "--porcelain", url, f"+{commit}:{branch.ref}")
            if pushed.returncode == 0:
                branch.acknowledged, branch.trying, tip = commit, set(), commit
            else:
                branch.refused += 1
                time.sleep(0.4)

    def caller(self, number: int, repository: str) -> None:
        """Commit over gRPC, to a branch of its own."""
        branch = Branch(repository, f"refs/heads/call{number}")
        self.branches.append(branch)
        while not self.stopping.is_set():
            server = self.server
            assert server is not None
            branch.pushes += 1
            name = f"c{branch.pushes}"
            try:
                with shardgit.connect(server.grpc) as store:
                    made = store.repo(repository).commit(
                        branch.ref,
                        message=name,
                        author="A <a@b.c>",
                        files={"file": name.encode()},
                    )
            except (ShardgitError, OSError):
                branch.refused += 1
                branch.trying.add("?")
                time.sleep(0.4)
            else:
                branch.acknowledged, branch.trying = made.id.hex(), set()

    def reader(self) -> None:
        """Clone, and let git check every byte."""
        number = 0
        while not self.stopping.is_set():
            number += 1
            server = self.server
            assert server is not None
            target = self.folder / f"clone{number}"
            url = f"http://{server.http}/demo.git"
            cloned = git(self.folder, "clone", "-q", "--mirror", url, str(target))
            if cloned.returncode == 0:
                sure(git(target, "fsck", "--strict"))
                self.fsck += 1
            subprocess.run(["rm", "-rf", str(target)], check=True)
            time.sleep(0.4)

    def run(self, plan: list[str]) -> None:
        """Let clients work while the killer goes by its plan, then check what is there."""
        self.start()
        works: list[tuple[Callable[..., None], tuple[object, ...]]] = [
            (self.pusher, (0, "demo")),
            (self.pusher, (1, "fork")),
            (self.pusher, (2, "other")),
            (self.caller, (0, "demo")),
            (self.caller, (1, "fork")),
            (self.reader, ()),
        ]
        threads = [
            threading.Thread(target=self._guard, args=(work, words)) for work, words in works
        ]
        for thread in threads:
            thread.start()
        try:
            for what in plan:
                time.sleep(self.dice.random() * 1.5)
                if self.errors:
                    break
                self.kill(what)
            time.sleep(1)
        finally:
            self.stopping.set()
            for thread in threads:
                thread.join()
        assert not self.errors, self.errors[0]
        self.check_clones()
        self.stop()
        with open_store(self.data, threads=1) as store:
            self.check_store(store)

    def _guard(self, work: Callable[..., None], words: tuple[object, ...]) -> None:
        try:
            work(*words)
        except Exception as error:
            self.errors.append(f"{work.__name__}: {error!r}")

    # ---- checks ----

    def check_clones(self) -> None:
        """Clone every repository over the wire; git judges."""
        server = self.server
        assert server is not None
        for name in ("demo", "fork", "other"):
            target = self.folder / f"last-{name}"
            for left in range(40, -1, -1):  # workers may be on their way up
                done = git(
                    self.folder,
                    "clone",
                    "-q",
                    "--mirror",
                    f"http://{server.http}/{name}.git",
                    str(target),
                )
                if done.returncode == 0:
                    break
                assert left, done.stderr
                subprocess.run(["rm", "-rf", str(target)], check=True)
                time.sleep(0.5)
            sure(git(target, "fsck", "--strict", "--full"))
            self.fsck += 1
            for branch in self.branches:
                if branch.repository == name:
                    self._check(
                        branch, git(target, "rev-parse", "--verify", "-q", branch.ref).stdout
                    )

    def _check(self, branch: Branch, found: str) -> None:
        now = found.strip()
        if now == branch.acknowledged or now in branch.trying:
            return
        assert "?" in branch.trying, (
            f"{branch.repository} {branch.ref} is {now or 'gone'}, was acknowledged at {branch.acknowledged}"
        )
        if branch.acknowledged:  # what was cut off stands on what was acknowledged
            target = self.folder / f"last-{branch.repository}"
            sure(git(target, "merge-base", "--is-ancestor", branch.acknowledged, now))

    def check_store(self, store: Store) -> None:
        """Check the store with nobody at it: objects, logs and refs."""
        for info in Repositories(store).list():
            assert verify_repository(store, info.name).bad == ()
            with store.journal.snapshot() as snapshot:
                record = store.repository(snapshot, info.name)
                log = list(store.refs.log(snapshot, record))[::-1]
                refs = {r.name: r.target for r in store.refs.list(snapshot, record) if r.target}
            assert [entry.sequence for entry in log] == list(range(1, len(log) + 1))
            said: dict[bytes, ObjectId | None] = {}
            for entry in log:
                for change in entry.changes:
                    assert change.name == b"HEAD" or said.get(change.name) == (
                        change.old.target if change.old else None
                    )
                    said[change.name] = change.new.target if change.new else None
            assert {name: oid for name, oid in said.items() if oid} == refs


def _alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _signal(pid: int, sign: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sign)
