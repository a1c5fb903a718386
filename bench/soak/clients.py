"""Well-behaved clients: stock git over HTTP and SSH, Python over gRPC, LFS; each kind of request timed by itself."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import queue
import random
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.client import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ENVIRONMENT = {
    **{
        key: value for key, value in os.environ.items() if not key.startswith(("SHARDGIT_", "GIT_"))
    },
    **{f"GIT_{who}_NAME": "A U Thor" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "a@example.com" for who in ("AUTHOR", "COMMITTER")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
}
# What tells a client off; git prints it and may go on all the same.
TOLD_OFF = ("429", "503", "try again", "too many requests", "busy")
APPS = ("team/app", "team/site", "other/tool")
LARGE = "other/large"  # who clones and fetches takes the same from minute to minute: large pushes go where nobody does
WORKS = 4  # working copies of a kind that pushes
CHANNELS = 4
READ_OBJECTS = 50
LFS_BYTES = 200_000
LARGE_BYTES = 16 << 20
GIT_MAX_S = 120.0
LFS_TYPE = "application/vnd.git-lfs+json"


class Failed(Exception):
    """A request that did not do what it should."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request: how many a minute there are under load, and what one does; returns the seconds it took."""

    name: str
    a_minute: float
    does: Callable[[], float]
    sampled: bool = True  # often enough for a hundredth to be told


