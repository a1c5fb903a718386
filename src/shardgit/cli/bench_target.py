"""What a bench talks to: a server that is there, or one of its own over a store, for as long as it runs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.cli.context import FAILED, USAGE, UsageRefused
from shardgit.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

HTTP_PORT = 7421
END_S = 60


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server is: its gRPC address, the root of its URLs, the repository; ``pid`` 0 where it is not ours."""

    grpc: str
    http: str
    repository: str
    pid: int = 0

    def url(self, name: str) -> str:
        """Return the clone URL of a repository."""
        return f"{self.http}/{name}.git"

    def cpu_s(self) -> float | None:
        """Return the CPU seconds of our server so far, its workers included; None for another's."""
        return sum(map(_cpu_of, _tree(self.pid))) if self.pid else None


def _tree(pid: int) -> list[int]:
    found = [pid]
    for at in found:
        try:
            for task in Path(f"/proc/{at}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:  # it ended meanwhile
            continue
    return found


def _cpu_of(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | 2)  # its CPU clock, see clock_getcpuclockid(3)
    except OSError:
        return 0.0


def given(server: str, http: str | None, repository: str) -> Target:
    """Return a server that is there; HTTP is looked for at the same host, on its usual port."""
    if http is None:
        host = server.rpartition(":")[0]
        if not host or server.startswith("unix:"):
            raise UsageRefused("give the URL of the server's HTTP with --http", server=server)
        http = f"http://{host}:{HTTP_PORT}"
    return Target(server, http.rstrip("/"), repository)


@contextmanager
def served(data: Path, repository: str, workers: int | None) -> Iterator[Target]:
    """Serve a store on free ports of 127.0.0.1 until the block is left."""
    free = [word for key in ("http", "grpc", "admin") for word in (f"--{key}", "127.0.0.1:0")]
    words = ["serve", "--json", "--data", str(data), "--ssh", "off", *free]
    words += ["--workers", str(workers)] if workers is not None else []
    with tempfile.TemporaryFile("w+") as said:  # a pipe that nobody reads would fill
        process = subprocess.Popen(
            [sys.executable, "-m", "shardgit", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        try:
            facts = _facts(process)
            if not facts:
                said.seek(0)
                raise Refused("the server did not start", said=_last_line(said.read()))
            yield Target(facts["grpc"], f"http://{facts['http']}", repository, process.pid)
        finally:
            process.terminate()
            try:
                process.communicate(timeout=END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def _facts(process: subprocess.Popen[str]) -> dict[str, str]:
    """Return what a server says once it serves; nothing when it ends before."""
    assert process.stdout is not None
    lines = []
    while line := process.stdout.readline():
        lines.append(line)
        if line == "}\n":
            facts: dict[str, str] = json.loads("".join(lines))
            return facts
    return {}


def _last_line(text: str) -> str:
    """Return the last thing said; of a log's line the error in it."""
    lines = text.strip().splitlines()
    if not lines:
        return "nothing"
    try:
        return str(json.loads(lines[-1])["error"])
    except (ValueError, KeyError, TypeError):
        return lines[-1].removeprefix("shardgit: ")


@contextmanager
def temporary(source: Path, workers: int | None) -> Iterator[Target]:
    """Serve a repository that lies at a path, out of a store that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="shardgit-bench-") as folder:
        store = Path(folder) / "store"
        _run("init", str(store))
        _run("repo", "import", "bench", str(source), "--data", str(store))
        with served(store, "bench", workers) as target:
            yield target


def _run(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shardgit", *words], capture_output=True, text=True, check=False
    )
    if done.returncode in (FAILED, USAGE):
        raise Refused(_last_line(done.stderr))
    done.check_returncode()
