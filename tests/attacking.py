"""A server that wants tokens, as attackers and others see it: raw connections, memory, and who works meanwhile."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from served import clean_environment, git, serving, small_repository

from shardgit.node import create_store, open_store
from shardgit.service.access import Rights
from shardgit.service.importing import import_repository
from shardgit.service.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from served import Server

ANSWER_S = 20.0
QUIET_S = 0.5  # without a byte, until a connection is taken to have said all
# What a worker may have grown by when an attack is over: caches fill, and allocators keep some.
GROWTH_MAX_BYTES = 160 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """A server with team/app, which tokens are for, and secret/vault, which only ``admin`` is for."""

    folder: Path
    server: Server
    reader: str
    writer: str
    admin: str

    @property
    def source(self) -> Path:
        return self.folder / "source"

    def url(self, name: str = "team/app", token: str = "") -> str:
        return f"http://x:{token or self.writer}@{self.server.http}/{name}.git"

    def address(self, port: str) -> tuple[str, int]:
        host, _, number = getattr(self.server, port).rpartition(":")
        return host, int(number)

    def memory(self) -> int:
        """Return the memory of the workers that is no file's."""
        total = 0
        for worker in self.server.workers():
            for row in Path(f"/proc/{worker}/status").read_text().splitlines():
                if row.startswith(("RssAnon:", "RssShmem:")):
                    total += int(row.split()[1]) << 10
        return total

    def connect(self, port: str, *, takes: int | None = None) -> socket.socket:
        """Connect; ``takes`` bounds what the socket holds of answers."""
        client = socket.socket()
        if takes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, takes)
        client.settimeout(ANSWER_S)
        client.connect(self.address(port))
        return client

    def raw(self, data: bytes, port: str = "http", *, quiet_s: float = QUIET_S) -> bytes:
        """Send bytes; returns what comes until the end, or until nothing has come for a while after the first."""
        got = b""
        with self.connect(port) as client, contextlib.suppress(ConnectionError, TimeoutError):
            client.sendall(data)
            while piece := client.recv(1 << 16):
                got += piece
                client.settimeout(quiet_s)
        return got

    def clone(self, name: str) -> subprocess.CompletedProcess[str]:
        return self.git("clone", "-q", self.url(), str(self.folder / name))

    def git(
        self, *words: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *words],
            cwd=self.folder,
            env={**clean_environment(), "GIT_TERMINAL_PROMPT": "0", **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @contextlib.contextmanager
    def unharmed(self, growth_max: int = GROWTH_MAX_BYTES) -> Iterator[None]:
        """Have another client clone and push by git all the while, and once more behind it; look at memory and workers.

        Each of its requests succeeds, at least one whole round is made during the attack, no worker dies, and none
        keeps more than that much memory.
        """
        workers, before = sorted(self.server.workers()), self.memory()
        over, rounds, failed = threading.Event(), [0], list[str]()
        first = threading.Event()

        def work() -> None:
            while not failed and not (over.is_set() and rounds[0]):
                failed.extend(self._round())
                rounds[0] += 1
                first.set()

        bystander = threading.Thread(target=work)
        bystander.start()
        try:
            yield
            first.wait(60)
        finally:
            over.set()
            bystander.join(120)
        assert not bystander.is_alive()
        assert failed == []
        assert rounds[0] >= 1
        assert self._round() == []
        assert sorted(self.server.workers()) == workers
        deadline = time.monotonic() + 60  # the allocator gives back what is free each 10 s
        while (grown := self.memory() - before) > growth_max:
            assert time.monotonic() < deadline, f"{grown >> 20} MiB more than before"
            time.sleep(0.5)

    def _round(self) -> list[str]:
        """Clone and push; returns what git said when it failed."""
        name = f"bystander-{time.monotonic_ns()}"
        cloned = self.clone(name)
        if cloned.returncode:
            return [cloned.stderr]
        pushed = self.git("-C", name, "push", "-q", "origin", f"HEAD:refs/heads/{name}")
        return [pushed.stderr] if pushed.returncode else []


@contextlib.contextmanager
def target(folder: Path, *, auth: bool = True, **environment: str) -> Iterator[Target]:
    """Serve a store with two repositories by one worker."""
    source = small_repository(folder / "source")
    create_store(folder / "data")
    with open_store(folder / "data") as store:
        for name in ("team/app", "secret/vault"):
            import_repository(store, name, str(source))
        (source / "secret.txt").write_text("only in the vault\n")
        git(source, "add", "-A")
        git(source, "commit", "-qm", "secret")
        import_repository(store, "secret/vault", str(source), overwrite=True)
        made = Tokens(store.journal)
        rights = (Rights(read=("team/**",)), Rights(write=("team/**",)), Rights(admin=True))
        tokens = [made.create(f"t{at}", each)[1] for at, each in enumerate(rights)]
    wants = {"SHARDGIT_AUTH": "required" if auth else "off", **environment}
    with serving(folder / "data", "--workers", "1", environment=wants) as server:
        yield Target(folder, server, *tokens)