class Clients:
    """Has all that clients keep: working copies, clones, connections, what was acknowledged."""

    def __init__(self, folder: Path, facts: dict[str, str], token: str, key: Path) -> None:
        self.folder = folder
        self.http, self.ssh, self.grpc = facts["http"], facts["ssh"], facts["grpc"]
        self.token = token
        self.acknowledged: dict[tuple[str, str], str] = {}
        self._numbers = itertools.count(1)
        ssh = f"ssh -i {key} -o IdentitiesOnly=yes -o StrictHostKeyChecking=no"
        ssh += " -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        self._environment = {**ENVIRONMENT, "GIT_SSH_COMMAND": ssh}
        self._works: dict[str, queue.Queue[Path]] = {}
        self._channels = [connect(self.grpc, token) for _ in range(CHANNELS)]
        self._turn = itertools.cycle(self._channels)
        self._ids: dict[str, list[bytes]] = {}
        self._large = ""

    # ---- the way there ----

    def url(self, name: str) -> str:
        """Return a repository's address, with the token in it."""
        return f"http://x:{self.token}@{self.http}/{name}.git"

    def git(self, *words: str, cwd: Path | None = None) -> str:
        """Run git; returns what it prints. Errors: Failed, also when it was told off and went on."""
        try:
            done = subprocess.run(
                ["git", *words],
                cwd=cwd,
                env=self._environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=GIT_MAX_S,
            )
        except subprocess.TimeoutExpired as cause:
            raise Failed(f"git {words[0]} took over {GIT_MAX_S} s") from cause
        if done.returncode or any(word in done.stderr.lower() for word in TOLD_OFF):
            said = done.stderr.replace(self.token, "TOKEN").strip()[:400]
            raise Failed(f"git {words[0]} ended with {done.returncode}: {said}")
        return done.stdout

    def prepare(self) -> None:
        """Make what the requests need."""
        for name in ("push", "force", "tag", "large", "fetch"):
            waiting: queue.Queue[Path] = queue.Queue()
            for at in range(WORKS):
                made = self.folder / f"{name}-{at}"
                self.git("clone", "-q", "--single-branch", self.url(self._app_of(made)), str(made))
                waiting.put(made)
            self._works[name] = waiting
        for app in APPS:
            listed = self.git("ls-remote", self.url(app), "refs/heads/*").split()
            assert listed, app
            bare = self.folder / f"ids-{app.replace('/', '-')}"
            self.git("clone", "-q", "--bare", self.url(app), str(bare))
            lines = self.git("rev-list", "--objects", "--all", cwd=bare).splitlines()
            self._ids[app] = [bytes.fromhex(line.split()[0]) for line in lines]
            shutil.rmtree(bare)
        self._large = self._upload_large(random.Random(1).randbytes(LFS_BYTES))

    def close(self) -> None:
        """Close the connections."""
        for each in self._channels:
            each.close()

    # ---- kinds ----

    def kinds(self) -> list[Kind]:
        """Return all kinds of requests and their rates."""
        return [
            Kind("clone", 30, lambda: self._cloned(self.url(self._app()), "--bare")),
            Kind(
                "clone shallow",
                24,
                lambda: self._cloned(self.url(self._app()), "--depth=1", "--bare"),
            ),
            Kind(
                "clone partial",
                24,
                lambda: self._cloned(self.url(self._app()), "--filter=blob:none", "--bare"),
            ),
            Kind("fetch", 30, self._fetched),
            Kind(
                "ssh clone",
                24,
                lambda: self._cloned(f"ssh://git@{self.ssh}/{APPS[2]}.git", "--bare"),
            ),
            Kind("push", 30, lambda: self._pushed("push")),
            Kind("push forced", 24, lambda: self._pushed("force", "--force", amend=True)),
            Kind("push tag", 24, self._tagged),
            Kind(
                "push large",
                1,
                lambda: self._pushed("large", "--force", amend=True, size=LARGE_BYTES),
                sampled=False,
            ),
            Kind("fork", 24, self._forked),
            Kind("read objects", 120, self._read_objects),
            Kind("read refs", 60, self._read_refs),
            Kind("lfs", 24, self._lfs),
        ]

    def _app(self) -> str:
        return random.choice(APPS)

    def _cloned(self, url: str, *words: str) -> float:
        target = self.folder / f"clone-{next(self._numbers)}"
        begun = time.monotonic()
        try:
            self.git("clone", "-q", *words, url, str(target))
            return time.monotonic() - begun
        finally:
            shutil.rmtree(target, ignore_errors=True)

    @contextmanager
    def _work(self, name: str) -> Iterator[Path]:
        work = self._works[name].get(timeout=GIT_MAX_S)
        try:
            yield work
        finally:
            self._works[name].put(work)

    def _fetched(self) -> float:
        with self._work("fetch") as work:
            begun = time.monotonic()
            self.git(
                "fetch", "-q", "--no-auto-gc", "origin", "+refs/heads/*:refs/heads/x/*", cwd=work
            )
            return time.monotonic() - begun

    def _pushed(self, name: str, *words: str, amend: bool = False, size: int = 0) -> float:
        with self._work(name) as work:
            number = next(self._numbers)
            if size:
                (work / "large.bin").write_bytes(random.randbytes(size))
            else:
                (work / "soak.txt").write_text(f"{number}\n" * 20)
            self.git("add", "-A", cwd=work)
            self.git(
                "commit", "-q", "-m", f"number {number}", *(("--amend",) if amend else ()), cwd=work
            )
            ref = f"refs/heads/soak/{work.name}"
            begun = time.monotonic()
            self.git("push", "-q", *words, "origin", f"HEAD:{ref}", cwd=work)
            took = time.monotonic() - begun
            self._noted(work, ref, "HEAD")
            if size:  # the clients' folders may lie in memory
                self.git("reflog", "expire", "--expire=now", "--all", cwd=work)
                self.git("prune", "--expire=now", cwd=work)
            return took

    def _tagged(self) -> float:
        with self._work("tag") as work:
            tag = f"soak-{next(self._numbers)}"
            self.git("tag", "-a", tag, "-m", "soak", cwd=work)
            begun = time.monotonic()
            self.git("push", "-q", "origin", f"refs/tags/{tag}", cwd=work)
            took = time.monotonic() - begun
            self._noted(work, f"refs/tags/{tag}", tag)
            return took

    def _noted(self, work: Path, ref: str, revision: str) -> None:
        oid = self.git("rev-parse", revision, cwd=work).strip()
        self.acknowledged[self._app_of(work), ref] = oid

    @staticmethod
    def _app_of(work: Path) -> str:
        kind, _, number = work.name.rpartition("-")
        return LARGE if kind == "large" else APPS[int(number) % 2]

    def _forked(self) -> float:
        client, name = next(self._turn), f"team/fork-{next(self._numbers)}"
        begun = time.monotonic()
        client.fork(self._app(), name)
        took = time.monotonic() - begun
        if client.repository(name).name != name:
            raise Failed("fork is not there")
        client.delete(name)
        return took

    def _read_objects(self) -> float:
        app = self._app()
        wanted = random.sample(self._ids[app], READ_OBJECTS)
        begun = time.monotonic()
        found = list(next(self._turn).repo(app).objects(wanted))
        took = time.monotonic() - begun
        if [None if one is None else bytes(one.id) for one in found] != wanted:
            raise Failed("objects are missing, or others")
        return took

    def _read_refs(self) -> float:
        begun = time.monotonic()
        if not any(True for _ in next(self._turn).repo(self._app()).refs("refs/heads/")):
            raise Failed("no refs")
        return time.monotonic() - begun

    # ---- LFS ----

    def _asked(self, href: str, data: bytes | None, headers: dict[str, str], method: str) -> bytes:
        request = urllib.request.Request(href, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=GIT_MAX_S) as answer:
            return bytes(answer.read())

    def _batch(self, operation: str, oid: str, size: int) -> dict[str, dict[str, object]]:
        who = base64.b64encode(f"x:{self.token}".encode()).decode()
        body = {"operation": operation, "objects": [{"oid": oid, "size": size}]}
        answer = self._asked(
            f"http://{self.http}/{APPS[0]}.git/info/lfs/objects/batch",
            json.dumps(body).encode(),
            {"Content-Type": LFS_TYPE, "Accept": LFS_TYPE, "Authorization": f"Basic {who}"},
            "POST",
        )
        actions = json.loads(answer)["objects"][0].get("actions", {})
        for one in actions.values():
            one["header"] = {"Authorization": f"Basic {who}", **one.get("header", {})}
        return dict(actions)

    def _upload_large(self, data: bytes) -> str:
        oid = hashlib.sha256(data).hexdigest()
        up = self._batch("upload", oid, len(data)).get("upload")
        if up is not None:
            kind = {"Content-Type": "application/octet-stream"}
            self._asked(str(up["href"]), data, {**kind, **up["header"]}, "PUT")  # type: ignore[dict-item]
        return oid

    def _lfs(self) -> float:
        begun = time.monotonic()
        down = self._batch("download", self._large, LFS_BYTES)["download"]
        data = self._asked(str(down["href"]), None, dict(down["header"]), "GET")  # type: ignore[call-overload]
        took = time.monotonic() - begun
        if hashlib.sha256(data).hexdigest() != self._large:
            raise Failed("another object")
        return took
