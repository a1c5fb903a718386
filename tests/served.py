"""A small repository made by git, and a server in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from forking import mother

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

IDENTITY = {
    "GIT_AUTHOR_NAME": "A U Thor",
    "GIT_AUTHOR_EMAIL": "author@example.com",
    "GIT_COMMITTER_NAME": "C O Mitter",
    "GIT_COMMITTER_EMAIL": "committer@example.com",
    "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_DATE": "1700000000 +0000",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


FREE = [word for key in ("http", "ssh", "grpc", "admin") for word in (f"--{key}", "127.0.0.1:0")]


def clean_environment() -> dict[str, str]:
    """Return the environment without SHARDGIT_* with git's identity, without user configuration."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SHARDGIT_")}
    return {**kept, **IDENTITY}


def git(folder: Path, *words: str) -> str:
    """Run git; return what it prints."""
    done = subprocess.run(
        ["git", "-C", str(folder), *words],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def small_repository(folder: Path, commits: int = 3) -> Path:
    """Make a repository with some commits on main and an annotated tag v1."""
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    for number in range(commits):
        (folder / "README.md").write_text(f"line {number}\n" * (number + 1))
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub" / f"{number}.txt").write_text(f"file {number}\n")
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", f"commit {number}")
    git(folder, "tag", "-a", "v1", "-m", "the first")
    return folder


def shardgit(
    *words: str, cwd: Path, environment: dict[str, str] | None = None, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    variables = {**clean_environment(), **(environment or {})}
    if mother().knows(words, variables):
        return mother().run(words, cwd=cwd, environment=variables, text=text)
    return subprocess.run(
        [sys.executable, "-m", "shardgit", *words],
        cwd=cwd,
        env=variables,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


class Server:
    """A running ``shardgit serve``."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        assert process.stdout is not None
        self.process = process
        self.errors = errors
        self._out: IO[str] = process.stdout
        lines = []
        while (line := self._out.readline()) and line != "}\n":
            lines.append(line)
        if not line:
            process.wait(timeout=30)
            raise AssertionError(f"server did not start: {errors.read_text()}")
        facts = json.loads("".join([*lines, line]))
        self.http, self.ssh = facts["http"], facts["ssh"]
        self.grpc, self.admin = facts["grpc"], facts["admin"]

    def url(self, name: str) -> str:
        """Return the clone URL of a repository."""
        return f"http://{self.http}/{name}.git"

    def ask(self, path: str) -> tuple[int, str]:
        """Ask the admin port."""
        try:
            with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(word) for word in children.read_text().split()]

    def events(self) -> list[str]:
        """Return the events that were logged so far."""
        return [line["event"] for line in self.lines()]

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines that were logged so far, but for one that is being written."""
        return [json.loads(line) for line in self.errors.read_text().split("\n")[:-1]]

    def stop(self) -> int:
        """Ask the server to stop; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextmanager
def serving(
    data: Path,
    *words: str,
    environment: dict[str, str] | None = None,
    inside: Sequence[str] = (),
    address: str = "127.0.0.1",
) -> Iterator[Server]:
    """Serve a store on free ports until the block is left; with ``inside``, words before it, on another host."""
    errors = data.with_name(f"{data.name}.log")
    free = [
        word for key in ("http", "ssh", "grpc", "admin") for word in (f"--{key}", f"{address}:0")
    ]
    with errors.open("w") as log:
        process = subprocess.Popen(
            [
                *inside,
                sys.executable,
                "-m",
                "shardgit",
                "serve",
                "--json",
                "--data",
                str(data),
                *free,
                *words,
            ],
            env={**clean_environment(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        yield Server(process, errors)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()
