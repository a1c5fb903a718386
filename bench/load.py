"""Clients that cost next to nothing: prepared requests over raw sockets, all of them in one epoll loop.

What a client spends is taken from the server on a machine whose cores both share; http.client in a thread a client
spent about a millisecond a request.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from dataclasses import dataclass, field

PIECE_BYTES = 1 << 20
TAIL_BYTES = 16


@dataclass(frozen=True, slots=True)
class Exchange:
    """Requests that are sent one after another, each when the answer to the one before is whole; timed together.

    ``good`` must stand in the last answer and ``bad`` must not, where they are given, and ``end`` in its last bytes; of
    a long answer only the beginning and the end are kept.
    """

    requests: tuple[bytes, ...]
    good: bytes = b""
    bad: bytes = b""
    end: bytes = b""


class _Answer:
    """Reads one HTTP answer: its head, then a body that has a length or chunks, or lasts until the end."""

    KEEP_BYTES = 1 << 16

    def __init__(self) -> None:
        self.head = b""
        self.start = b""  # of the body, for a look at what it says
        self.tail = b""
        self.count = 0
        self._length = -1
        self._chunked = False

    def feed(self, data: memoryview) -> bool:
        """Take what came; say whether the answer is whole."""
        if not self._length + 1 and not self._chunked:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return False
            data, self.head = memoryview(self.head)[end + 4 :], self.head[: end + 4].lower()
            at = self.head.find(b"content-length:")
            self._chunked = at < 0
            if at >= 0:
                self._length = int(self.head[at + 15 : self.head.index(b"\r\n", at)])
        self.count += len(data)
        if len(self.start) < self.KEEP_BYTES:
            self.start += data[: self.KEEP_BYTES]
        self.tail = (self.tail + data[-TAIL_BYTES:])[-TAIL_BYTES:]
        if self._chunked:
            return self.tail.endswith(b"\r\n0\r\n\r\n") or self.tail == b"0\r\n\r\n"
        return self.count >= self._length

    def check(self, exchange: Exchange, last: bool) -> None:
        """Stop the benchmark where the server refused."""
        seen = self.start + self.tail
        wrong = last and (
            (exchange.good and exchange.good not in seen) or (exchange.bad and exchange.bad in seen)
        )
        wrong = wrong or (last and exchange.end not in self.tail)
        if wrong or not self.head.startswith((b"http/1.1 200", b"http/1.0 200")):
            raise SystemExit(f"server refused: {self.head[:200]!r} {self.start[:300]!r}")


@dataclass(slots=True)
class _Client:
    where: tuple[str, int]
    left: deque[Exchange]
    socket: socket.socket | None = None
    at: int = 0
    begun: float = 0.0
    answer: _Answer = field(default_factory=_Answer)
    unsent: bytes | memoryview = b""


def run(
    where: tuple[str, int], jobs: list[list[Exchange]], sizes: list[int] | None = None
) -> list[float]:
    """Run each client's exchanges, all clients side by side; returns each exchange's time in seconds.

    ``sizes`` takes the bytes of each one's last answer, framing of HTTP included.
    """
    return run_each([(where, job) for job in jobs], sizes)


def run_each(
    jobs: list[tuple[tuple[str, int], list[Exchange]]], sizes: list[int] | None = None
) -> list[float]:
    """Do the same with clients of several servers."""
    out: list[float] = []
    room = memoryview(bytearray(PIECE_BYTES))
    with selectors.DefaultSelector() as waiting:
        clients = [_Client(where, deque(job)) for where, job in jobs if job]
        for client in clients:
            _next(client, waiting)
        busy = len(clients)
        while busy:
            for key, events in waiting.select():
                client = key.data
                if events & selectors.EVENT_WRITE:
                    _send(client, waiting)
                if events & selectors.EVENT_READ and _receive(client, waiting, room):
                    client.at += 1
                    if client.at == len(client.left[0].requests):
                        out.append(time.monotonic() - client.begun)
                        if sizes is not None:
                            sizes.append(client.answer.count)
                        client.left.popleft()
                        client.at = 0
                    if client.left:
                        _next(client, waiting)
                    else:
                        _close(client, waiting)
                        busy -= 1
    return out


def _next(client: _Client, waiting: selectors.BaseSelector) -> None:
    if client.at == 0:
        client.begun = time.monotonic()
    if client.socket is None:
        client.socket = socket.create_connection(client.where)
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.socket.setblocking(False)
        waiting.register(client.socket, selectors.EVENT_READ, client)
    client.answer = _Answer()
    client.unsent = memoryview(client.left[0].requests[client.at])
    _send(client, waiting)


def _send(client: _Client, waiting: selectors.BaseSelector) -> None:
    assert client.socket is not None
    try:
        sent = client.socket.send(client.unsent)
    except BlockingIOError:
        sent = 0
    except (BrokenPipeError, ConnectionResetError):
        _again(client, waiting)
        return
    client.unsent = client.unsent[sent:]
    more = selectors.EVENT_WRITE if client.unsent else 0
    waiting.modify(client.socket, selectors.EVENT_READ | more, client)


def _receive(client: _Client, waiting: selectors.BaseSelector, room: memoryview) -> bool:
    assert client.socket is not None
    try:
        count = client.socket.recv_into(room)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        count = 0
    if not count:
        if client.answer.head:
            raise SystemExit("server closed the connection inside an answer")
        _again(client, waiting)  # it had enough of this connection
        return False
    if not client.answer.feed(room[:count]):
        return False
    exchange = client.left[0]
    client.answer.check(exchange, client.at + 1 == len(exchange.requests))
    if b"connection: close" in client.answer.head:
        _close(client, waiting)
    return True


def _again(client: _Client, waiting: selectors.BaseSelector) -> None:
    begun = client.begun
    _close(client, waiting)
    _next(client, waiting)
    client.begun = begun


def _close(client: _Client, waiting: selectors.BaseSelector) -> None:
    if client.socket is not None:
        waiting.unregister(client.socket)
        client.socket.close()
        client.socket = None


def get(path: str, host: str, *, v2: bool = False) -> bytes:
    """Return a GET request."""
    more = "Git-Protocol: version=2\r\n" if v2 else ""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


def post(path: str, host: str, kind: str, body: bytes, *, v2: bool = False) -> bytes:
    """Return a POST request."""
    more = "Git-Protocol: version=2\r\n" if v2 else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n{more}\r\n"
    )
    return head.encode() + body
