"""Pushes, fetches and ref listings as prepared requests: what suites send, and what a server spent on it.

Clients do nothing else; `load.py` runs them all in one loop.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from load import Exchange, get, post, run
from measure import watched
from result import Cost, Side
from servers import Server, line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

IDENTITY = {
    **{f"GIT_{who}_NAME": "A" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "a@b.c" for who in ("AUTHOR", "COMMITTER")},
    "GIT_AUTHOR_DATE": "1600000000 +0000",
    "GIT_COMMITTER_DATE": "1600000000 +0000",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


@dataclass(frozen=True, slots=True)
class Traffic:
    """What some requests cost the server in all, and each one's latency."""

    cost: Cost
    latencies_s: tuple[float, ...]


def git(folder: Path, *words: str, text: bytes = b"") -> bytes:
    """Run git; return what it prints."""
    done = subprocess.run(
        ["git", "-C", str(folder), *words],
        input=text,
        env={**os.environ, **IDENTITY},
        capture_output=True,
        check=True,
    )
    return done.stdout.strip()


def measured(server: Server, jobs: list[list[Exchange]]) -> Traffic:
    """Run each client's exchanges, all clients side by side."""
    at = urlsplit(server.url)
    assert at.hostname is not None
    assert at.port is not None
    where = (at.hostname, at.port)
    # 50 ms between two looks at memory: looking costs what the servers want to have.
    cost, times = watched(server.pid, lambda: run(where, jobs), every_s=0.05)
    return Traffic(cost, tuple(times))


def side_of(name: str, rounds: Sequence[Traffic], *, size_bytes: int = 0) -> Side:
    """Return the medians over rounds, and the latencies of all of them."""
    latencies = [each for one in rounds for each in one.latencies_s]
    count = len(rounds[0].latencies_s)
    costs = [one.cost for one in rounds]
    return Side.of(name, costs, count=count, latencies_s=latencies, size_bytes=size_bytes)


# ---- requests ----


def push_of(url: str, body: bytes) -> Exchange:
    """Return what git push does: look at the refs, send the pack, read the report."""
    at = urlsplit(url)
    kind = "application/x-git-receive-pack-request"
    first = get(f"{at.path}/info/refs?service=git-receive-pack", at.netloc)
    second = post(f"{at.path}/git-receive-pack", at.netloc, kind, body)
    return Exchange((first, second), good=b"unpack ok", bad=b"ng refs/")


def fetch_of(url: str, body: bytes) -> Exchange:
    """Return a v2 request."""
    at = urlsplit(url)
    kind = "application/x-git-upload-pack-request"
    return Exchange((post(f"{at.path}/git-upload-pack", at.netloc, kind, body, v2=True),))


def whole_fetch_of(url: str, body: bytes) -> Exchange:
    """Return all that git fetch asks: capabilities, refs, then the pack."""
    at = urlsplit(url)
    kind = "application/x-git-upload-pack-request"
    refs = line(b"command=ls-refs\n") + b"0001" + line(b"peel\n") + line(b"ref-prefix HEAD\n")
    first = get(f"{at.path}/info/refs?service=git-upload-pack", at.netloc, v2=True)
    second = post(f"{at.path}/git-upload-pack", at.netloc, kind, refs + b"0000", v2=True)
    return Exchange((first, second, *fetch_of(url, body).requests))


def fetch_body(wants: list[bytes], haves: list[bytes], extra: list[bytes]) -> bytes:
    """Return a v2 fetch request."""
    rows = [b"thin-pack\n", b"no-progress\n", b"ofs-delta\n", *extra]
    rows += [b"want " + oid + b"\n" for oid in wants]
    rows += [b"have " + oid + b"\n" for oid in haves]
    rows.append(b"done\n")
    return line(b"command=fetch\n") + b"0001" + b"".join(map(line, rows)) + b"0000"


def new_ref(oid: bytes, number: int) -> bytes:
    """Return the body of a push that makes a ref and brings no object."""
    command = b"%s %s refs/heads/new%d\0report-status" % (b"0" * len(oid), oid, number)
    head = b"PACK" + struct.pack(">II", 2, 0)
    return line(command) + b"0000" + head + hashlib.sha1(head).digest()


def push_bodies(folder: Path, count: int) -> tuple[Path, list[bytes]]:
    """Make a repository and the requests of ``count`` one-commit pushes on top of its first commit."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    for number in range(20):
        (folder / f"file{number}").write_text(f"line {number}\n" * 50)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    start = old = git(folder, "rev-parse", "HEAD")
    bodies = []
    for number in range(count):
        (folder / f"file{number % 20}").write_text(f"line {number}\n" * 60)
        git(folder, "commit", "-qam", f"change {number}")
        new = git(folder, "rev-parse", "HEAD")
        words = ("pack-objects", "--thin", "--revs", "--stdout", "-q")
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            input=new + b"\n^" + old + b"\n",
            capture_output=True,
            check=True,
        )
        command = old + b" " + new + b" refs/heads/main\0report-status side-band-64k agent=bench"
        bodies.append(line(command) + b"0000" + done.stdout)
        old = new
    git(folder, "reset", "-q", "--hard", start.decode())
    return folder, bodies
