"""HTTP/2 at its worst on the gRPC port: floods of frames, headers without end, thousands of streams, bombs."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import TYPE_CHECKING

import grpc
import pytest
from attacking import Target, target
from reference.serving import serving_rpc

from shardgit.client import connect
from shardgit.errors import LimitExceeded, ShardgitError
from shardgit.limits import DEFAULT, Limits
from shardgit.node import create_store, open_store
from shardgit.v1 import object_pb2, object_pb2_grpc, repository_pb2, repository_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_HEADERS = 4
METHOD = b"/shardgit.v1.RepositoryService/GetRepository"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with target(tmp_path_factory.mktemp("floods")) as made:
        yield made


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:]
    return head + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """Return a header field that is not to be remembered."""

    def text(raw: bytes) -> bytes:
        if len(raw) < 127:
            return bytes([len(raw)]) + raw
        rest, out = len(raw) - 127, bytearray([127])
        while rest >= 128:
            out.append(rest & 127 | 128)
            rest >>= 7
        return bytes(out) + bytes([rest]) + raw

    return b"\0" + text(name) + text(value)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)
CALL = b"".join(
    literal(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", METHOD),
        (b":authority", b"x"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)


def flood(served: Target, pieces: Iterator[bytes], *, reads: bool = False) -> int:
    """Send pieces until there are no more or the server has enough; returns how many bytes it took."""
    sent = 0
    with served.connect("grpc") as client, contextlib.suppress(OSError):
        client.settimeout(5)
        client.sendall(PREFACE)
        for piece in pieces:
            client.sendall(piece)
            sent += len(piece)
            while reads:
                client.setblocking(False)
                try:
                    if not client.recv(1 << 16):
                        return sent
                except BlockingIOError:
                    break
                finally:
                    client.settimeout(5)
    return sent


@pytest.mark.parametrize("reads", [True, False])
def test_pings_and_settings_are_no_load(served: Target, reads: bool) -> None:
    pings = frame(PING, 0, 0, b"12345678") * 500
    settings = frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 100)) * 500
    with served.unharmed():
        for piece in (pings, settings):
            flood(served, (piece for _ in range(60)), reads=reads)


def test_calls_that_are_reset_at_once_are_no_load(served: Target) -> None:
    def calls() -> Iterator[bytes]:
        stream = 1
        for _ in range(60):
            out = b""
            for _ in range(100):
                out += frame(HEADERS, END_HEADERS, stream, CALL)
                out += frame(RESET, 0, stream, struct.pack(">I", 8))
                stream += 2
            yield out

    with served.unharmed():
        flood(served, calls(), reads=True)


def test_a_connection_has_so_many_calls_and_no_more(served: Target) -> None:
    """Its client hears of the bound in the settings, and what is over it is reset."""
    told = b""
    with served.unharmed(), served.connect("grpc") as client:
        client.sendall(PREFACE)
        calls = (frame(HEADERS, END_HEADERS, 2 * n + 1, CALL) for n in range(2_000))
        client.sendall(b"".join(calls))
        client.settimeout(1)
        with contextlib.suppress(OSError):
            while piece := client.recv(1 << 16):
                told += piece
    most = struct.pack(">HI", 3, 1_000)
    assert most in told[:200]
    assert frames(told).count(RESET) >= 900


def frames(data: bytes) -> list[int]:
    found = []
    while len(data) >= 9:
        found.append(data[3])
        data = data[9 + int.from_bytes(data[:3], "big") :]
    return found


def test_headers_without_end_are_not_kept(served: Target) -> None:
    more = frame(CONTINUATION, 0, 1, literal(b"x" * 10, b"y" * 16_000)) * 10

    def pieces() -> Iterator[bytes]:
        yield frame(HEADERS, 0, 1, CALL)
        for _ in range(200):
            yield more

    with served.unharmed():
        flood(served, pieces())


def test_a_header_that_is_told_a_thousandfold_is_refused(served: Target) -> None:
    """One field of 4 KB in the table of HPACK, then named by a byte each time."""
    remembered = b"\x40" + literal(b"x-a", b"b" * 3_900)[1:]

    def pieces() -> Iterator[bytes]:
        yield frame(HEADERS, END_HEADERS, 1, CALL + remembered)
        for number in range(1, 30):
            yield frame(HEADERS, END_HEADERS, 2 * number + 1, CALL + b"\xbe" * 16_000)

    with served.unharmed():
        flood(served, pieces(), reads=True)


def test_metadata_over_the_bound_is_refused(served: Target) -> None:
    options = [("grpc.max_metadata_size", 1 << 22)]
    with served.unharmed(), grpc.insecure_channel(served.server.grpc, options=options) as channel:
        stub = repository_pb2_grpc.RepositoryServiceStub(channel)  # type: ignore[no-untyped-call]
        asked = repository_pb2.GetRepositoryRequest(name="team/app")
        for metadata in (
            [("x-big", "a" * (1 << 20))],
            [(f"x-{n}", "a" * 100) for n in range(2_000)],
        ):
            with pytest.raises(grpc.RpcError) as refused:
                stub.GetRepository(asked, metadata=metadata, timeout=20)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_messages_over_the_bound_are_refused(served: Target) -> None:
    with served.unharmed(), grpc.insecure_channel(served.server.grpc) as channel:
        token = (("authorization", f"Bearer {served.writer}"),)
        stub = object_pb2_grpc.ObjectServiceStub(channel)  # type: ignore[no-untyped-call]
        head = object_pb2.GetObjectsRequest.Header(repository="team/app")
        ids = object_pb2.GetObjectsRequest.Data(ids=[bytes(20)] * 250_000)
        asked = [
            object_pb2.GetObjectsRequest(header=head),
            object_pb2.GetObjectsRequest(data=ids),
        ]
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.GetObjects(iter(asked), metadata=token, timeout=20))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_message_that_claims_more_than_it_has_takes_no_memory(served: Target) -> None:
    """A length of 4 GiB, compressed or not, and of zlib's best."""
    before = served.memory()
    with served.unharmed():
        for number, flag in enumerate((b"\0", b"\1")):
            claim = flag + struct.pack(">I", 0xFFFFFFFF)
            body = frame(HEADERS, END_HEADERS, 1, CALL) + frame(DATA, 0, 1, claim + bytes(16_000))
            flood(served, iter([body] * (number + 1)))
        with grpc.insecure_channel(
            served.server.grpc, compression=grpc.Compression.Gzip
        ) as channel:
            stub = repository_pb2_grpc.RepositoryServiceStub(channel)  # type: ignore[no-untyped-call]
            bomb = repository_pb2.GetRepositoryRequest(name="a" * (64 << 20))  # 64 KiB on the wire
            with pytest.raises(grpc.RpcError) as refused:
                stub.GetRepository(bomb, timeout=20)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert served.memory() - before < 160 << 20


