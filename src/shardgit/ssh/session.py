"""One exec request on a connection: bytes in, bytes out, both bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

import asyncssh

from shardgit import telemetry
from shardgit.errors import Internal, InvalidArgument, ShardgitError, Unavailable
from shardgit.service.access import authorize, begin_call
from shardgit.service.calls import end_call
from shardgit.service.conversation import GitService, asked_version, told
from shardgit.ssh.command import COMMAND_MAX_BYTES, parse_command
from shardgit.ssh.lfs import ACTIONS, LfsCommand, lfs_answer, parse_lfs_command
from shardgit.ssh.lfs import COMMAND as LFS_COMMAND

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shardgit.service.access import Call, Principal
    from shardgit.ssh.server import SshConnection

READ_AHEAD_BYTES = 1 << 20  # of a client's bytes that nobody has asked for yet
WRITE_BYTES = 256 << 10  # handed to asyncssh at once; it cuts them into packets of 32 KiB
WRITE_HIGH_BYTES = 256 << 10
REFUSED_EXIT = 1
DIED_EXIT = 128  # as git's own programs when they die
NO_SHELL = (
    "Hi %s! You are let in, but shardgit gives no shell.\n"
    "Use git: git clone ssh://git@HOST:PORT/NAME.git\n"
)


class _Environment(dict[bytes, bytes]):
    """What a client says of its environment, as far as anybody asks for it."""

    def __setitem__(self, key: bytes, value: bytes) -> None:
        if key == b"GIT_PROTOCOL" and len(value) <= COMMAND_MAX_BYTES:
            super().__setitem__(key, value)


class SshSession(asyncssh.SSHServerSession[bytes]):
    """Runs the conversation that a client's command names, and nothing else."""

    def __init__(self, connection: SshConnection, principal: Principal) -> None:
        self.connection = connection
        self.principal = principal
        self._chan: asyncssh.SSHServerChannel[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._command: str | None = None
        self._waiting: deque[bytes] = deque()
        self._held = 0
        self._eof = False
        self._paused = False
        self._exited = False
        self._closed = asyncio.Event()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    # ---- what asyncssh calls ----

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        """Take the channel."""
        self._chan = chan
        chan._env = _Environment()  # noqa: SLF001  # asyncssh keeps all that is sent, and offers no other way
        chan.set_write_buffer_limits(WRITE_HIGH_BYTES)

    def pty_requested(self, *_: Any) -> bool:
        """Give no terminal."""
        return False

    def shell_requested(self) -> bool:
        """Accept, to say that there is none."""
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        """Give no sftp."""
        telemetry.log().info("ssh_subsystem_refused", subsystem=subsystem[:40])
        return False

    def exec_requested(self, command: str) -> bool:
        """Note the command."""
        self._command = command
        return True

    def session_started(self) -> None:
        """Begin."""
        self._task = self.connection.edge.start(self._run())

    def data_received(self, data: bytes, datatype: Any) -> None:
        """Keep what has come, and ask for no more while there is plenty."""
        del datatype
        self._waiting.append(data)
        self._held += len(data)
        if self._held > READ_AHEAD_BYTES and not self._paused and self._chan is not None:
            self._paused = True
            self._chan.pause_reading()
        self._readable.set()

    def eof_received(self) -> bool:
        """Note that no more comes; our own side stays open."""
        self._eof = True
        self._readable.set()
        return True

    def pause_writing(self) -> None:
        """Stop the producer."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what runs: nobody is left to tell."""
        del exc
        self._closed.set()
        self._waiting.clear()
        if self._task is not None and not self._exited:
            self._task.cancel()
        self.connection.ended(self)

    # ---- the conversation ----

    async def _run(self) -> None:
        assert self._chan is not None
        if self._command is None:
            self._chan.write((NO_SHELL % self.principal.name).encode(), 1)
            await self._exit(REFUSED_EXIT)
            return
        with telemetry.Request("ssh", self._command[:200]) as seen:
            code = DIED_EXIT
            call: Call | None = None
            try:
                call = await self._begin_call()
                async with asyncio.timeout(self.connection.edge.limits.request_time_max_s):
                    await self._converse(self._command, seen)
                code = 0
            except TimeoutError:
                seen.failed(Unavailable("request took too long"))
            except InvalidArgument as error:
                seen.failed(error)
                code = REFUSED_EXIT
            except ShardgitError as error:
                seen.failed(error)
            except OSError:  # nobody is left to answer; asyncssh's channels raise it, too
                seen.gone()
            except asyncio.CancelledError:
                seen.gone()
                raise
            except Exception as error:
                seen.code = Internal.code
                telemetry.log().error("request_failed", edge="ssh", exc_info=error)
            finally:
                if call is not None:
                    end_call(self.connection.edge.conversations.store, seen, call)
            await self._exit(code)

    async def _begin_call(self) -> Call:
        """Let the request in. Errors, which the client is told: Unauthenticated, RateLimited."""
        try:
            self.principal = await self.connection.principal_now()
            return begin_call(self.principal, self.connection.edge.conversations.store.gate)
        except ShardgitError as error:
            assert self._chan is not None
            self._chan.write(f"shardgit: {told(error)}\n".encode("utf-8", "replace"), 1)
            raise

    async def _exit(self, code: int) -> None:
        """Give the exit code, and wait until all that was written is taken and the channel closed."""
        if self._closed.is_set():
            return
        chan = self._chan
        assert chan is not None
        self._exited = True
        chan.exit(code)
        left = -1
        while not self._closed.is_set():
            if chan.get_write_buffer_size() == left:
                self.connection.abort()
                return
            left = chan.get_write_buffer_size()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.connection.edge.limits.client_stall_max_s):
                    await self._closed.wait()

    async def _converse(self, text: str, seen: telemetry.Request) -> None:
        assert self._chan is not None
        try:
            lfs = parse_lfs_command(text) if len(text) <= COMMAND_MAX_BYTES else None
            command = None if lfs is not None else parse_command(text)
            stale_ok = command is None or command.service is not GitService.RECEIVE_PACK
            await self.connection.edge.conversations.store.journal.fresh(stale_ok=stale_ok)
            if lfs is not None:
                seen.method = LFS_COMMAND
                seen.what = f"{LFS_COMMAND} {lfs.name}"[:200]
                await self._write(await self._lfs(lfs))
                return
        except ShardgitError as error:
            self._chan.write(f"shardgit: {told(error)}\n".encode("utf-8", "replace"), 1)
            raise
        assert command is not None
        seen.method = command.service.value
        seen.what = f"{command.service.value} {command.name}"[:200]
        words = self._chan.get_environment_bytes().get(b"GIT_PROTOCOL", b"")
        talk = self.connection.edge.conversations.converse(
            command.service,
            command.name,
            self._pieces(),
            principal=self.principal,
            version=asked_version(words[:1_000].decode("ascii", "replace")),
        )
        try:
            async for piece in talk:
                await self._write(piece)
        finally:
            await talk.aclose()

    async def _lfs(self, command: LfsCommand) -> bytes:
        edge = self.connection.edge
        # Here, not on the worker: what it asks for counts, and stands in the audit log.
        authorize(self.principal, ACTIONS[command.operation], command.name)
        store, base = edge.conversations.store, edge.http_base(self.connection.own_host)
        return await store.workers.run(lfs_answer, store, command, self.principal, base)

    async def _pieces(self) -> AsyncIterator[bytes]:
        """Return the client's bytes as they come."""
        while True:
            while not self._waiting:
                if self._eof:
                    return
                self._readable.clear()
                with telemetry.spending("client"):
                    await self._readable.wait()
            data = b"".join(self._waiting)
            self._waiting.clear()
            self._held = 0
            if self._paused and self._chan is not None and not self._closed.is_set():
                self._paused = False
                self._chan.resume_reading()
            yield data

    async def _write(self, data: bytes) -> None:
        """Send; Unavailable when the client takes next to nothing for ``client_stall_max_s``."""
        assert self._chan is not None
        for at in range(0, len(data), WRITE_BYTES):
            self._chan.write(data[at : at + WRITE_BYTES] if len(data) > WRITE_BYTES else data)
            while not (self._writable.is_set() and self.connection.flow.is_set()):
                await self._until_taken()

    async def _until_taken(self) -> None:
        """Wait until more may be sent, or until the client has taken as much as the slowest does."""
        limits, flow = self.connection.edge.limits, self.connection.flow
        held = self._unsent()
        try:
            with telemetry.spending("client"):
                async with asyncio.timeout(limits.client_stall_max_s):
                    await self._writable.wait()
                    await flow.wait()
        except TimeoutError:
            least = limits.client_stall_max_s * limits.client_slowest_bytes_s
            if held - self._unsent() < least:
                self.connection.abort()
                raise Unavailable("client takes too little for too long") from None

    def _unsent(self) -> int:
        assert self._chan is not None
        return int(self._chan.get_write_buffer_size()) + self.connection.unsent()
