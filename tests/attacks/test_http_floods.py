"""Heads and bodies that grow, connections that hold on, clients that ask and do not listen."""

from __future__ import annotations

import base64
import contextlib
import gzip
import os
import time
import zlib
from typing import TYPE_CHECKING

import pytest
from attacking import Target, target
from served import git

from shardgit.protocol.pktline import Mark, encode

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

pytestmark = pytest.mark.interop
CROWD = 60
NOISE_BYTES = 8 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with target(tmp_path_factory.mktemp("http")) as made:
        work = made.folder / "noise"
        assert made.clone("noise").returncode == 0
        (work / "noise").write_bytes(os.urandom(NOISE_BYTES))
        git(work, "add", "-A")
        git(work, "commit", "-qm", "noise")
        git(work, "push", "-q", "origin", "HEAD:refs/heads/noise")
        yield made


def post(served: Target, length: str, *lines: str) -> bytes:
    proof = base64.b64encode(f"x:{served.reader}".encode()).decode()
    head = [
        "POST /team/app.git/git-upload-pack HTTP/1.1",
        "Host: x",
        f"Authorization: Basic {proof}",
        "Git-Protocol: version=2",
        "Content-Type: application/x-git-upload-pack-request",
        length,
        *lines,
    ]
    return "\r\n".join([*head, "", ""]).encode()


def poured(served: Target, first: bytes, more: bytes, times: int) -> tuple[int, bytes]:
    """Send more and more; returns how much was taken and what was said."""
    sent, got = 0, b""
    with served.connect("http") as client:
        client.settimeout(5)
        with contextlib.suppress(OSError):
            client.sendall(first)
            for _ in range(times):
                client.sendall(more)
                sent += len(more)
        client.settimeout(1)
        with contextlib.suppress(OSError):
            while piece := client.recv(1 << 16):
                got += piece
    return sent, got


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n" * 1_000),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: " + b"y" * 8_000 + b"\r\n"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"y" * 65_536),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"y" * 65_536),
        (b"GET /", b"y" * 65_536),
        (b"", b"G" * 65_536),
        (b"", b"\r\n" * 32_768),
    ],
)
def test_a_head_without_end_is_cut_off(served: Target, first: bytes, more: bytes) -> None:
    with served.unharmed():
        sent, got = poured(served, first, more, 600)
    # Empty lines before a request are passed over, until the time for a head is over.
    assert sent < 600 * len(more) or got.startswith(b"HTTP/1.0 400") or more == b"\r\n" * 32_768
    assert b" 200 " not in got


def test_chunks_with_long_extensions_and_trailers_are_cut_off(served: Target) -> None:
    head = post(served, "Transfer-Encoding: chunked")
    with served.unharmed():
        for first, more in (
            (head + b"4;", b"x" * 65_536),
            (head + b"0\r\n", b"T: " + b"x" * 8_000 + b"\r\n"),
        ):
            poured(served, first, more, 100)


def test_a_flood_of_tiny_chunks_is_refused(served: Target) -> None:
    with served.unharmed():
        head = post(served, "Transfer-Encoding: chunked")
        _, got = poured(served, head, b"1\r\n0\r\n" * 20_000, 20)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert b"too small chunks" in got


def bombs() -> dict[str, bytes]:
    """Return bodies of some hundred KiB at most that inflate to 70 MiB."""
    once = gzip.compress(bytes(70 << 20), 1)
    zeros = gzip.compress(b"0000" * (18 << 20), 1)
    member = gzip.compress(bytes(1 << 20), 9)
    name = b"\x1f\x8b\x08\x08\0\0\0\0\0\3" + b"n" * (4 << 20)
    return {
        "zeros": once,
        "flushes": zeros,
        "members": member * 70,
        "nested": gzip.compress(once),
        "empty members": gzip.compress(b"") * 20_000,
        "a name without end": name,
        "empty blocks": b"\x1f\x8b\x08\0\0\0\0\0\0\3" + b"\0\0\0\xff\xff" * 400_000,
        "garbage behind": gzip.compress(b"0000") + os.urandom(1 << 20),
        "deflate": zlib.compress(bytes(1 << 20)),
    }


def test_bombs_of_gzip_are_refused_in_little_memory(served: Target) -> None:
    with served.unharmed():
        for name, body in bombs().items():
            length = f"Content-Length: {len(body)}"
            head = post(served, length, "Content-Encoding: gzip", "Connection: close")
            _, got = poured(served, head + body, b"", 0)
            status = got.split(b" ")[1:2]
            assert status in ([b"400"], [b"413"], [b"200"]), (name, got[:200])
            assert status != [b"200"] or b"ERR " in got, (name, got[-200:])


def test_encodings_on_encodings_are_refused(served: Target) -> None:
    body = gzip.compress(gzip.compress(b"0000"))
    length = f"Content-Length: {len(body)}"
    head = post(served, length, "Content-Encoding: gzip, gzip", "Connection: close")
    _, got = poured(served, head + body, b"", 0)
    assert got.startswith(b"HTTP/1.1 415 ")


def fetch(served: Target) -> bytes:
    """Return the request for the noise, which fits into no buffer."""
    tip = git(served.folder / "noise", "rev-parse", "HEAD").encode()
    body = encode([b"command=fetch", Mark.DELIM, b"want " + tip, b"done", Mark.FLUSH])
    return post(served, f"Content-Length: {len(body)}") + body


def crowd(served: Target, count: int) -> Iterator[socket.socket]:
    asked = fetch(served)
    for _ in range(count):
        client = served.connect("http", takes=4_096)
        client.sendall(asked)
        yield client


def test_a_crowd_that_does_not_listen_takes_a_bounded_memory_and_gives_it_back(
    served: Target,
) -> None:
    before = served.memory()
    with served.unharmed(), contextlib.ExitStack() as held:
        for client in crowd(served, CROWD):
            held.enter_context(client)
            assert client.recv(12) == b"HTTP/1.1 200"
        # A piece or two of each client and what they share; the pack itself is larger.
        assert served.memory() - before < CROWD * (6 << 20)


@pytest.mark.heavy
def test_a_large_crowd_leaves_room_for_others(served: Target) -> None:
    with served.unharmed(), contextlib.ExitStack() as held:
        for client in crowd(served, 600):
            held.enter_context(client)
        time.sleep(5)


def test_requests_that_are_sent_ahead_wait_for_their_answers_to_be_taken(served: Target) -> None:
    one = b"GET /team/app.git/info/refs?service=git-receive-pack HTTP/1.1\r\nHost: x\r\n\r\n"
    taken = 0
    with served.unharmed(64 << 20), served.connect("http", takes=4_096) as client:
        client.settimeout(2)
        with contextlib.suppress(OSError):
            for _ in range(400):
                client.sendall(one * 500)
                taken += 1
    assert taken < 400


def test_slow_heads_and_bodies_hold_up_nobody(served: Target) -> None:
    """Some hundred of each; the time at which they are cut is tested in tests/unit/test_http_connections.py."""
    body = post(served, "Content-Length: 1000")
    with served.unharmed(), contextlib.ExitStack() as held:
        for number in range(200):
            client = held.enter_context(served.connect("http"))
            client.sendall((b"GET / HTTP/1.1\r\nHo", body + b"00")[number % 2])
