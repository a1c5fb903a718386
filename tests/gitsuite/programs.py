"""git's server programs by name, spoken by shardgit's services over a caller's standard files."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

from gitsuite import cgi_edge
from gitsuite.disk import DiskRepository, NoRepository, enter, option_values
from gitsuite.load import load
from gitsuite.pushes import DiskReceives

from shardgit.errors import ShardgitError
from shardgit.protocol.pktline import error_line
from shardgit.protocol.upload_pack_v0 import VERSION_1_LINE, RequestV0
from shardgit.protocol.upload_pack_v2 import RequestV2, advertise_v2
from shardgit.service.access import trusted
from shardgit.service.conversation import Conversations, GitService, asked_version
from shardgit.service.fetch import FetchService
from shardgit.service.receive import ReceiveService

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from gitsuite.server import Call, Stores

    from shardgit.service.store import Store

VERSION = "suite"
NAME = "repository"


class Wire:
    """A caller's standard input and output, or a socket, read and written by threads."""

    def __init__(self, source: int, sink: int) -> None:
        self.source = source
        self.sink = sink

    async def read(self) -> bytes:
        """Return what comes next, b"" at the end."""
        return await asyncio.to_thread(os.read, self.source, 1 << 16)

    async def write(self, data: bytes) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            view = view[await asyncio.to_thread(os.write, self.sink, view[: 1 << 16]) :]

    async def pieces(self) -> AsyncIterator[bytes]:
        """Return what comes until the end."""
        while piece := await self.read():
            yield piece


