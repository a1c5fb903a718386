"""The desks of the workers: one is asked, and the next when it does not answer in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, TypeVar

import aiohttp
import msgspec

from shardgit.errors import Internal, Unavailable
from shardgit.survey import (
    Answer,
    Asking,
    RepositoryPage,
    RepositorySize,
    Survey,
    socket_path,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping
    from pathlib import Path

T = TypeVar("T", bound=msgspec.Struct)
WAIT_S = 2.0  # for one worker's answer
MEASURE_WAIT_S = 20.0  # a manifest of a terabyte is read
AVOID_S = 15.0  # how long one that gave none is asked last
ANSWER_MAX_BYTES = 4 << 20
CONNECTIONS = 8  # to one worker
MEASURES = 2  # of repositories, at once
QUEUE_MAX_S = 20.0  # for one of these


class DeskRefused(Exception):
    """A desk's answer that says no, with its code."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message)
        self.answer = answer


class Desks:
    """Asks the workers in ``serving``, whose sockets lie in ``folder``. A measurement takes no other question's place.

    Errors of all: Unavailable when no worker answers in time, DeskRefused when one says no, Internal when one says too
    much.
    """

    def __init__(self, folder: Path, serving: Collection[int]) -> None:
        self._folder = folder
        self.serving = serving
        self._opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._sessions: dict[int, aiohttp.ClientSession] = {}
        self._places: dict[int, asyncio.Semaphore] = {}
        self._measures = asyncio.Semaphore(MEASURES)
        self._silent: dict[tuple[int, bool], float] = {}  # when it gave no answer, no measurement

    async def close(self) -> None:
        """Let go of all connections."""
        for session in self._sessions.values():
            await session.close()
        os.close(self._opened)

    async def survey(self) -> Survey:
        """Return what a worker sees of the store."""
        return await self._ask("GET", "/survey", Survey)

    async def repositories(self, words: str, after: str) -> RepositoryPage:
        """Return a page of repositories."""
        params = {"words": words, "after": after}
        return await self._ask("GET", "/repositories", RepositoryPage, params=params)

    async def size(self, name: str) -> RepositorySize:
        """Return what a repository takes."""
        async with _one_of(self._measures):
            return await self._ask("GET", "/size", RepositorySize, params={"name": name})

    async def visitor(self, asking: Asking) -> Answer:
        """Return who a visitor is."""
        return await self._ask("POST", "/visitor", Answer, body=msgspec.json.encode(asking))

    async def _ask(
        self,
        method: str,
        path: str,
        shape: type[T],
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> T:
        measures = path == "/size"
        begun = time.monotonic()
        for number in self._in_turn(measures=measures):
            which = (number, measures)
            async with self._place(number, measures=measures):
                if self._silent.get(which, 0.0) > begun:
                    continue  # so those before us in the queue have found
                try:
                    async with asyncio.timeout(MEASURE_WAIT_S if measures else WAIT_S):
                        session = self._session(number)
                        url = f"http://desk{path}"
                        async with session.request(method, url, params=params, data=body) as found:
                            data = await _whole(found)
                except (TimeoutError, aiohttp.ClientError, OSError):
                    self._silent[which] = time.monotonic()
                    continue
            self._silent.pop(which, None)
            if found.status != 200:
                raise DeskRefused(msgspec.json.decode(data, type=Answer))
            return msgspec.json.decode(data, type=shape)
        raise Unavailable("no worker answers")

    def _place(
        self, number: int, *, measures: bool
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Return one of a worker's places; measurements have their own."""
        if measures:
            return contextlib.nullcontext()
        return _one_of(self._places.setdefault(number, asyncio.Semaphore(CONNECTIONS)))

    def _in_turn(self, *, measures: bool) -> list[int]:
        """Return the workers that serve, those last that gave no answer lately."""
        now = time.monotonic()

        def rank(number: int) -> tuple[bool, float, int]:
            silent = self._silent.get((number, measures), float("-inf"))
            return now - silent < AVOID_S, silent, number

        return sorted(self.serving, key=rank)

    def _session(self, number: int) -> aiohttp.ClientSession:
        found = self._sessions.get(number)
        if found is None:
            path = socket_path(self._folder, number, opened=self._opened)
            connector = aiohttp.UnixConnector(path, limit=0)  # the places bound them
            found = self._sessions[number] = aiohttp.ClientSession(connector=connector)
        return found


@contextlib.asynccontextmanager
async def _one_of(places: asyncio.Semaphore) -> AsyncIterator[None]:
    """Hold a place. Errors: Unavailable, when none was free for long."""
    try:
        async with asyncio.timeout(QUEUE_MAX_S):
            await places.acquire()
    except TimeoutError as cause:
        raise Unavailable("too much is asked; try again") from cause
    try:
        yield
    finally:
        places.release()


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    """Return an answer's body. Errors: Internal, past the bound."""
    pieces, size = [], 0
    async for piece in answer.content.iter_any():
        size += len(piece)
        if size > ANSWER_MAX_BYTES:
            raise Internal("a worker says too much", limit=ANSWER_MAX_BYTES)
        pieces.append(piece)
    return b"".join(pieces)
