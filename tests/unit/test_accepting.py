"""Who of several workers takes a connection."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from shardgit import accepting
from shardgit.accepting import ABSENT, Acceptor, Loads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest


class Worker(asyncio.Protocol):
    """Counts its connections; all of one worker's are the same protocol."""

    def __init__(self) -> None:
        self.transports: list[asyncio.BaseTransport] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transports.append(transport)

    def count(self) -> int:
        return sum(not each.is_closing() for each in self.transports)


def listening() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    listener.setblocking(False)
    return listener


@asynccontextmanager
async def accepted(
    listener: socket.socket, loads: Loads, workers: list[Worker]
) -> AsyncIterator[list[Acceptor]]:
    sockets = [listener.dup() for _ in workers]
    acceptors = [
        Acceptor(each, lambda w=w: w, loads=loads, number=number, count=w.count)  # type: ignore[misc]
        for number, (each, w) in enumerate(zip(sockets, workers, strict=True))
    ]
    try:
        yield acceptors
    finally:
        for each in acceptors:
            each.close()
        for worker in workers:
            for transport in worker.transports:
                transport.close()
        await asyncio.sleep(0.01)
        for sock in (listener, *sockets):
            sock.close()
        loads.close()


async def calls(listener: socket.socket, count: int) -> list[socket.socket]:
    made = []
    loop = asyncio.get_running_loop()
    for _ in range(count):
        each = socket.socket()
        each.setblocking(False)
        await loop.sock_connect(each, listener.getsockname())
        made.append(each)
    return made


async def until(workers: list[Worker], count: int) -> None:
    async with asyncio.timeout(10):
        while sum(worker.count() for worker in workers) < count:
            await asyncio.sleep(0.002)


async def test_the_worker_with_the_fewest_takes_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "PAUSE_S", 60.0)
    workers, loads, listener = [Worker(), Worker()], Loads.make(2), listening()
    async with accepted(listener, loads, workers) as (first, second):
        loads.tell(1, 0)  # it takes nothing yet
        first.start()
        clients = await calls(listener, 1)
        await until(workers, 1)
        clients += await calls(listener, 1)
        await asyncio.sleep(0.05)
        assert [worker.count() for worker in workers] == [1, 0]
        second.start()
        await until(workers, 2)
        assert [worker.count() for worker in workers] == [1, 1]
    for client in clients:
        client.close()


async def test_workers_share_many() -> None:
    workers, loads, listener = [Worker(), Worker(), Worker()], Loads.make(3), listening()
    async with accepted(listener, loads, workers) as acceptors:
        for each in acceptors:
            each.start()
        clients = await calls(listener, 60)
        await until(workers, 60)
        counts = [worker.count() for worker in workers]
    for client in clients:
        client.close()
    assert min(counts) >= 10, counts  # about 20 each; a busy machine is late with some


async def test_one_that_is_stuck_keeps_nobody_waiting() -> None:
    workers, loads, listener = [Worker(), Worker()], Loads.make(2), listening()
    async with accepted(listener, loads, workers) as (first, _):
        loads.tell(1, 0)  # it serves, and takes nothing
        first.start()
        clients = await calls(listener, 20)
        await until(workers, 20)
        assert workers[0].count() == 20
    for client in clients:
        client.close()


async def test_one_that_leaves_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "PAUSE_S", 60.0)
    workers, loads, listener = [Worker(), Worker()], Loads.make(2), listening()
    async with accepted(listener, loads, workers) as (first, second):
        first.start()
        second.start()
        second.close()
        clients = await calls(listener, 5)
        await until(workers, 5)
        assert workers[0].count() == 5
        assert loads.least_beside(0) is None
    for client in clients:
        client.close()


async def test_a_port_that_the_supervisor_ends_is_let_go() -> None:
    workers, loads, listener = [Worker()], Loads.make(1), listening()
    async with accepted(listener, loads, workers) as (acceptor,):
        acceptor.start()
        clients = await calls(listener, 1)
        await until(workers, 1)
        listener.shutdown(socket.SHUT_RDWR)
        async with asyncio.timeout(10):
            while loads.least_beside(1) is not None:
                await asyncio.sleep(0.002)
        assert workers[0].count() == 1  # what it took stays
    clients[0].close()


async def test_a_process_without_files_to_spare_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accepting, "SHORT_PAUSE_S", 0.01)
    workers, loads, listener = [Worker()], Loads.make(1), listening()

    class Short(socket.socket):
        left = 3

        def accept(self) -> tuple[socket.socket, object]:
            if Short.left:
                Short.left -= 1
                raise OSError(24, os.strerror(24))
            return super().accept()

    async with accepted(listener, loads, workers):
        short = Short(fileno=os.dup(listener.fileno()))
        mine = Acceptor(short, lambda: workers[0], loads=loads, number=0, count=workers[0].count)
        mine.start()
        clients = await calls(listener, 1)
        await until(workers, 1)
        assert Short.left == 0
        mine.close()
        short.close()
    clients[0].close()


def test_loads_are_seen_by_who_opens_their_file() -> None:
    loads = Loads.make(3)
    assert loads.least_beside(0) is None
    other = Loads(os.dup(loads.file), 3)
    other.tell(1, 7)
    other.tell(2, 4)
    assert (loads.least_beside(0), loads.least_beside(2)) == (4, 7)
    other.tell(2, ABSENT)
    assert loads.least_beside(0) == 7
    other.close()
    loads.close()