def test_names_and_pages_that_make_no_sense_are_refused(served: Target) -> None:
    with connect(served.server.grpc, served.admin) as client:
        repo = client.repo("team/app")
        for path in ("../x", "/etc/passwd", "a//b", "a/../b", "\0", "x" * 100_000, "a/" * 5_000):
            with pytest.raises(ShardgitError):
                repo.read("main", path)
        with pytest.raises(ShardgitError):
            client.create("team/../x")
        with pytest.raises((ShardgitError, LimitExceeded)):
            list(repo.log("main" + "^" * 100_000, limit=1))


async def test_half_open_connections_are_cut(tmp_path: Path) -> None:
    """Nobody says a word, or begins and goes on with nothing."""
    assert DEFAULT.handshake_max_s <= 10
    create_store(tmp_path / "data", shards=1)
    with open_store(tmp_path / "data", limits=Limits(handshake_max_s=0.5)) as store:
        async with serving_rpc(store) as address, asyncio.timeout(30):
            host, port = address.split(":")
            quiet = [await asyncio.open_connection(host, int(port)) for _ in range(40)]
            for number, (_, writer) in enumerate(quiet):
                writer.write(PREFACE[: 24 * (number % 2)])  # no settings behind it
            for reader, writer in quiet:
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                writer.close()
