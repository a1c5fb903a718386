"""A proxy before an S3 server that is slow, in error, or away when a test says so."""

from __future__ import annotations

import http.client
import socket
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Fault = str
"""``error`` (503), ``hang``, ``reset``, ``cut`` (half of the answer's body), ``flip`` (a bit of it)."""


class S3Proxy(ThreadingHTTPServer):
    """Passes requests on; ``fault`` says, for a method, what happens to one instead."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.fault: Callable[[str], Fault] = lambda _: ""
        self.seen: Counter[str] = Counter()
        self.released = threading.Event()  # ends what hangs

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def first(self, count: int, fault: Fault) -> None:
        """Let so many requests meet a fault, and those behind them none."""
        left = iter(range(count))
        self.fault = lambda _: fault if next(left, None) is not None else ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Proxy

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen[self.command] += 1
        fault = self.server.fault(self.command)
        if fault == "hang":
            self.server.released.wait(60)
            fault = "reset"
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            return
        if fault == "error":
            words = b"" if self.command == "HEAD" else b"<Error><Code>SlowDown</Code></Error>"
            self._answer(503, {}, words)
            return
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            upstream.request(self.command, self.path, body, dict(self.headers.items()))
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        headers = dict(answer.getheaders())
        if fault == "flip" and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        self._answer(answer.status, headers, data, cut=fault == "cut")

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            if key.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(key, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815


@contextmanager
def s3_proxy(upstream: str) -> Iterator[S3Proxy]:
    """Run a proxy before a server."""
    proxy = S3Proxy(upstream)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.released.set()
        proxy.shutdown()
        proxy.server_close()
        thread.join()
