"""Peers over TLS: a node shows a certificate, and asks for its peers'."""

from __future__ import annotations

import subprocess
from pathlib import Path

import grpc
import pytest
from clustering import Cluster, ring_at, ring_of

from shardgit import tls as tls_module
from shardgit.blocks.nodes import Nodes
from shardgit.buckets.memory import MemoryBucket
from shardgit.errors import Unavailable
from shardgit.limits import Limits
from shardgit.oid import BlockId
from shardgit.rpc.credentials import CallingCredentials
from shardgit.rpc.peer import make_peer_server
from shardgit.rpc.peers import GrpcPeers
from shardgit.tls import TlsFiles

pytestmark = pytest.mark.cluster
MISSING = BlockId(b"\x77" * 32)


def make_authority(folder: Path, name: str, node: str) -> None:
    """Make a CA and a node's certificate by it."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    subject = ("-subj", f"/CN={name}")
    openssl("req", "-x509", *curve, "-keyout", f"{name}.key", "-out", f"{name}.pem", *subject)
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("req", *curve, "-keyout", f"{node}.key", "-out", f"{node}.csr", "-subj", f"/CN={node}")
    openssl(
        *("x509", "-req", "-in", f"{node}.csr", "-CA", f"{name}.pem", "-CAkey", f"{name}.key"),
        *("-CAcreateserial", "-out", f"{node}.pem", "-extfile", "names"),
    )


class Fixed:
    """Credentials that stay as they are."""

    generation = 1

    def __init__(self, credentials: grpc.ChannelCredentials) -> None:
        self._credentials = credentials

    def now(self) -> tuple[int, grpc.ChannelCredentials]:
        return 1, self._credentials


def answer_of(peers: GrpcPeers) -> list[tuple[BlockId, bytes | None]]:
    try:
        return list(peers.get(0, [MISSING], only_here=True))
    except Unavailable:
        return []


def test_only_who_shows_a_certificate_of_the_cluster_is_served(tmp_path: Path) -> None:
    make_authority(tmp_path, "ca", "node")
    make_authority(tmp_path, "other", "stranger")
    files = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    pair = (files["node.key"], files["node.pem"])
    cluster = Cluster(tmp_path / "nodes", MemoryBucket(), count=1)
    node = cluster.nodes[0]
    tls = TlsFiles(*(str(tmp_path / one) for one in ("node.pem", "node.key", "ca.pem")))
    server, port = cluster.loop.run(make_peer_server(node.blocks, Limits(), "127.0.0.1:0", tls=tls))
    cluster.loop.run(server.start())
    ring = ring_at(ring_of(1, 1), 2, {0: port})
    ways = {
        "known": Fixed(grpc.ssl_channel_credentials(files["ca.pem"], *pair)),
        "nobody": Fixed(grpc.ssl_channel_credentials(files["ca.pem"])),
        "stranger": Fixed(
            grpc.ssl_channel_credentials(
                files["ca.pem"], files["stranger.key"], files["stranger.pem"]
            )
        ),
        "deceived": Fixed(grpc.ssl_channel_credentials(files["other.pem"], *pair)),
        "plain": None,
    }
    told = {}
    for name, credentials in ways.items():
        peers = GrpcPeers(Nodes(0, ring), timeout_s=10, credentials=credentials)
        told[name] = answer_of(peers)
        peers.close()
    assert told == {**{key: [] for key in ways}, "known": [(MISSING, None)]}
    cluster.loop.run(server.stop(0))
    cluster.close()


def test_nodes_take_certificates_anew_when_their_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_module, "LOOK_S", 0.0)
    make_authority(tmp_path, "ca", "node")
    paths = [str(tmp_path / one) for one in ("node.pem", "node.key", "ca.pem")]
    cluster = Cluster(tmp_path / "nodes", MemoryBucket(), count=1)
    server, port = cluster.loop.run(
        make_peer_server(cluster.nodes[0].blocks, Limits(), "127.0.0.1:0", tls=TlsFiles(*paths))
    )
    cluster.loop.run(server.start())
    ring = ring_at(ring_of(1, 1), 2, {0: port})
    before = {path: Path(path).read_bytes() for path in paths}
    old = GrpcPeers(
        Nodes(0, ring),
        timeout_s=10,
        credentials=Fixed(
            grpc.ssl_channel_credentials(before[paths[2]], before[paths[1]], before[paths[0]])
        ),
    )
    renewed = GrpcPeers(
        Nodes(0, ring), timeout_s=10, credentials=CallingCredentials(TlsFiles(*paths))
    )
    assert answer_of(renewed) == [(MISSING, None)]
    call = renewed.get(0, [MISSING], only_here=True)  # one that is under way
    make_authority(tmp_path, "ca", "node")  # all of it new, the authority too
    assert list(call) == [(MISSING, None)]
    assert answer_of(renewed) == [(MISSING, None)]
    assert answer_of(old) == []  # it connects for the first time
    old.close()
    renewed.close()
    cluster.loop.run(server.stop(0))
    cluster.close()