class Programs:
    """Runs a call; the code it returns is the shim's exit code."""

    def __init__(self, stores: Stores, git: str) -> None:
        self.stores = stores
        self.git = git

    async def run(self, call: Call) -> int:
        """Run one call."""
        wire = Wire(call.files[0], call.files[1])
        programs = {
            "git-upload-pack": self._upload_pack,
            "git-receive-pack": self._receive_pack,
            "git-upload-archive": self._upload_archive,
            "git-http-backend": self._http_backend,
            "serve-v2": self._serve_v2,
        }
        program = programs.get(call.name)
        if call.name == "git-daemon":
            return await self._daemon(call)
        if program is None:
            call.complain(f"fatal: the suite has no {call.name}")
            return 128
        try:
            return await program(call, wire)
        except NoRepository as error:
            call.complain(f"fatal: '{error}' does not appear to be a git repository")
        except ShardgitError as error:
            call.complain(f"fatal: {error}")
        return 128

    def repository(self, call: Call, text: str, *, strict: bool = False) -> DiskRepository:
        """Open the repository that a program is asked for."""
        return DiskRepository(enter(text, call.cwd, strict=strict), self.git, call.environment)

    # ---- upload-pack ----

    async def _upload_pack(self, call: Call, wire: Wire) -> int:
        options, rest = option_values(call.words)
        if len(rest) != 1:
            call.complain("usage: git-upload-pack [--[no-]strict] [--timeout=<n>] <directory>")
            return 129
        disk = self.repository(call, rest[0], strict="strict" in options)
        with self.stores.fresh() as store:
            load(store, NAME, disk)
            await fetches(store, wire, options, call.environment)
        return 0

    async def _serve_v2(self, call: Call, wire: Wire) -> int:
        options, _ = option_values(call.words)
        environment = {**call.environment, "GIT_PROTOCOL": "version=2"}
        if "advertise-capabilities" in options:
            options["advertise-refs"] = "true"
        disk = self.repository(call, environment.get("GIT_DIR", "."))
        with self.stores.fresh() as store:
            load(store, NAME, disk)
            await fetches(store, wire, options, environment)
        return 0

    # ---- receive-pack ----

    async def _receive_pack(self, call: Call, wire: Wire) -> int:
        _, rest = option_values(call.words)
        if len(rest) != 1:
            call.complain("usage: git-receive-pack <git-dir>")
            return 129
        disk = self.repository(call, rest[0])
        with self.stores.fresh() as store:
            load(store, NAME, disk, dangling=True)
            await pushes(store, wire, disk, call.environment)
        return 0

    # ---- upload-archive ----

    async def _upload_archive(self, call: Call, wire: Wire) -> int:
        _, rest = option_values(call.words)
        disk = self.repository(call, rest[0] if rest else ".")
        with self.stores.fresh() as store:
            load(store, NAME, disk)
            host = Conversations(store, version=VERSION)
            source = host.converse(
                GitService.UPLOAD_ARCHIVE, NAME, wire.pieces(), principal=trusted("anonymous")
            )
            async with aclosing(source) as pieces:
                async for piece in pieces:
                    await wire.write(piece)
        return 0

    # ---- http-backend ----

    async def _http_backend(self, call: Call, wire: Wire) -> int:
        return await cgi_edge.answer(self, call, wire)

    # ---- daemon ----

    async def _daemon(self, call: Call) -> int:
        options, _ = option_values(call.words)
        loop = asyncio.get_running_loop()
        listener = socket.create_server(
            (options.get("listen", "127.0.0.1"), int(options["port"])), reuse_port=False
        )
        listener.setblocking(False)
        pid_file = options.get("pid-file")
        if pid_file:
            with open(os.path.join(call.cwd, pid_file), "w") as file:
                file.write(f"{call.pid}\n")
        call.complain(f"[{call.pid}] Ready to rumble")
        gone = loop.create_task(asyncio.to_thread(call.peer.recv, 1))
        tasks: set[asyncio.Task[None]] = set()
        try:
            while not gone.done():
                accept = loop.create_task(loop.sock_accept(listener))
                await asyncio.wait({accept, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not accept.done():
                    accept.cancel()
                    break
                client, _address = accept.result()
                task = loop.create_task(self._daemon_client(call, client, options))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        finally:
            listener.close()
            for task in tasks:
                task.cancel()
        return 0

    async def _daemon_client(
        self, call: Call, client: socket.socket, options: dict[str, str]
    ) -> None:
        """Serve one git:// connection."""
        client.setblocking(True)
        with client:
            wire = Wire(client.fileno(), client.fileno())
            head = b""
            while len(head) < 4 or len(head) < int(head[:4], 16):
                piece = await asyncio.to_thread(
                    client.recv, int(head[:4], 16) - len(head) if len(head) >= 4 else 4 - len(head)
                )
                if not piece:
                    return
                head += piece
            words = head[4:].decode("utf-8", "surrogateescape").split("\0")
            program, _, path = words[0].rstrip("\n").partition(" ")
            more = words[words.index("", 1) + 1 :] if "" in words[1:-1] else []
            environment = {k: v for k, v in call.environment.items() if k != "GIT_PROTOCOL"}
            asked = ":".join(word for word in more if word)
            if asked:
                environment["GIT_PROTOCOL"] = asked
            place = options.get("base-path", "") + path
            call.complain(f"[{call.pid}] Request {program.removeprefix('git-')} for '{path}'")
            try:
                folder = enter(place, call.cwd, strict="strict-paths" in options)
                if "export-all" not in options and not (folder / "git-daemon-export-ok").exists():
                    raise NoRepository(path)
                disk = DiskRepository(folder, self.git, environment)
                service = program.removeprefix("git-").replace("-", "")
                allowed = disk.flag(
                    f"daemon.{service}",
                    default=program == "git-upload-pack"
                    or options.get("enable") == program.removeprefix("git-"),
                )
                if not allowed:
                    raise NoRepository(path)
            except NoRepository:
                await wire.write(error_line(f"access denied or repository not exported: {path}"))
                return
            with suppress(ConnectionError, ShardgitError), self.stores.fresh() as store:
                if program == "git-upload-pack":
                    await asyncio.to_thread(load, store, NAME, disk)
                    await fetches(store, wire, {}, environment)
                elif program == "git-receive-pack":
                    await asyncio.to_thread(load, store, NAME, disk)
                    await pushes(store, wire, disk, environment)


async def fetches(
    store: Store, wire: Wire, options: Mapping[str, str], environment: Mapping[str, str]
) -> None:
    """Hold one conversation of upload-pack."""
    version = asked_version(environment.get("GIT_PROTOCOL", ""))
    stateless = "stateless-rpc" in options
    advertise = "advertise-refs" in options or "http-backend-info-refs" in options
    if not advertise and not stateless:
        host = Conversations(store, version=VERSION)
        source = host.converse(
            GitService.UPLOAD_PACK,
            NAME,
            wire.pieces(),
            principal=trusted("anonymous"),
            version=version,
        )
    elif advertise:
        source = shown(store, version)
    else:
        source = answered(store, wire, version)
    async with aclosing(source) as pieces:
        async for piece in pieces:
            await wire.write(piece)


async def pushes(
    store: Store, wire: Wire, disk: DiskRepository, environment: Mapping[str, str]
) -> None:
    """Hold one conversation of receive-pack."""
    receives = DiskReceives(store, NAME, disk, ReceiveService(store, version=VERSION))
    host = Conversations(store, version=VERSION, receives=receives)
    version = asked_version(environment.get("GIT_PROTOCOL", ""))
    source = host.converse(
        GitService.RECEIVE_PACK,
        NAME,
        wire.pieces(),
        principal=trusted("anonymous"),
        version=version,
    )
    async with aclosing(source) as pieces:
        async for piece in pieces:
            await wire.write(piece)


async def shown(store: Store, version: int) -> AsyncGenerator[bytes, None]:
    """Return the advertisement alone."""
    service = FetchService(store, version=VERSION)
    terms = await service.terms(NAME)
    if version == 2:
        yield advertise_v2(terms.kind, VERSION, terms.offer, bundle_uri=terms.lists_bundles)
        return
    if version == 1:
        yield VERSION_1_LINE
    async for piece in service.advertisement(NAME, terms):
        yield piece


async def answered(store: Store, wire: Wire, version: int) -> AsyncGenerator[bytes, None]:
    """Return the answer to one stateless request."""
    service = FetchService(store, version=VERSION)
    terms = await service.terms(NAME)
    reader = (RequestV2 if version == 2 else RequestV0)(
        terms.kind, limits=store.limits, offer=terms.offer
    )
    try:
        async for piece in wire.pieces():
            reader.receive(piece)
            if reader.ended:
                break
        command = reader.finish()
        if command is not None:
            async for piece in service.answer(NAME, command):
                yield piece
    except ShardgitError as error:
        yield error_line(str(error))
        raise
