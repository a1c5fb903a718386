"""Nodes of a cluster that are served as users serve them, with stock git as their client."""

from __future__ import annotations

import json
import random
import re
import subprocess
import threading
import time
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from cluster.nodes import Nodes
from served import clean_environment, git, shardgit, small_repository

from shardgit.client import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from etcds import Etcds

pytestmark = pytest.mark.cluster


@pytest.fixture
def nodes(etcds: Etcds, s3_url: str, tmp_path: Path) -> Iterator[Nodes]:
    with ExitStack() as opened:
        yield Nodes(tmp_path, etcds.endpoints, s3_url, opened)


def heads(where: str) -> str:
    return subprocess.run(
        ["git", "ls-remote", where], capture_output=True, text=True, check=True
    ).stdout


def commit(folder: Path, number: int) -> str:
    (folder / "count.txt").write_text(f"{number}\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", f"number {number}")
    return git(folder, "rev-parse", "HEAD")


def test_what_is_pushed_to_one_node_is_read_from_the_others_at_once(
    nodes: Nodes, tmp_path: Path
) -> None:
    one, two, three = (nodes.start(name) for name in ("one", "two", "three"))
    work = small_repository(tmp_path / "work")
    with connect(one.grpc) as client:
        client.create("demo")
    git(work, "push", "-q", one.url("demo"), "main", "v1")
    servers = (two, three, one)
    new = ""
    for number in range(12):
        new = commit(work, number)
        git(work, "push", "-q", servers[number % 3].url("demo"), "main")
        for server in servers:
            assert new in heads(server.url("demo"))
    for number, server in enumerate(servers):
        git(tmp_path, "clone", "-q", server.url("demo"), f"clone-{number}")
        assert git(tmp_path / f"clone-{number}", "rev-parse", "HEAD") == new
        git(tmp_path / f"clone-{number}", "fsck", "--strict")


