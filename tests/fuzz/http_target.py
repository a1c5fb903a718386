"""The HTTP edge of a small store, fed with the bytes of a connection."""

from __future__ import annotations

import asyncio
import gzip
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web

from shardgit.http.app import GitHttp
from shardgit.http.connections import Connections
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.protocol.pktline import Mark, encode, line
from shardgit.service.repositories import Repositories
from shardgit.service.uploading import put_objects

if TYPE_CHECKING:
    from collections.abc import MutableMapping

WAIT_S = 0.5  # for an answer; a body that does not end is given up before
LIMITS = Limits(client_stall_max_s=0.01, request_body_max_bytes=1 << 20)


class Wire(asyncio.Transport):
    """A connection that takes whatever is written to it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.sent = b""
        self.closing = False
        self.high = 0

    def write(self, data: Any) -> None:
        """Keep the beginning."""
        if len(self.sent) < 1 << 16:
            self.sent += bytes(data)

    def writelines(self, data: Any) -> None:
        """Keep the beginning."""
        for each in data:
            self.write(each)

    def is_closing(self) -> bool:
        """Whether the server has enough."""
        return self.closing

    def close(self) -> None:
        """End."""
        self.closing = True

    abort = close

    def get_write_buffer_size(self) -> int:
        """Return 0: all is gone."""
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Take note of nothing."""

    def pause_reading(self) -> None:
        """Go on."""

    def resume_reading(self) -> None:
        """Go on."""

    def is_reading(self) -> bool:
        """Return True."""
        return True

    def can_write_eof(self) -> bool:
        """Return False."""
        return False


class Served:
    """A store with a repository of one blob, and its edge on a loop of its own."""

    def __init__(self) -> None:
        self.failed: list[MutableMapping[str, Any]] = []
        structlog.configure(processors=[self._look], logger_factory=structlog.ReturnLoggerFactory())
        folder = Path(tempfile.mkdtemp(prefix="fuzz-http-")) / "data"
        create_store(folder, shards=1)
        self._open = open_store(folder, limits=LIMITS, threads=1)
        store = self._open.__enter__()
        Repositories(store).create("demo")
        put_objects(store, "demo", [(3, b"text")])
        self.loop = asyncio.new_event_loop()
        self.connections = Connections(LIMITS)
        app = GitHttp(store, version="1").app()
        app.middlewares.insert(0, self.connections.heard)
        self.runner = web.AppRunner(
            app, access_log=None, auto_decompress=False, handler_cancellation=True
        )
        self.loop.run_until_complete(self.runner.setup())
        self.connections._server = self.runner.server

    def _look(self, _: object, __: str, event: MutableMapping[str, Any]) -> str:
        if event.get("level") == "error" or "exc_info" in event:
            self.failed.append(event)
        return ""

    async def take(self, data: bytes) -> bytes:
        """Return what a connection with these bytes is answered."""
        wire = Wire()
        protocol = self.connections()
        protocol.connection_made(wire)
        inner = protocol._inner  # type: ignore[attr-defined]
        size = 1 + data[0] * 7 if data else 1
        for at in range(1, len(data), size):
            if wire.closing:
                break
            protocol.data_received(data[at : at + size])  # type: ignore[attr-defined]
        async with asyncio.timeout(WAIT_S * 20):
            for _ in range(int(WAIT_S * 1_000)):
                await asyncio.sleep(0)
                if wire.closing or (inner._current_request is None and not inner._messages):
                    break
                await asyncio.sleep(0.001)
        protocol.connection_lost(None)
        await asyncio.sleep(0)
        return wire.sent


_served: list[Served] = []


def run(data: bytes) -> None:
    """Send a connection's bytes, in pieces as the first says: answers are HTTP, and nothing unexpected is raised."""
    if not _served:
        _served.append(Served())
    served = _served[0]
    answer = served.loop.run_until_complete(served.take(data))
    assert not answer or answer.startswith(b"HTTP/"), answer[:100]
    assert not served.failed, served.failed
    status = answer.split(b" ", 2)[1:2]
    assert status not in ([b"500"], [b"502"]), answer[:200]


def requests() -> list[bytes]:
    """Return connections: of git, of git-lfs, with bodies in all ways."""
    refs = encode([b"command=ls-refs", Mark.FLUSH])
    post = b"POST /demo.git/git-upload-pack HTTP/1.1\r\nHost: x:1\r\nGit-Protocol: version=2\r\n"
    post += b"Content-Type: application/x-git-upload-pack-request\r\n"
    packed = gzip.compress(refs)
    chunks = b"".join(b"%x;e=1\r\n%s\r\n" % (len(each), each) for each in (refs[:5], refs[5:]))
    lfs = b'{"operation":"download","objects":[{"oid":"' + b"a" * 64 + b'","size":1}]}'
    kind = b"application/vnd.git-lfs+json"
    get = b"GET /demo.git/info/refs?service=git-%s HTTP/1.1\r\nHost: x\r\nAuthorization: Basic eDp5\r\n\r\n"
    push = line(b"0" * 40 + b" " + b"1" * 40 + b" refs/heads/a\0report-status") + b"0000PACK"
    return [
        b"\xff" + get % b"upload-pack" + get % b"receive-pack",
        b"\x03" + post + b"Content-Length: %d\r\n\r\n" % len(refs) + refs,
        b"\xff" + post + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nT: x\r\n\r\n",
        b"\xff"
        + post
        + b"Content-Encoding: gzip\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n%s"
        % (len(packed), packed),
        b"\xffPOST /demo.git/info/lfs/objects/batch HTTP/1.1\r\nHost: x\r\nAccept: %s\r\n"
        b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (kind, kind, len(lfs), lfs),
        b"\xffGET /demo.git/info/lfs/objects/%s HTTP/1.1\r\nHost: x\r\nRange: bytes=1-2\r\n\r\n"
        % (b"a" * 64),
        b"\xffPOST /demo.git/git-receive-pack HTTP/1.0\r\n"
        b"Content-Type: application/x-git-receive-pack-request\r\nContent-Length: %d\r\n\r\n%s"
        % (len(push), push),
        b'\xffGET /demo.git/clone.bundle HTTP/1.1\r\nHost: [::1]:1\r\nIf-None-Match: "x"\r\n\r\n',
    ]
