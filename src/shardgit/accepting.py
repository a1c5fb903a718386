"""One listening socket for all workers: of those that wait, the one with the fewest connections takes the next."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
import socket
from typing import TYPE_CHECKING, Any

import msgspec

from shardgit import telemetry
from shardgit.tls import HANDSHAKE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.tls import TlsFiles

BACKLOG = 1_024  # connections that wait at a port until a worker takes them
ABSENT = -1
SLOT_BYTES = 4
PAUSE_S = 0.001  # that a worker with more connections leaves to those with less
SHORT_OF_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
SHORT_PAUSE_S = 1.0
HANDSHAKES_MAX = (
    256  # under way at once; each holds some 50 KiB, and counts as a connection only behind it
)


class Place(msgspec.Struct, frozen=True):
    """What the supervisor gives a worker beside the configuration: its number, and files by their descriptors.

    ``number`` is no other worker's of those that run: at each of ``workers`` posts one may still end its requests.
    """

    number: int
    workers: int
    http: tuple[int, ...]  # the sockets of the HTTP port
    ssh: tuple[int, ...]  # those of the SSH port
    loads: int

    def keep(self) -> None:
        """Keep the files from the programs that the worker starts."""
        for each in (*self.http, *self.ssh, self.loads):
            os.set_inheritable(each, False)

    @property
    def slots(self) -> int:
        """How many numbers there are."""
        return 2 * self.workers


class Loads:
    """How many connections each worker has: int32 slots by number in memory that the workers of a server share.

    A slot has one writer: its worker, or the supervisor while that worker does not run.
    """

    def __init__(self, file: int, count: int) -> None:
        self.file = file
        self._map = mmap.mmap(file, count * SLOT_BYTES)
        self._slots = memoryview(self._map).cast("i")

    @classmethod
    def make(cls, count: int) -> Loads:
        """Return the loads of workers none of which runs."""
        file = os.memfd_create("shardgit-loads")  # memory: no disk can be too full for it
        os.ftruncate(file, count * SLOT_BYTES)
        loads = cls(file, count)
        for number in range(count):
            loads.tell(number, ABSENT)
        return loads

    def tell(self, number: int, connections: int) -> None:
        """Say how many connections a worker has; ABSENT of one that takes none."""
        self._slots[number] = connections

    def least_beside(self, number: int) -> int | None:
        """Return the fewest connections that another worker has, None where no other takes any."""
        others = (has for at, has in enumerate(self._slots) if at != number and has != ABSENT)
        return min(others, default=None)

    def close(self) -> None:
        """Give the memory back."""
        self._slots.release()
        self._map.close()
        os.close(self.file)


class Acceptor:
    """Takes connections for a worker off the socket on which all of them listen.

    The kernel would spread them by a hash (SO_REUSEPORT), and 16 clients that stay may have 12 on one worker; and what
    waits in the queue of a worker that ends would be lost. Here a worker that has more than another leaves a new
    connection to it for PAUSE_S, then takes one itself: the other may be stuck. Connections wait while
    HANDSHAKES_MAX are under way, unless it ``hurries``: then the one begun first makes room.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        *,
        loads: Loads,
        number: int,
        count: Callable[[], int],
        tls: TlsFiles | None = None,
        hurries: bool = False,
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._loads = loads
        self._number = number
        self._count = count
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._hurries = hurries
        self._begun: dict[asyncio.Task[object], socket.socket] = {}  # longest first
        self._paused: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        """Begin to take connections."""
        self._listener.setblocking(False)
        self._tell()
        self._loop.add_reader(self._listener, self._ready)

    def close(self) -> None:
        """Take no more and let go of the socket; connections that were taken stay."""
        if self._closed:
            return
        self._closed = True
        self._loads.tell(self._number, ABSENT)
        if self._paused is None:
            self._loop.remove_reader(self._listener)
        else:
            self._paused.cancel()
        self._listener.close()

    def _tell(self) -> int:
        mine = self._count() + len(self._begun)
        self._loads.tell(self._number, mine)
        return mine

    def _ready(self) -> None:
        """Take one connection, or leave it to others; each that comes wakes all workers, so their loads are fresh."""
        mine, least = self._tell(), self._loads.least_beside(self._number)
        if self._hurries and len(self._begun) >= HANDSHAKES_MAX:
            oldest = next(iter(self._begun))
            with contextlib.suppress(OSError):
                self._begun.pop(oldest).shutdown(socket.SHUT_RDWR)
        if (least is not None and mine > least) or len(self._begun) >= HANDSHAKES_MAX:
            self._pause(PAUSE_S)
        else:
            self._take()

    def _take(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the client is gone
        except OSError as error:
            if error.errno in SHORT_OF_FILES:
                telemetry.log().error("connection_not_accepted", error=str(error))
                self._pause(SHORT_PAUSE_S)
            else:  # the supervisor has closed the port
                self.close()
            return
        accepted.setblocking(False)
        task = self._loop.create_task(self._serve(accepted))
        self._begun[task] = accepted
        task.add_done_callback(lambda ended: self._begun.pop(ended, None))
        self._tell()

    async def _serve(self, accepted: socket.socket) -> None:
        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {"ssl": self._tls.context(), "ssl_handshake_timeout": HANDSHAKE_S}
        try:
            await self._loop.connect_accepted_socket(self._protocol, accepted, **tls)
        except OSError as error:  # it is gone already, or speaks no TLS of ours
            if tls:
                telemetry.log().info("tls_handshake_failed", error=str(error)[:200])
            accepted.close()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._paused = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listener, self._ready)
        if len(self._begun) < HANDSHAKES_MAX:
            self._take()