def test_what_was_pushed_elsewhere_is_fetched_by_its_id_at_once(
    nodes: Nodes, tmp_path: Path
) -> None:
    one, two = nodes.start("one"), nodes.start("two")
    work = small_repository(tmp_path / "work")
    with connect(one.grpc) as client:
        client.create("demo")
    git(tmp_path, "init", "-q", "clone")
    for number in range(15):
        new = commit(work, number)
        git(work, "push", "-q", one.url("demo"), "main")
        git(tmp_path / "clone", "fetch", "-q", two.url("demo"), new)  # no refs are listed
        assert git(tmp_path / "clone", "rev-parse", "FETCH_HEAD") == new
    words = ["git", "fetch", "-q", two.url("demo"), "1" * 40]
    refused = subprocess.run(
        words, cwd=tmp_path / "clone", capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert "1" * 40 in refused.stderr


def test_nothing_acknowledged_is_lost_with_a_node(nodes: Nodes, tmp_path: Path) -> None:
    """A node is killed during a hundred pushes and a clone; it comes back without anybody's help."""
    one, two = nodes.start("one"), nodes.start("two")
    for name in ("two", "one"):
        nodes.command(name, "cluster", "join", "--json")
    work = small_repository(tmp_path / "work")
    with connect(one.grpc) as client:
        client.create("demo")
    git(work, "push", "-q", one.url("demo"), "main")
    acknowledged: list[str] = []
    failed = 0
    killed = threading.Event()

    def pushing() -> None:
        nonlocal failed
        for number in range(100):
            new = commit(work, number)
            for _ in range(60):
                place = one if (number % 2 and not killed.is_set()) else two
                words = ["git", "-C", str(work), "push", "-q", place.url("demo"), "main"]
                done = subprocess.run(
                    words, capture_output=True, env=clean_environment(), check=False
                )
                if done.returncode == 0:
                    acknowledged.append(new)
                    break
                failed += 1
                time.sleep(0.1)

    pusher = threading.Thread(target=pushing)
    pusher.start()
    cloning = subprocess.Popen(
        ["git", "clone", "-q", one.url("demo"), str(tmp_path / "cut")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=clean_environment(),
    )
    while len(acknowledged) < 30:
        time.sleep(0.01)
    nodes.kill("one")
    killed.set()
    cloning.wait()
    pusher.join()
    assert len(acknowledged) == 100
    git(tmp_path, "clone", "-q", two.url("demo"), "whole")
    line = git(tmp_path / "whole", "rev-list", "HEAD").split()
    assert set(acknowledged) <= set(line)
    git(tmp_path / "whole", "fsck", "--strict")
    again = nodes.start("one")
    assert acknowledged[-1] in heads(again.url("demo"))
    git(work, "push", "-q", again.url("demo"), "main:refs/heads/after")
    assert "refs/heads/after" in heads(two.url("demo"))


def test_an_emptied_node_serves_while_it_refills(nodes: Nodes, tmp_path: Path) -> None:
    nodes.start("one")
    work = small_repository(tmp_path / "work", commits=30)
    nodes.command("one", "repo", "import", "demo", str(work))
    before = heads(nodes.servers["one"].url("demo"))
    assert nodes.stop("one") == 0
    nodes.empty("one")
    again = nodes.start("one")
    assert heads(again.url("demo")) == before
    git(tmp_path, "clone", "-q", again.url("demo"), "clone")
    git(tmp_path / "clone", "fsck", "--strict")


def test_a_node_joins_is_warmed_and_leaves(nodes: Nodes, tmp_path: Path) -> None:
    nodes.start("one")
    work = small_repository(tmp_path / "work", commits=10)
    for number in range(8):
        nodes.command("one", "repo", "import", f"r{number}", str(work))
    two = nodes.start("two")
    shown = json.loads(nodes.command("two", "cluster", "status", "--json"))
    parts = {row["node"]: (row["state"], row["partitions"]) for row in shown["nodes"]}
    assert parts == {"one": ("owner", 65_536), "two": ("joined", 0)}
    plan = json.loads(nodes.command("one", "cluster", "join", "two", "--plan", "--json"))
    receipt = str(tmp_path / "receipt.json")
    words = ("cluster", "join", "--json", "--receipt", receipt)
    done = json.loads(nodes.command("two", *words))
    checked = json.loads(nodes.command("one", "cluster", "receipt", receipt, "--json"))
    assert checked["ok"]
    assert (checked["blocks"], checked["gone"]) == (done["blocks"], 0)
    # Dealt by bytes, of which there are a few blocks: the partitions need not be halved.
    assert done["partitions"] == plan["moved_partitions"] > 10_000
    assert done["failed_blocks"] == 0
    assert done["warmed_blocks"] + done["there_blocks"] + done["cold_blocks"] == done["blocks"] > 0
    assert done["warmed_blocks"] > 0
    shown = json.loads(nodes.command("one", "cluster", "status", "--json"))
    assert shown["phase"] == "settled"
    assert all(row["partitions"] > 10_000 for row in shown["nodes"])
    after = [row["bytes_after"] for row in done["nodes"]]
    assert min(after) > sum(after) / 4
    refused = shardgit("cluster", "leave", "two", "--data", str(tmp_path / "two"), cwd=tmp_path)
    assert refused.returncode == 1
    assert "run it on another node" in refused.stderr
    nodes.command("one", "cluster", "leave", "two")
    shown = json.loads(nodes.command("one", "cluster", "status", "--json"))
    assert [(row["node"], row["partitions"]) for row in shown["nodes"]] == [("one", 65_536)]
    # It owns nothing and serves still.
    git(tmp_path, "clone", "-q", two.url("r3"), "clone")
    git(tmp_path / "clone", "fsck", "--strict")


def test_a_block_that_s3_lost_comes_back_from_another_node(etcds: Etcds, tmp_path: Path) -> None:
    with ExitStack() as opened:
        nodes = Nodes(tmp_path, etcds.endpoints, f"file://{tmp_path}/blocks", opened)
        nodes.start("one")
        work = small_repository(tmp_path / "work")
        for number in range(4):  # so that segments are blocks of their own
            (work / f"noise{number}").write_bytes(random.Random(number).randbytes(600_000))
        git(work, "add", ".")
        git(work, "commit", "-qm", "noise")
        nodes.command("one", "repo", "import", "demo", str(work))
        git(tmp_path, "clone", "-q", nodes.servers["one"].url("demo"), "clone")  # warm
        nodes.start("two")  # has none of it
        assert "all whole" in nodes.command("two", "cluster", "verify")
        every = (tmp_path / "blocks" / "blocks").rglob("?" * 64)
        lost = max(every, key=lambda path: path.stat().st_size)
        data = lost.read_bytes()
        lost.unlink()
        two = str(tmp_path / "two")
        found = shardgit("cluster", "verify", "--quick", "--data", two, cwd=tmp_path)
        assert found.returncode == 1
        assert "missing_copy" in found.stderr
        assert "but on the disk of one" in found.stderr
        assert "run: shardgit cluster repair" in found.stderr
        assert "put again from the disk of one" in nodes.command("two", "cluster", "repair")
        assert lost.read_bytes() == data
        assert "all whole" in nodes.command("two", "cluster", "verify")


def test_nodes_are_restarted_one_after_another_and_no_request_fails(
    nodes: Nodes, tmp_path: Path
) -> None:
    names = ("one", "two", "three")
    for name in names:
        nodes.start(name)
    work = small_repository(tmp_path / "work")
    nodes.command("one", "repo", "import", "demo", str(work))
    done, failed = [0, 0], list[str]()
    stopping = threading.Event()

    def ask(number: int, *words: str) -> None:
        """Ask a node, as a balancer does: the next one where nobody listens."""
        for turn in range(30):
            there = list(nodes.servers.values())
            url = there[(number + turn) % len(there)].url("demo")
            command = ["git", *(url if word == "URL" else word for word in words)]
            ran = subprocess.run(
                command,
                cwd=work,
                capture_output=True,
                text=True,
                env=clean_environment(),
                check=False,
            )
            if ran.returncode == 0:
                done[number % 2] += 1
                return
            if "Failed to connect" not in ran.stderr:
                failed.append(ran.stderr)
                return
        failed.append("nobody listens")

    def asking(kind: int) -> None:
        number = kind
        while not stopping.is_set():
            if kind:
                ask(number, "push", "-q", "URL", f"HEAD:refs/heads/r{number}")
            else:
                ask(number, "clone", "-q", "--bare", "URL", str(tmp_path / f"clone-{number}"))
            number += 2

    threads = [threading.Thread(target=asking, args=(kind,)) for kind in (0, 1)]
    for thread in threads:
        thread.start()
    for name in names:
        assert nodes.stop(name) == 0
        nodes.start(name)
    stopping.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert min(done) > 5


def test_serve_tells_what_is_wrong_with_a_configuration(nodes: Nodes, tmp_path: Path) -> None:
    def check(text: str) -> str:
        file = tmp_path / "bad.toml"
        file.write_text(text)
        words = ("serve", "--check", "--config", str(file), "--data", str(tmp_path / "node"))
        done = shardgit(*words, cwd=tmp_path)
        assert done.returncode
        assert done.stderr.count("\n") == 1
        return done.stderr

    good = nodes.config("one").read_text()
    assert "only with peer_ca" in check(re.sub('listen = "[^"]*"', 'listen = "0.0.0.0:7424"', good))
    refused = check(
        good.replace(str(nodes.endpoints[0]), "http://127.0.0.1:1").replace(
            ", ".join(f'"{one}"' for one in nodes.endpoints[1:]), '"http://127.0.0.1:1"'
        )
    )
    assert "etcd" in refused


def test_the_console_shows_the_nodes_of_the_ring(nodes: Nodes, tmp_path: Path) -> None:
    one = nodes.start("one")
    work = small_repository(tmp_path / "work")
    nodes.command("one", "repo", "import", "demo", str(work))
    two = nodes.start("two")
    nodes.command("two", "cluster", "join")
    shown = {server.admin: watched(server.admin) for server in (one, two)}
    for here, snapshot in zip(("one", "two"), shown.values(), strict=True):
        survey = snapshot["survey"]
        assert survey["clustered"]
        rows = {row["name"]: row for row in survey["shards"]}
        assert {name: row["state"] for name, row in rows.items()} == {
            "one": "active",
            "two": "active",
        }
        assert sum(row["partitions"] for row in rows.values()) == 65_536
        assert [name for name, row in rows.items() if row["is_here"]] == [here]
        assert all(row["processes"] >= 1 for row in rows.values())
        assert rows[here]["file_bytes"] is not None


def watched(admin: str) -> dict[str, Any]:
    """Return the first snapshot of an admin port that has a look at the store."""
    with urllib.request.urlopen(f"http://{admin}/events", timeout=60) as events:
        for line in events:
            if line.startswith(b'data: {"time_ms"'):
                found: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                if found["survey"] is not None:
                    return found
    raise AssertionError("the events ended")
