"""Pushes, fetches and ref listings against git http-backend: prepared requests, clients that do nothing else.

`run.py` has them among all else; alone, as a table:

    python bench/traffic.py --repo PATH [--rounds 5] [--refs 1000000] [--work bench/out]

PATH is a repository as `run.py` prepares it: bare, packed, with bitmap and commit-graph.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from load import Exchange, get, post, run
from measure import Peak, children_of, cpu_of, memory_of
from servers import Server, http_backend, line, shardgit

SHARDGIT = [sys.executable, "-m", "shardgit"]
IDENTITY = {
    **{f"GIT_{who}_NAME": "A" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "a@b.c" for who in ("AUTHOR", "COMMITTER")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


@dataclass(frozen=True, slots=True)
class Traffic:
    """What some requests cost: each one's latency, and the server's CPU for all of them."""

    latencies_s: tuple[float, ...]
    wall_s: float
    cpu_s: float
    memory_bytes: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies_s) / self.wall_s

    def quantile(self, share: float) -> float:
        """Return a quantile of the latencies, in seconds."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


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


def measured(server: Server, jobs: list[list[Exchange]]) -> Traffic:
    """Run each client's exchanges, all clients side by side."""
    at = urlsplit(server.url)
    assert at.hostname is not None
    assert at.port is not None
    pids = children_of(server.pid)
    base, cpu = sum(map(memory_of, pids)), sum(map(cpu_of, pids))
    begun = time.monotonic()
    with Peak(server.pid, every_s=0.05) as peak:  # looking costs what the servers want to have
        times = run((at.hostname, at.port), jobs)
    wall = time.monotonic() - begun
    spent = sum(map(cpu_of, children_of(server.pid))) - cpu
    return Traffic(tuple(times), wall, spent, max(0, peak.bytes - base))


def middle(rounds: list[Traffic]) -> Traffic:
    """Return the medians over rounds; latencies of all of them."""
    return Traffic(
        tuple(t for one in rounds for t in one.latencies_s),
        statistics.median(one.wall_s for one in rounds) * len(rounds),
        statistics.median(one.cpu_s for one in rounds) * len(rounds),
        int(statistics.median(one.memory_bytes for one in rounds)),
    )


# ---- one-commit pushes ----


def push_bodies(folder: Path, count: int) -> tuple[Path, list[bytes]]:
    """Make a repository and the requests of ``count`` one-commit pushes on top of its first commit."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    for number in range(20):
        (folder / f"file{number}").write_text(f"line {number}\n" * 50)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    old = git(folder, "rev-parse", "HEAD")
    start = git(folder, "rev-parse", "HEAD").decode()
    bodies = []
    for number in range(count):
        (folder / f"file{number % 20}").write_text(f"line {number}\n" * 60)
        git(folder, "commit", "-qam", f"change {number}")
        new = git(folder, "rev-parse", "HEAD")
        pack = subprocess.run(
            ["git", "-C", str(folder), "pack-objects", "--thin", "--revs", "--stdout", "-q"],
            input=new + b"\n^" + old + b"\n",
            capture_output=True,
            check=True,
        ).stdout
        command = old + b" " + new + b" refs/heads/main\0report-status side-band-64k agent=bench"
        bodies.append(line(command) + b"0000" + pack)
        old = new
    git(folder, "reset", "-q", "--hard", start)
    return folder, bodies


def pushes(work: Path, *, clients: int, each: int, rounds: int) -> dict[str, Traffic]:
    """Push one commit after another from several clients, each to a repository of its own."""
    source, bodies = push_bodies(work / "push-source", each * rounds)
    store, root = work / "push-store", work / "push-root"
    for folder in (store, root):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([*SHARDGIT, "init", str(store)], check=True, stdout=subprocess.DEVNULL)
    names = [f"r{number}" for number in range(clients)]
    for name in names:
        words = ["repo", "import", name, str(source), "--data", str(store)]
        subprocess.run([*SHARDGIT, *words], check=True, stdout=subprocess.DEVNULL)
        git(work, "clone", "-q", "--bare", str(source), str(root / f"{name}.git"))
        git(root / f"{name}.git", "config", "http.receivepack", "true")
        git(root / f"{name}.git", "config", "gc.auto", "0")
    out: dict[str, list[Traffic]] = {}
    with ExitStack() as held:
        ours = held.enter_context(shardgit(store, name=names[0], workers=2))
        theirs = held.enter_context(http_backend(root / f"{names[0]}.git", work / "lighttpd"))
        for number in range(rounds):
            some = bodies[number * each : (number + 1) * each]
            for server in (ours, theirs):
                urls = [server.url.replace(names[0], name) for name in names]
                jobs = [[push_of(url, body) for body in some] for url in urls]
                out.setdefault(server.name, []).append(measured(server, jobs))
    return {name: middle(some) for name, some in out.items()}


def one_commit_pushes(work: Path, rounds: int) -> dict[str, dict[str, Traffic]]:
    """Push from one client and from 16; what a client's first push costs is a small part of a round."""
    return {
        "one-commit push, 1 client": pushes(work, clients=1, each=40, rounds=rounds),
        "one-commit push, 16 clients": pushes(work, clients=16, each=60, rounds=rounds),
    }


