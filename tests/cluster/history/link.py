"""A link that can fail: a proxy of TCP that is cut, hangs, is slow, or loses answers when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

PIECE = 65_536


class State(enum.Enum):
    """What the link does with bytes."""

    OPEN = "open"
    CUT = "cut"  # connections are reset, new ones too
    HUNG = "hung"  # nothing passes in either direction; all connections stay, and go on later
    SLOW = "slow"  # each piece waits ``delay_s``
    MUTE = "mute"  # requests pass, answers are dropped


class Link:
    """Listens on a port of 127.0.0.1, and forwards to an address of the form host:port."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._muted: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._state = State.OPEN
        self._passing = asyncio.Event()
        self._passing.set()
        self.delay_s = 0.0
        self.address = ""

    async def __aenter__(self) -> Link:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cut all and stop listening."""
        self.set(State.CUT)
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def set(self, state: State, *, delay_s: float = 0.0) -> None:
        """Change what happens to bytes from now on; an answer that was lost takes its connection along."""
        for writer in self._writers if state is State.CUT else set(self._muted):
            writer.transport.abort()
        self._muted.clear()
        self._state, self.delay_s = state, delay_s
        if state is State.HUNG:
            self._passing.clear()
        else:
            self._passing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._state is State.CUT:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._writers.add(far_writer)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, far_writer, answers=False))
                    group.create_task(self._pump(far_reader, writer, answers=True))
            finally:
                self._writers.discard(far_writer)
                far_writer.transport.abort()
        except* OSError:
            pass
        finally:
            self._writers.discard(writer)
            self._muted.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while data := await reader.read(PIECE):
            if self._state is State.SLOW:
                await asyncio.sleep(self.delay_s)
            await self._passing.wait()
            if answers and self._state is State.MUTE:
                self._muted.add(writer)
                continue
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()
