"""How a worker leaves: what was begun ends within a time, and no connection that was made is lost."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit import telemetry

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

LINGER_S = 2.0  # that a connection which stays may have no request, before it is closed
LOGIN_S = 10.0  # the same of one on which nobody has logged in yet
LAST_S = 10.0  # past its time, until the process ends whatever its threads do
HANDSHAKE_S = 0.2  # that a connection which has begun may take to be made
QUEUE_MAX_S = 5.0  # that connections wait in the queue of a worker that leaves
LOOK_S = 0.02
DESERTED_LOOK_S = 0.25
SO_ATTACH_FILTER = 26
TCP_INFO_BYTES = 104
WAITING_AT = 24  # tcpi_unacked: of a socket that listens, the connections that wait to be accepted

# A classic BPF program over the TCP header: it drops what would begin a connection, SYN without ACK.
_NO_SYN = (
    (0x30, 0, 0, 13),  # load the byte of flags
    (0x54, 0, 0, 0x12),  # SYN and ACK of it
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # take it whole
)


class Patience:
    """How long a worker that leaves waits for its requests; may become shorter meanwhile, never longer."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._last: threading.Timer | None = None
        self._hurried = asyncio.Event()

    def hurry(self) -> None:
        """Have clients that stay told to go at once."""
        self._hurried.set()

    async def hurried(self) -> None:
        """Return when clients that stay are to be told at once."""
        await self._hurried.wait()

    def within(self, seconds: float) -> None:
        """Wait no longer than that from now on."""
        if self._timer is not None:
            if self._timer.when() <= self._loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._end)
        if self._last is not None:
            self._last.cancel()
        self._last = threading.Timer(seconds + LAST_S, os._exit, (1,))  # an orphan must not stay
        self._last.daemon = True
        self._last.start()

    def _end(self) -> None:
        self._over.set()
        self._hurried.set()

    def is_over(self) -> bool:
        """Say whether the time has passed."""
        return self._over.is_set()

    async def over(self) -> None:
        """Return when the time has passed."""
        await self._over.wait()

    async def until(self, work: Coroutine[Any, Any, object], *, more_s: float = 0.0) -> bool:
        """Wait for work as long as patience lasts, and so much longer, then cancel it; say whether it ended."""
        task = asyncio.ensure_future(work)
        over = asyncio.ensure_future(self.over())
        try:
            await asyncio.wait({task, over}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and more_s:
                await asyncio.wait({task}, timeout=more_s)
            if task.done():
                task.result()
                return True
            return False
        finally:
            over.cancel()
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


def own_sockets(port: int, *, listening: bool) -> list[socket.socket]:
    """Return duplicates of this process' sockets of a port: those that listen, or the connections. gRPC gives none."""
    found = []
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if not str(file.readlink()).startswith("socket:"):
                continue
            made = socket.socket(fileno=os.dup(int(file.name)))
            if _is_of(made, port, listening=listening):
                found.append(made)
            else:
                made.close()
    return found


def _is_of(made: socket.socket, port: int, *, listening: bool) -> bool:
    if made.family not in {socket.AF_INET, socket.AF_INET6} or made.getsockname()[1] != port:
        return False
    if listening:
        return bool(made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    try:
        made.getpeername()
    except OSError:  # one that listens, or did
        return False
    return True


def take_no_more(listener: socket.socket) -> None:
    """Have the kernel drop what would begin a connection: its client asks again after a second, maybe another worker.

    Connections that were begun before come to their end, and wait to be accepted. Errors: OSError.
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in _NO_SYN))
    told = struct.pack("HL", len(_NO_SYN), ctypes.addressof(program))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, told)


def waiting(listener: socket.socket) -> int:
    """Return how many connections of a socket wait to be accepted."""
    told = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    return int(struct.unpack_from("I", told, WAITING_AT)[0])


async def until_deserted(port: int) -> None:
    """Wait until this process has no connections of a port."""
    while connections := own_sockets(port, listening=False):
        for each in connections:
            each.close()
        await asyncio.sleep(DESERTED_LOOK_S)


async def take_what_waits(port: int) -> None:
    """Have the connections accepted that were made at a port of this process, then listen there no more.

    Closing a socket that listens resets what waits in its queue: others that share the port do not inherit it.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    listeners = own_sockets(port, listening=True)
    try:
        for each in listeners:
            take_no_more(each)
        while loop.time() - begun < QUEUE_MAX_S:
            if loop.time() - begun >= HANDSHAKE_S and not any(map(waiting, listeners)):
                break
            await asyncio.sleep(LOOK_S)
    except OSError as error:  # a kernel that knows no such filters
        telemetry.log().warning("queue_not_emptied", port=port, error=str(error))
    finally:
        # Not left to who has the socket: while it listened, clients would ask in vain, the same one each time.
        for each in listeners:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