# ---- fetches ----


def fetch_body(wants: list[bytes], haves: list[bytes], extra: list[bytes]) -> bytes:
    """Return a v2 fetch request."""
    rows = [b"thin-pack\n", b"no-progress\n", b"ofs-delta\n", *extra]
    rows += [b"want " + oid + b"\n" for oid in wants]
    rows += [b"have " + oid + b"\n" for oid in haves]
    rows.append(b"done\n")
    return line(b"command=fetch\n") + b"0001" + b"".join(map(line, rows)) + b"0000"


def fetches(
    ours: Server, theirs: Server, repository: Path, rounds: int
) -> dict[str, dict[str, Traffic]]:
    """Fetch in the ways that CI fleets do; each row alternates between the servers."""
    tip = git(repository, "rev-parse", "HEAD")
    behind = git(repository, "rev-parse", "HEAD~10")
    refs = line(b"command=ls-refs\n") + b"0001" + line(b"peel\n") + line(b"symrefs\n") + b"0000"
    rows: dict[str, tuple[int, int, bytes]] = {
        "fetch of ten new commits, 1 client": (1, 20, fetch_body([tip], [behind], [])),
        "fetch of ten new commits, 16 clients": (16, 4, fetch_body([tip], [behind], [])),
        "clone of depth 1": (1, 2, fetch_body([tip], [], [b"deepen 1\n"])),
        "clone with blob:none": (1, 2, fetch_body([tip], [], [b"filter blob:none\n"])),
        "clone with tree:0": (1, 2, fetch_body([tip], [], [b"filter tree:0\n"])),
        "ls-refs": (1, 10, refs),
    }
    out: dict[str, dict[str, Traffic]] = {}
    for name, (clients, each, body) in rows.items():
        found: dict[str, list[Traffic]] = {}
        for server in (ours, theirs):
            measured(server, [[fetch_of(server.url, body)]])
        for _ in range(rounds):
            for server in (ours, theirs):
                jobs = [[fetch_of(server.url, body)] * each for _ in range(clients)]
                found.setdefault(server.name, []).append(measured(server, jobs))
        out[name] = {who: middle(some) for who, some in found.items()}
    return out


