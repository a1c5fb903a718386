"""A server that takes so much and no more: git and gRPC are told when to come again, the others go on."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from served import Server, clean_environment, git, serving, small_repository
from waiting import until

from shardgit.client import connect
from shardgit.errors import RateLimited
from shardgit.node import create_store, open_store
from shardgit.service.importing import import_repository
from shardgit.v1 import repository_pb2, repository_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two repositories, of which a clone does not fit into the buffers of a socket."""
    folder = tmp_path_factory.mktemp("limits")
    source = small_repository(folder / "source")
    (source / "noise").write_bytes(os.urandom(24 << 20))
    git(source, "add", ".")
    git(source, "commit", "-qm", "noise")
    create_store(folder / "data")
    with open_store(folder / "data") as store:
        for name in ("hot", "cold"):
            import_repository(store, name, str(source))
    return folder / "data"


@contextlib.contextmanager
def limited(data: Path, **limits: object) -> Iterator[Server]:
    environment = {f"SHARDGIT_LIMITS_{key.upper()}": str(value) for key, value in limits.items()}
    with serving(data, "--workers", "1", environment=environment) as server:
        yield server


def clone(server: Server, name: str, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "clone", "-q", "--bare", server.url(name), str(target)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@contextlib.contextmanager
def unread(server: Server, name: str) -> Iterator[None]:
    """Begin a clone and take nothing of it."""
    tip = clone_tip(server, name)
    want = f"0032want {tip}\n".encode()
    body = b"0011command=fetch0001000fno-progress" + want + b"0009done\n0000"
    host, port = server.http.split(":")
    head = (
        f"POST /{name}.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"
        f"Content-Type: application/x-git-upload-pack-request\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(head.encode() + body)
        assert client.recv(12) == b"HTTP/1.1 200"
        yield


def clone_tip(server: Server, name: str) -> str:
    with connect(server.grpc) as client:
        return bytes(client.repo(name).ref("refs/heads/main").target or b"").hex()


def test_a_hot_repository_is_bounded_and_the_others_are_not(data: Path, tmp_path: Path) -> None:
    with limited(data, repository_requests=3) as server, contextlib.ExitStack() as held:
        for _ in range(3):
            held.enter_context(unread(server, "hot"))
        refused = clone(server, "hot", tmp_path / "refused")
        assert refused.returncode != 0
        assert "429" in refused.stderr
        assert (
            "remote: too many requests at that repository are under way; try again"
            in refused.stderr
        )
        assert clone(server, "cold", tmp_path / "cold").returncode == 0
        with connect(server.grpc) as client:
            with pytest.raises(RateLimited):
                client.repository("hot")
            client.repository("cold")
        with grpc.insecure_channel(server.grpc) as channel:
            stub = repository_pb2_grpc.RepositoryServiceStub(channel)  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.RpcError) as raised:
                stub.GetRepository(repository_pb2.GetRepositoryRequest(name="hot"))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(raised.value)
        assert status is not None
        info = error_details_pb2.RetryInfo()
        assert any(one.Unpack(info) for one in status.details)
        assert info.retry_delay.seconds > 0
        held.close()
        until(lambda: not clone(server, "hot", tmp_path / f"again-{time.monotonic()}").returncode)
        _, metrics = server.ask("/metrics")
        assert 'shardgit_requests_refused_total{reason="repository_requests"}' in metrics


def test_an_address_that_comes_too_often_is_told_when_to_come_again(
    data: Path, tmp_path: Path
) -> None:
    with limited(data, address_rate=40) as server:  # ten at once
        outcomes = [clone(server, "cold", tmp_path / f"c{number}") for number in range(6)]
        assert outcomes[0].returncode == 0
        assert outcomes[-1].returncode != 0
        assert "429" in outcomes[-1].stderr
        with connect(server.grpc) as client, pytest.raises(RateLimited) as refused:
            client.repository("cold")
        assert 0 < int(str(refused.value.facts["retry_after_s"])) <= 2


def test_a_server_without_memory_lets_nobody_in_and_says_so(data: Path, tmp_path: Path) -> None:
    with limited(data, memory_free=0.999) as server:
        refused = clone(server, "cold", tmp_path / "c")
        assert "503" in refused.stderr
        assert "remote: server is busy; try again" in refused.stderr
        assert server.ask("/livez")[0] == 200
