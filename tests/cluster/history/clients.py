"""Clients of refs over gRPC and git, whose every call goes into a history."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.history.operation import Touch, Value
from cluster.history.outcomes import Told, told, told_by_git
from served import clean_environment

import shardgit.aio
from shardgit.errors import RefMissing, ShardgitError
from shardgit.oid import ObjectId

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

    from cluster.history.recorder import Call, Recorder

OPERATION_S = 8.0
PAUSE_S = 0.004  # between a client's operations, at most
WORKS = ("get", "get", "list", "list", "update", "update", "update", "delete", "push", "ls-remote")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a node listens, host:port."""

    grpc: str
    http: str


@dataclass
class Place:
    """A repository that has all of ``commits``, also in the folder that git pushes from.

    Each of ``objects`` is the refs that are changed together, of one folder of refs: ``refs/heads/o0/0`` ...
    """

    repository: str
    folder: Path
    commits: list[bytes]
    objects: list[list[str]]

    def fresh(self) -> bytes | None:
        """Return a commit that no ref was ever at; None when there is no more."""
        return self.commits.pop() if self.commits else None


def prepare(folder: Path, repository: str, *, commits: int, objects: Sequence[int]) -> Place:
    """Make a repository of git with a chain of commits as refs/heads/all; each object has that many refs."""
    out: list[bytes] = []
    for number in range(commits):
        word = b"%s %d" % (repository.encode(), number)
        out.append(
            b"commit refs/heads/all\ncommitter A <a@b.c> %d +0000\n" % (1_700_000_000 + number)
        )
        data = b"data %d\n%s\n" % (len(word), word)
        out += [data, b"M 100644 inline file\n", data]
    run_git(folder.parent, "init", "-q", "--bare", str(folder))
    run_git(folder, "fast-import", "--quiet", stdin=b"".join(out))
    ids = run_git(folder, "rev-list", "refs/heads/all").stdout.split()
    names = [
        [f"refs/heads/o{number}/{part}" for part in range(count)]
        for number, count in enumerate(objects)
    ]
    return Place(repository, folder, [bytes.fromhex(oid.decode()) for oid in ids], names)