def rows_of(traffic: dict[str, dict[str, Traffic]]) -> list[str]:
    """Return a Markdown table, ratios first."""
    out = [
        "| what | CPU ratio | p50 ratio | rate ratio | CPU ms each | git CPU ms | p50 / p95 / p99 ms"
        " | git p50 / p95 / p99 ms | per s | git per s | memory MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for what, by in traffic.items():
        ours, theirs = by["shardgit"], by["git http-backend"]
        count = len(ours.latencies_s)
        ours_cpu, theirs_cpu = ours.cpu_s / count * 1e3, theirs.cpu_s / count * 1e3

        def spread(one: Traffic) -> str:
            return " / ".join(f"{one.quantile(share) * 1e3:.1f}" for share in (0.5, 0.95, 0.99))

        out.append(
            f"| {what} | **{ours_cpu / max(theirs_cpu, 1e-9):.2f}** "
            f"| {ours.quantile(0.5) / theirs.quantile(0.5):.2f} | {ours.rate / theirs.rate:.1f} "
            f"| {ours_cpu:.1f} | {theirs_cpu:.1f} | {spread(ours)} | {spread(theirs)} "
            f"| {ours.rate:.0f} | {theirs.rate:.0f} | {ours.memory_bytes / (1 << 20):.0f} |"
        )
    return out


def million_refs(work: Path, count: int, rounds: int) -> dict[str, dict[str, Traffic]]:
    """List all refs of a repository of very many, and those under a prefix that few have."""
    bare = work / "many-refs.git"
    shutil.rmtree(bare, ignore_errors=True)
    git(work, "clone", "-q", "--bare", str(work / "push-source"), str(bare))
    git(bare, "config", "http.receivepack", "true")
    oid = git(bare, "rev-parse", "HEAD")
    rows = [b"# pack-refs with: peeled fully-peeled sorted \n"]
    names = sorted(b"refs/pull/%d/head" % number for number in range(count))
    rows += [oid + b" refs/heads/main\n"]
    rows += [oid + b" " + name + b"\n" for name in names]
    (bare / "packed-refs").write_bytes(b"".join(rows))
    store = work / "many-refs-store"
    shutil.rmtree(store, ignore_errors=True)
    subprocess.run([*SHARDGIT, "init", str(store)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(
        [*SHARDGIT, "repo", "import", "many", str(bare), "--data", str(store)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    head = line(b"command=ls-refs\n") + b"0001" + line(b"symrefs\n")
    bodies = {
        f"ls-refs of {count:,} refs": (1, head + b"0000"),
        f"ls-refs of a prefix among {count:,} refs": (
            20,
            head + line(b"ref-prefix refs/heads/\n") + b"0000",
        ),
    }
    out: dict[str, dict[str, Traffic]] = {}
    with ExitStack() as held:
        ours = held.enter_context(shardgit(store, name="many"))
        theirs = held.enter_context(http_backend(bare, work / "lighttpd"))
        for what, (each, body) in bodies.items():
            found: dict[str, list[Traffic]] = {}
            for _ in range(rounds):
                for server in (ours, theirs):
                    jobs = [[fetch_of(server.url, body)] * each]
                    found.setdefault(server.name, []).append(measured(server, jobs))
            out[what] = {who: middle(some) for who, some in found.items()}
        found = {}
        body = head + b"0000"
        for number in range(rounds):
            for server in (ours, theirs):
                measured(server, [[push_of(server.url, new_ref(oid, number))]])
                jobs = [[fetch_of(server.url, body)]]
                found.setdefault(server.name, []).append(measured(server, jobs))
        what = f"ls-refs of {count:,} refs, one of them new"
        out[what] = {who: middle(some) for who, some in found.items()}
    return out


def new_ref(oid: bytes, number: int) -> bytes:
    """Return the body of a push that makes a ref and brings no object."""
    command = b"%s %s refs/heads/new%d\0report-status" % (b"0" * len(oid), oid, number)
    head = b"PACK" + struct.pack(">II", 2, 0)
    return line(command) + b"0000" + head + hashlib.sha1(head).digest()


def main() -> None:
    """Run it all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--refs", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "out")
    words = parser.parse_args()
    words.work.mkdir(parents=True, exist_ok=True)
    store = words.work / "traffic-store"
    shutil.rmtree(store, ignore_errors=True)
    subprocess.run([*SHARDGIT, "init", str(store)], check=True, stdout=subprocess.DEVNULL)
    load = ["repo", "import", "bench", str(words.repo), "--data", str(store)]
    subprocess.run([*SHARDGIT, *load], check=True, stdout=subprocess.DEVNULL)
    rows = one_commit_pushes(words.work, words.rounds)
    with shardgit(store) as ours, http_backend(words.repo, words.work / "lighttpd") as theirs:
        rows |= fetches(ours, theirs, words.repo, words.rounds)
    rows |= million_refs(words.work, words.refs, words.rounds)
    sys.stdout.write("\n".join(rows_of(rows)) + "\n")


if __name__ == "__main__":
    main()
