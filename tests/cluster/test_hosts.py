"""Nodes on hosts of their own: what is sent over a link that is cut is lost in silence, and nobody closes anything."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import hosts
import pytest
from certificates import certificates
from cluster.nodes import Nodes
from etcds import binary, running
from seaweed import seaweed
from served import clean_environment, git, small_repository
from waiting import until

from shardgit.client import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hosts import Host

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not hosts.can(), reason="hosts of their own take root, ip and tc"),
]
NAMES = ("one", "two", "three")
STALL_S = 5.0  # a push may wait so long for etcd or S3, until it is told
OWN_S = 2.0  # and takes so long itself, on a machine that does other things, too
PATIENCE_S = 40.0


class World:
    """Three nodes that are served, a repository, and what is committed to it."""

    def __init__(self, nodes: Nodes, places: dict[str, Host], folder: Path) -> None:
        self.nodes, self.places, self.folder = nodes, places, folder
        self.work = small_repository(folder / "work", commits=20)
        self._number = 0

    def url(self, node: str) -> str:
        return self.nodes.servers[node].url("demo")

    def commit(self, *, noise: int = 0) -> str:
        self._number += 1
        if noise:
            (self.work / "noise").write_bytes(os.urandom(noise))
        (self.work / "count.txt").write_text(f"{self._number}\n")
        git(self.work, "add", ".")
        git(self.work, "commit", "-q", "-m", f"number {self._number}")
        return git(self.work, "rev-parse", "HEAD")

    def push(self, node: str, *, within_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Push to a node; it ends within a time, one way or the other."""
        return subprocess.run(
            ["git", "-C", str(self.work), "push", "-q", self.url(node), "main"],
            capture_output=True,
            text=True,
            env=clean_environment(),
            check=False,
            timeout=within_s,
        )

    def tip(self, node: str) -> str:
        return git(self.folder, "ls-remote", self.url(node), "refs/heads/main").split()[0]

    def clone(self, node: str, name: str) -> str:
        """Clone from a node, whole; returns its tip."""
        begun = time.monotonic()
        git(self.folder, "clone", "-q", self.url(node), name)
        self.clone_s = time.monotonic() - begun
        git(self.folder / name, "fsck", "--strict")
        return git(self.folder / name, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if binary() is None:
        pytest.skip("etcd is not there")
    tmp_path = tmp_path_factory.mktemp("hosts")
    with ExitStack() as opened:
        made = opened.enter_context(hosts.hosts(len(NAMES)))
        members = opened.enter_context(running(tmp_path / "etcd", host=hosts.ETCD_HOST))
        s3 = opened.enter_context(seaweed(tmp_path / "s3", host=hosts.S3_HOST))
        files = certificates(tmp_path, [one.address for one in made])
        tls = "".join(f'{key} = "{file}"\n' for key, file in files.items())
        nodes = Nodes(tmp_path, members.endpoints, s3.fresh_url(), opened)
        places = dict(zip(NAMES, made, strict=True))
        for name, place in places.items():
            nodes.host_of[name] = place
            nodes.inside_of[name] = f'listen = "{place.address}:7424"\n{tls}'
            nodes.environment_of[name] = s3.environment
            nodes.start(name)
        for name in NAMES:
            nodes.command(name, "cluster", "join", "--json")
        found = World(nodes, places, tmp_path)
        with connect(nodes.servers["one"].grpc) as client:
            client.create("demo")
        assert found.push("one").returncode == 0
        yield found


@pytest.fixture
def world(served: World) -> Iterator[World]:
    """The three nodes, whole again behind each test."""
    yield served
    for place in served.places.values():
        place.heal()
    for name in NAMES:
        served.commit()
        pushed_in_time(served, name)


def pushed_in_time(world: World, node: str) -> None:
    """Push until it succeeds; not longer than a failover may take."""
    end = time.monotonic() + 20
    while (done := world.push(node)).returncode:
        assert time.monotonic() < end, done.stderr
        time.sleep(0.2)


def refused_in_time(world: World, node: str) -> None:
    """Push without what a push needs."""
    begun = time.monotonic()
    refused = world.push(node)
    assert refused.returncode != 0
    assert time.monotonic() - begun < STALL_S + OWN_S
    assert "Traceback" not in refused.stderr


def test_a_node_that_etcd_is_cut_off_from_reads_on_and_says_what_it_cannot(world: World) -> None:
    before = world.commit()
    assert world.push("two").returncode == 0
    assert world.clone("one", "warm-1") == before
    world.places["one"].cut(hosts.ETCD_HOST)
    assert world.clone("one", "cut-1") == before
    world.commit()
    refused_in_time(world, "one")
    pushed_in_time(world, "two")  # the others do not notice
    assert world.tip("three") == world.tip("two")
    world.places["one"].heal()
    world.commit()
    pushed_in_time(world, "one")
    last = world.commit()
    pushed_in_time(world, "one")
    assert world.tip("two") == world.tip("three") == last


def test_a_node_without_its_peers_takes_blocks_from_the_object_store(world: World) -> None:
    last = world.commit()
    assert world.push("one").returncode == 0
    three = world.places["three"]
    three.cut(world.places["one"].address, world.places["two"].address)
    assert world.nodes.stop("three") == 0
    world.nodes.empty("three")
    world.nodes.start("three")
    begun = time.monotonic()
    assert world.clone("three", "alone") == last
    assert time.monotonic() - begun < 30
    assert world.push("three").returncode == 0


def test_without_the_object_store_reads_go_on_and_pushes_end(world: World) -> None:
    last = world.commit()
    assert world.push("one").returncode == 0
    assert world.clone("one", "warm-3") == last
    world.places["one"].cut(hosts.S3_HOST)
    assert world.clone("one", "cut-3") == last
    for noise in (0, 3_000_000):  # in a bundle, and in blocks
        world.commit(noise=noise)
        refused_in_time(world, "one")
    pushed_in_time(world, "two")
    world.places["one"].heal()
    world.commit()
    pushed_in_time(world, "one")


def test_slow_links_only_take_longer(world: World) -> None:
    world.commit(noise=3_500_000)
    for place in world.places.values():
        place.hold_to(1 << 20)
    last = ""
    for number in range(6):
        last = world.commit()
        pushed_in_time(world, NAMES[number % 3])
        assert world.tip(NAMES[(number + 1) % 3]) == last
    assert world.clone("three", "slow") == last
    assert world.clone_s > 2
    for place in world.places.values():
        place.hold_to(1 << 30)


def test_a_host_that_is_gone_in_the_middle_of_pushes_takes_nothing_along(world: World) -> None:
    """Cut from everything while it has pushes under way: what it acknowledged is there, the others go on at once."""
    acknowledged: list[str] = []
    stop = threading.Event()

    def pushing() -> None:
        while not stop.is_set():
            new = world.commit()
            try:
                if world.push("one", within_s=8).returncode == 0:
                    acknowledged.append(new)
            except subprocess.TimeoutExpired:
                return

    pusher = threading.Thread(target=pushing)
    pusher.start()
    until(lambda: len(acknowledged) >= 5)
    gone = world.places["one"]
    others = [place.address for name, place in world.places.items() if name != "one"]
    gone.cut(hosts.ETCD_HOST, hosts.S3_HOST, hosts.HOST, *others)
    time.sleep(3)
    stop.set()
    pusher.join()
    begun = time.monotonic()
    assert world.clone("two", "whole")
    assert time.monotonic() - begun < 20
    line = git(world.folder / "whole", "rev-list", "HEAD").split()
    assert set(acknowledged) <= set(line)
    world.commit()
    pushed_in_time(world, "two")
    gone.heal()
    until(lambda: world.tip("one") == world.tip("two"), seconds=30)