def run_git(folder: Path, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run git where nothing may fail."""
    done = subprocess.run(
        ["git", "-c", "gc.auto=0", "-C", str(folder), *words],
        env=clean_environment(),
        input=stdin,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


@dataclass
class Clients:
    """Clients that read and change refs of places, at any of the targets, until they are told to stop."""

    targets: Sequence[Target]
    places: Sequence[Place]
    recorder: Recorder
    dice: random.Random
    works: Sequence[str] = WORKS
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, count: int) -> None:
        """Let so many clients work. What is a mistake of the server's is raised."""
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(self._client(number))

    async def last(self) -> None:
        """Read every ref at every target: what was acknowledged must be there."""
        for number, target in enumerate(self.targets):
            one = _Client(self, -1 - number, {target.grpc: shardgit.aio.connect(target.grpc)})
            for place in self.places:
                for names in place.objects:
                    for _ in range(60):  # servers may be on their way up
                        if await one.list_refs(place, names, target):
                            break
                        await asyncio.sleep(0.25)
                    else:
                        raise AssertionError(f"{target.grpc} does not answer")
            await one.close()

    async def _client(self, number: int) -> None:
        links = {target.grpc: shardgit.aio.connect(target.grpc) for target in self.targets}
        one = _Client(self, number, links)
        try:
            while not self.stopping.is_set():
                place = self.dice.choice(self.places)
                target = self.dice.choice(self.targets)
                await one.work(self.dice.choice(self.works), place, target)
                await asyncio.sleep(self.dice.random() * PAUSE_S)
        finally:
            await one.close()


class _Client:
    """One client: what it saw last, and its connections."""

    def __init__(
        self, clients: Clients, number: int, links: dict[str, shardgit.aio.Client]
    ) -> None:
        self.recorder = clients.recorder
        self.dice = clients.dice
        self.number = number
        self.links = links
        self.seen: dict[str, Value] = {}

    async def close(self) -> None:
        for link in self.links.values():
            await link.close()

    async def work(self, what: str, place: Place, target: Target) -> None:
        names = self.dice.choice(place.objects)
        if what == "get":
            await self.get_ref(place, self.dice.choice(names), target)
        elif what == "list":
            await self.list_refs(place, names, target)
        elif what == "ls-remote":
            await self.ls_remote(place, names, target)
        elif any(_key(place, name) not in self.seen for name in names):
            await self.list_refs(place, names, target)
        else:
            expects, puts = self._change(place, names, delete=what == "delete")
            if not puts:
                return
            change = self.push if what == "push" else self.update
            await change(place, names, target, expects, puts)

    # ---- reads ----

    async def get_ref(self, place: Place, name: str, target: Target) -> None:
        """GetRef."""
        call = self.recorder.call(self.number)
        try:
            async with asyncio.timeout(OPERATION_S):
                found = await self.links[target.grpc].repo(place.repository).ref(name)
            self._saw(call, [Touch(_key(place, name), found.target)])
        except RefMissing:
            self._saw(call, [Touch(_key(place, name), None)])
        except (ShardgitError, TimeoutError) as error:
            told(error)
            call.void("read failed")

    async def list_refs(self, place: Place, names: Sequence[str], target: Target) -> bool:
        """ListRefs of an object: all of it at one moment."""
        call = self.recorder.call(self.number)
        folder = names[0].rpartition("/")[0] + "/"
        try:
            async with asyncio.timeout(OPERATION_S):
                repo = self.links[target.grpc].repo(place.repository)
                found = {ref.name.decode(): ref.target async for ref in repo.refs(folder)}
        except (ShardgitError, TimeoutError) as error:
            told(error)
            call.void("read failed")
            return False
        self._saw(call, [Touch(_key(place, name), found.get(name)) for name in names])
        return True

    async def ls_remote(self, place: Place, names: Sequence[str], target: Target) -> None:
        """The same by git."""
        call = self.recorder.call(self.number)
        url = f"http://{target.http}/{place.repository}.git"
        done = await _git(place.folder, "ls-remote", url, *names)
        if done is None or done.code:
            call.void("read failed")
            return
        rows = [line.split("\t") for line in done.text.splitlines() if "\t" in line]
        found = {name: bytes.fromhex(oid) for oid, name in rows}
        self._saw(call, [Touch(_key(place, name), found.get(name)) for name in names])

    def _saw(self, call: Call, touches: Sequence[Touch]) -> None:
        self.seen.update((touch.ref, touch.value) for touch in touches)
        call.read(touches)

    # ---- changes ----

    async def update(
        self,
        place: Place,
        names: Sequence[str],
        target: Target,
        expects: list[Touch],
        puts: list[Touch],
    ) -> None:
        """UpdateRefs, atomic."""
        updates = [
            shardgit.aio.RefUpdate(name.encode(), _oid(old.value), _oid(new.value))
            for name, old, new in zip(names, expects, puts, strict=True)
        ]
        call = self.recorder.call(self.number, expects, puts)
        try:
            async with asyncio.timeout(OPERATION_S):
                await self.links[target.grpc].repo(place.repository).update_refs(updates)
        except (ShardgitError, TimeoutError) as error:
            self._ended(call, told(error))
        else:
            self._ended(call, Told.DONE)

    async def push(
        self,
        place: Place,
        names: Sequence[str],
        target: Target,
        expects: list[Touch],
        puts: list[Touch],
    ) -> None:
        """A push of git that holds refs to what they were."""
        words = ["push", "--porcelain", "--atomic"]
        for name, old in zip(names, expects, strict=True):
            words.append(f"--force-with-lease={name}:{old.value.hex() if old.value else ''}")
        words.append(f"http://{target.http}/{place.repository}.git")
        for name, new in zip(names, puts, strict=True):
            words.append(f"{new.value.hex() if new.value else ''}:{name}")
        call = self.recorder.call(self.number, expects, puts)
        done = await _git(place.folder, *words)
        self._ended(call, Told.UNKNOWN if done is None else told_by_git(done.code, done.text))

    def _change(
        self, place: Place, names: Sequence[str], *, delete: bool
    ) -> tuple[list[Touch], list[Touch]]:
        """Return what a change expects and puts; nothing when the place has no more commits."""
        keys = [_key(place, name) for name in names]
        expects = [Touch(key, self.seen[key]) for key in keys]
        if delete and all(touch.value is not None for touch in expects):
            return expects, [Touch(key, None) for key in keys]
        fresh = [place.fresh() for _ in keys]
        if None in fresh:
            return [], []
        return expects, [Touch(key, value) for key, value in zip(keys, fresh, strict=True)]

    def _ended(self, call: Call, ended: Told) -> None:
        if ended is Told.DONE:
            self.seen.update((touch.ref, touch.value) for touch in call.puts)
            call.done()
        elif ended is Told.CONFLICT:
            for touch in call.expects:  # it saw something else, which is to be read again
                self.seen.pop(touch.ref, None)
            call.conflict()
        elif ended is Told.UNKNOWN:
            call.unknown()
        else:
            call.void("not done")


def _key(place: Place, name: str) -> str:
    return f"{place.repository} {name}"


def _oid(value: Value) -> ObjectId | None:
    return None if value is None else ObjectId(value)


@dataclass(frozen=True, slots=True)
class _Ended:
    code: int
    text: str


async def _git(folder: Path, *words: str) -> _Ended | None:
    """Run git; None when it did not end in time, and was killed."""
    process = await asyncio.create_subprocess_exec(
        *("git", "-C", str(folder), *words),
        env={**clean_environment(), "GIT_TERMINAL_PROMPT": "0"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        process_group=0,
    )
    answer: Any = None
    try:
        async with asyncio.timeout(OPERATION_S):
            answer, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return _Ended(process.returncode or 0, answer.decode("utf-8", "replace"))
