"""git-http-backend: a CGI request becomes an HTTP request to shardgit's own HTTP edge."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import TYPE_CHECKING

from aiohttp import web
from gitsuite.disk import DiskRepository, NoRepository, enter
from gitsuite.load import load
from gitsuite.pushes import DiskReceives

from shardgit.http.app import GitHttp

if TYPE_CHECKING:
    from gitsuite.programs import Programs, Wire
    from gitsuite.server import Call

NAME = "repository"
# The web server in front makes these its own; the tests compare the rest with git's, line by line.
NOT_PASSED_ON = (b"connection:", b"date:", b"server:", b"x-request-id:")
SERVICE = re.compile(r"(.*?)(/info/refs|/git-upload-pack|/git-receive-pack|/HEAD|/objects/.*)")


async def answer(programs: Programs, call: Call, wire: Wire) -> int:
    """Answer one CGI request."""
    environment = dict(call.environment)
    user = environment.get("REMOTE_USER") or "anonymous"
    environment.setdefault("GIT_COMMITTER_NAME", user)
    address = environment.get("REMOTE_ADDR") or "unknown"
    environment.setdefault("GIT_COMMITTER_EMAIL", f"{user}@http.{address}")
    path = environment.get("PATH_TRANSLATED", "")
    root = environment.get("GIT_PROJECT_ROOT", "")
    if root:
        path = root + environment.get("PATH_INFO", "")
    found = SERVICE.fullmatch(path)
    body = b""
    length = environment.get("CONTENT_LENGTH", "")
    pieces = []
    if environment.get("REQUEST_METHOD") == "POST":
        left = int(length) if length else None
        while left is None or left:
            piece = await wire.read()
            if not piece:
                break
            pieces.append(piece)
            if left is not None:
                left -= len(piece)
        body = b"".join(pieces)
    with programs.stores.fresh() as store:
        edge = GitHttp(store, version="suite")
        try:
            if found is None:
                raise NoRepository(path)
            folder = enter(found[1], call.cwd)
            exported = "GIT_HTTP_EXPORT_ALL" in environment
            if not exported and not (folder / "git-daemon-export-ok").exists():
                raise NoRepository(path)
            disk = DiskRepository(folder, programs.git, environment)
            pushes = "receive-pack" in found[2] + environment.get("QUERY_STRING", "")
            load(store, NAME, disk, dangling=pushes)
            edge.receives = DiskReceives(store, NAME, disk, edge.receives)
        except NoRepository:
            pass
        ours, theirs = socket.socketpair()
        runner = web.AppRunner(edge.app(), handler_cancellation=True, auto_decompress=False)
        await runner.setup()
        try:
            assert runner.server is not None
            await asyncio.get_running_loop().connect_accepted_socket(runner.server, theirs)
            reader, writer = await asyncio.open_connection(sock=ours)
            service = found[2] if found else "/info/refs"
            query = environment.get("QUERY_STRING", "")
            method = environment.get("REQUEST_METHOD", "GET")
            lines = [f"{method} /{NAME}.git{service}{'?' + query if query else ''} HTTP/1.0"]
            lines += [f"{name}: {value}" for name, value in headers(environment)]
            if method == "POST":
                lines.append(f"Content-Length: {len(body)}")
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body)
            head = await reader.readuntil(b"\r\n\r\n")
            first, rest = head.split(b"\r\n", 1)
            _, status, reason = first.split(b" ", 2)
            kept = [
                line
                for line in rest.split(b"\r\n")
                if line and not line.lower().startswith(NOT_PASSED_ON)
            ]
            out = b"Status: %s %s\r\n" % (status, reason) if status != b"200" else b""
            await wire.write(out + b"".join(line + b"\r\n" for line in kept) + b"\r\n")
            while piece := await reader.read(1 << 16):
                await wire.write(piece)
            writer.close()
        finally:
            await runner.cleanup()
    return 0


def headers(environment: dict[str, str]) -> list[tuple[str, str]]:
    """Return the request's headers out of CGI variables."""
    found = [("Host", "suite")]
    if environment.get("CONTENT_TYPE"):
        found.append(("Content-Type", environment["CONTENT_TYPE"]))
    skipped = ("HTTP_HOST", "HTTP_CONNECTION", "HTTP_EXPECT", "HTTP_TRANSFER_ENCODING")
    for key, value in environment.items():
        if key.startswith("HTTP_") and key not in skipped:
            found.append((key[5:].replace("_", "-").title(), value))
    if "GIT_PROTOCOL" in environment:  # the web server's configuration knows better than the client
        found = [(key, value) for key, value in found if key != "Git-Protocol"]
        found.append(("Git-Protocol", environment["GIT_PROTOCOL"]))
    return found
