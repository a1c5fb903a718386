"""Clients that clone and throw all of it away in the kernel: recv with MSG_TRUNC copies nothing out of a TCP socket."""

from __future__ import annotations

import selectors
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOM_BYTES = 4 << 20


def clone_request(url: str, body: bytes) -> bytes:
    """Return a v2 request after whose answer the server closes, so that its end shows without a look at it."""
    at = urlsplit(url)
    head = (
        f"POST {at.path}/git-upload-pack HTTP/1.1\r\nHost: {at.netloc}\r\nConnection: close\r\n"
        "Content-Type: application/x-git-upload-pack-request\r\nGit-Protocol: version=2\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def discard_many(url: str, requests: Sequence[bytes]) -> list[int]:
    """Send each request on a connection of its own, all at once; returns the bytes of each answer, head included."""
    return discard_each([(url, request) for request in requests])


def discard_each(asked: Sequence[tuple[str, bytes]]) -> list[int]:
    """Do the same for requests to several servers."""
    room = bytearray(ROOM_BYTES)
    sizes = [0] * len(asked)
    with selectors.DefaultSelector() as waiting:
        for number, (url, request) in enumerate(asked):
            at = urlsplit(url)
            assert at.hostname is not None
            assert at.port is not None
            client = socket.create_connection((at.hostname, at.port))
            client.sendall(request)
            client.setblocking(False)
            waiting.register(client, selectors.EVENT_READ, number)
        while waiting.get_map():
            for key, _ in waiting.select():
                client = key.fileobj
                assert isinstance(client, socket.socket)
                try:
                    got = client.recv_into(room, 0, socket.MSG_TRUNC)
                except BlockingIOError:
                    continue
                sizes[key.data] += got
                if not got:
                    waiting.unregister(client)
                    client.close()
    return sizes


def whole_answer(url: str, body: bytes) -> int:
    """Return the bytes of an answer, head included, whose end was looked at: what the others are held against."""
    at = urlsplit(url)
    assert at.hostname is not None
    assert at.port is not None
    size, tail = 0, b""
    with socket.create_connection((at.hostname, at.port)) as client:
        client.sendall(clone_request(url, body))
        while piece := client.recv(1 << 20):
            size += len(piece)
            tail = (tail + piece)[-64:]
    if b"0000" not in tail:
        raise SystemExit(f"the answer of {url} is cut short: {tail!r}")
    return size
