"""Nodes restarted one after another behind a load balancer: who comes through it sees none of that."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from cluster.nodes import Nodes
from etcds import free_ports
from loading import Load, run
from local_cluster import ROOT, balancer
from served import git, small_repository

from shardgit.client import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from etcds import Etcds

BALANCER = balancer()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(BALANCER is None, reason="haproxy is not there; .ci/balancer-setup"),
]
KEYS = ("http", "grpc", "ssh", "admin")
CONFIG = """\
defaults
  timeout connect 5s
  timeout client 1m
  timeout server 1m
  retries 3
  option redispatch
listen http
  mode http
  bind 127.0.0.1:{http}
  option httpchk GET /readyz
  balance roundrobin
{http_nodes}
listen grpc
  mode tcp
  bind 127.0.0.1:{grpc}
  option httpchk GET /readyz
  balance roundrobin
{grpc_nodes}
listen ssh
  mode tcp
  bind 127.0.0.1:{ssh}
  option httpchk GET /readyz
  balance roundrobin
{ssh_nodes}
"""


@pytest.fixture
def nodes(etcds: Etcds, s3_url: str, tmp_path: Path) -> Iterator[Nodes]:
    with ExitStack() as opened:
        yield Nodes(tmp_path, etcds.endpoints, s3_url, opened)


@contextmanager
def balanced(folder: Path, ports: dict[str, dict[str, int]]) -> Iterator[dict[str, int]]:
    """Run haproxy before nodes whose ports are given; yields its own ports."""
    own = dict(zip(KEYS[:3], free_ports(3), strict=True))
    listed = {
        f"{key}_nodes": "\n".join(
            f"  server {node} 127.0.0.1:{at[key]} check port {at['admin']} inter 200 fall 2 rise 2"
            for node, at in ports.items()
        )
        for key in own
    }
    file = folder / "haproxy.cfg"
    file.write_text(CONFIG.format(**own, **listed))
    assert BALANCER is not None
    process = subprocess.Popen([BALANCER, "-db", "-f", str(file)], cwd=ROOT)
    try:
        yield own
    finally:
        process.terminate()
        process.wait()


def until_ready(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)
        else:
            return


def test_no_request_fails_while_each_node_is_restarted(nodes: Nodes, tmp_path: Path) -> None:
    ports = {name: dict(zip(KEYS, free_ports(len(KEYS)), strict=True)) for name in ("one", "two")}
    key = tmp_path / "host_key"
    more = f'ssh_host_key = "{key}"\nleave_s = 5\ngrpc_connection_s = 2\n'

    def start(name: str) -> None:
        words = [word for key in KEYS for word in (f"--{key}", f"127.0.0.1:{ports[name][key]}")]
        nodes.start(name, *words, more=more)

    for name in ports:
        start(name)
    work = small_repository(tmp_path / "work")
    with balanced(tmp_path, ports) as own:
        for at in ports.values():
            until_ready(at["admin"])
        time.sleep(1)  # the balancer has seen both
        url = f"http://127.0.0.1:{own['http']}/{{}}.git"
        ssh = f"ssh://git@127.0.0.1:{own['ssh']}/demo.git"
        with connect(f"127.0.0.1:{own['grpc']}") as client:
            client.create("demo")
            client.create("pushed")
            git(work, "push", "-q", url.format("demo"), "main", "v1")

            def push(number: int) -> None:
                run(
                    "-C",
                    str(work),
                    "push",
                    "-q",
                    url.format("pushed"),
                    f"main:refs/heads/b{number}",
                )

            jobs: dict[str, Callable[[int], object]] = {
                "clone": lambda n: run(
                    "clone", "-q", "--bare", url.format("demo"), str(tmp_path / f"c{n}")
                ),
                "ssh": lambda n: run("clone", "-q", "--bare", ssh, str(tmp_path / f"s{n}")),
                "push": push,
                "call": lambda _: client.repository("demo"),
                "read": lambda _: client.repo("demo").read("main", "README.md"),
            }
            load = Load()
            with load.running(jobs):
                load.await_more()
                for name in ports:
                    assert nodes.stop(name) == 0
                    load.await_more()
                    start(name)
                    until_ready(ports[name]["admin"])
                    time.sleep(1)
                    load.await_more()
            assert load.errors == []
        heads = git(tmp_path, "ls-remote", "--heads", url.format("pushed")).splitlines()
        assert len(heads) == load.done["push"]
