"""Peers over TLS: a node shows a certificate, and asks for its peers'."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import grpc
import pytest
from clustering import Cluster, ring_at, ring_of

from shardgit.blocks.nodes import Nodes
from shardgit.buckets.memory import MemoryBucket
from shardgit.errors import Unavailable
from shardgit.limits import Limits
from shardgit.oid import BlockId
from shardgit.rpc.peer import make_peer_server
from shardgit.rpc.peers import GrpcPeers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.cluster
MISSING = BlockId(b"\x77" * 32)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """A CA, a node's certificate by it, and one that nobody knows."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=tmp_path)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        subject = ("-subj", f"/CN={name}")
        openssl("req", "-x509", *curve, "-keyout", f"{name}.key", "-out", f"{name}.pem", *subject)
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("req", *curve, "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=node")
    openssl(
        *("x509", "-req", "-in", "node.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
        *("-CAcreateserial", "-out", "node.pem", "-extfile", "names"),
    )
    yield {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}


def test_only_who_shows_a_certificate_of_the_cluster_is_served(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    cluster = Cluster(tmp_path / "nodes", MemoryBucket(), count=1)
    node = cluster.nodes[0]
    pair = (files["node.key"], files["node.pem"])
    demanding = grpc.ssl_server_credentials([pair], files["ca.pem"], require_client_auth=True)
    server, port = cluster.loop.run(
        make_peer_server(node.blocks, Limits(), "127.0.0.1:0", credentials=demanding)
    )
    cluster.loop.run(server.start())
    ring = ring_at(ring_of(1, 1), 2, {0: port})
    ways = {
        "known": grpc.ssl_channel_credentials(files["ca.pem"], *pair),
        "nobody": grpc.ssl_channel_credentials(files["ca.pem"]),
        "stranger": grpc.ssl_channel_credentials(
            files["ca.pem"], files["other.key"], files["other.pem"]
        ),
        "deceived": grpc.ssl_channel_credentials(files["other.pem"], *pair),
        "plain": None,
    }
    told = {}
    for name, credentials in ways.items():
        peers = GrpcPeers(Nodes(0, ring), timeout_s=10, credentials=credentials)
        try:
            told[name] = list(peers.get(0, [MISSING], only_here=True))
        except Unavailable:
            told[name] = []
        finally:
            peers.close()
    assert told == {**{key: [] for key in ways}, "known": [(MISSING, None)]}
    cluster.loop.run(server.stop(0))
    cluster.close()
