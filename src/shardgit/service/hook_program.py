"""Hooks that are programs: git's arguments and standard input, a clean environment, a bounded life."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.errors import HookFailed
from shardgit.service.hooks import UPDATE, Answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from shardgit.oid import HashKind, ObjectId
    from shardgit.protocol.receive_pack import Command
    from shardgit.service.hooks import HookEvent, Tell
    from shardgit.service.settings import Hook
    from shardgit.workers import Workers

PROGRAMS_MAX = 32  # of one process at a time
PIECE_BYTES = 64 << 10
LEFT_OPEN_MAX_S = 1.0  # how long what a program left behind may keep its output open
PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ProgramCaller:
    """Runs programs, each in a process group of its own that is killed at the time limit."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._places = asyncio.Semaphore(PROGRAMS_MAX)

    async def call(self, hook: Hook, event: HookEvent, tell: Tell) -> Answer:
        """See HookCaller. Exit code 0 accepts; output and errors of the program are shown."""
        async with self._places:
            environment = program_environment(event)
            await self._workers.run(_write_files, event)
            code = await self._run(hook.target, event, environment, tell)
        if code < 0:
            raise HookFailed("hook program was killed by a signal", signal=-code)
        return Answer(accepted=code == 0)

    async def _run(
        self, program: str, event: HookEvent, environment: dict[str, str], tell: Tell
    ) -> int:
        words: list[str] = []
        if event.event == UPDATE:
            (command,) = event.commands()
            kind = event.repository.hash_kind
            name = os.fsdecode(command.name)
            words = [name, _hex(command.old, kind), _hex(command.new, kind)]
        async with _pipe() as (reader, writing):
            with contextlib.ExitStack() as until_begun:
                until_begun.callback(os.close, writing)
                given = subprocess.DEVNULL
                if not words:
                    given = os.open(event.folder / "commands", os.O_RDONLY)
                    until_begun.callback(os.close, given)

                def start() -> subprocess.Popen[bytes]:
                    return subprocess.Popen(
                        [program, *words],
                        stdin=given,
                        stdout=writing,
                        stderr=writing,
                        env=environment,
                        cwd=event.folder,
                        start_new_session=True,
                    )

                process = await self._begun(start)
            return await _follow(process, reader, tell)

    async def _begun(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        """Start a program from a worker.

        Not as a child of the event loop: uvloop forks and runs Python in the child, which crashed
        there once among gRPC's threads; Popen uses vfork and runs none.
        """
        made: list[subprocess.Popen[bytes]] = []
        try:
            await self._workers.run(lambda: made.append(start()))
        except (OSError, ValueError) as cause:
            raise HookFailed("hook program cannot be started", cause=str(cause)) from cause
        except asyncio.CancelledError:
            for each in made:
                _kill(each.pid)
                each.wait()
            raise
        return made[0]


async def _follow(
    process: subprocess.Popen[bytes], reader: asyncio.StreamReader, tell: Tell
) -> int:
    """Show what a program prints until it ends; returns its exit code."""
    shown = asyncio.ensure_future(_show(reader, tell))
    ended = asyncio.ensure_future(_ended(process.pid))
    try:
        await asyncio.wait({shown, ended}, return_when=asyncio.FIRST_COMPLETED)
        if shown.done():
            shown.result()  # raises when the client is gone
        await ended
        # git waits for the end of the output; here what stayed behind has a second for it.
        await asyncio.wait({shown}, timeout=LEFT_OPEN_MAX_S)
        if shown.done():
            shown.result()
        else:
            _kill(process.pid)
    except BaseException:
        _kill(process.pid)
        await asyncio.wait({ended})
        raise
    finally:
        # Reaped last: until then its number, which is that of its group, is nobody else's.
        code = process.wait()
        shown.cancel()
        ended.cancel()
        await asyncio.wait({shown, ended})
    return code


async def _ended(pid: int) -> None:
    """Wait until a child has ended; leaves it to be reaped."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    descriptor = os.pidfd_open(pid)
    try:
        loop.add_reader(descriptor, over.set)
        await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _show(reader: asyncio.StreamReader, tell: Tell) -> None:
    while data := await reader.read(PIECE_BYTES):
        await tell(data)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


@contextlib.asynccontextmanager
async def _pipe() -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """Give a reader, and the descriptor that a program writes to, which is the caller's to close."""
    reading, writing = os.pipe()
    reader = asyncio.StreamReader(limit=PIECE_BYTES)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", 0)
    )
    try:
        yield reader, writing
    finally:
        transport.close()


def _write_files(event: HookEvent) -> None:
    """Write what a program finds: its standard input, and the certificate of a signed push."""
    kind = event.repository.hash_kind
    with (event.folder / "commands").open("wb") as out:
        for command in event.commands():
            out.write(_line(command, kind))
    if event.certificate is not None:
        (event.folder / "certificate").write_bytes(event.certificate.certificate)


def _line(command: Command, kind: HashKind) -> bytes:
    old, new = _hex(command.old, kind).encode(), _hex(command.new, kind).encode()
    return old + b" " + new + b" " + command.name + b"\n"


def _hex(oid: ObjectId | None, kind: HashKind) -> str:
    return (oid or kind.null).hex()


def program_environment(event: HookEvent) -> dict[str, str]:
    """Return the whole environment of a hook program: nothing of the server's own."""
    found = {
        "PATH": f"{Path(sys.executable).parent}:{PATHS}",
        "HOME": str(event.folder),
        "TMPDIR": str(event.folder),
        "LANG": "C.UTF-8",
        "SHARDGIT_EVENT": event.event,
        "SHARDGIT_REPOSITORY": event.repository.name,
        "SHARDGIT_REPOSITORY_ID": str(event.repository.id),
        "SHARDGIT_ACTOR": event.principal.name,
        "SHARDGIT_ADDRESS": event.principal.address,
        "SHARDGIT_REQUEST_ID": event.request_id,
        "GIT_PUSH_OPTION_COUNT": str(len(event.options)),
    }
    for number, option in enumerate(event.options):
        found[f"GIT_PUSH_OPTION_{number}"] = os.fsdecode(option)
    if event.server:
        found["SHARDGIT_SERVER"] = event.server
    if event.sequence:
        found["SHARDGIT_SEQUENCE"] = str(event.sequence)
        found["SHARDGIT_TIME_MS"] = str(event.time_ms)
        found["SHARDGIT_REASON"] = event.reason
    facts = event.certificate
    if facts is not None:
        found["SHARDGIT_PUSH_CERT_FILE"] = str(event.folder / "certificate")
        found |= facts.environment()
    return {key: value.replace("\0", "") for key, value in found.items()}
