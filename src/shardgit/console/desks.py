"""The desks of the workers: one is asked, and the next when it does not answer in time."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, TypeVar

import aiohttp
import msgspec

from shardgit.errors import Unavailable
from shardgit.survey import (
    Answer,
    Asking,
    RepositoryPage,
    RepositorySize,
    Survey,
    socket_path,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

T = TypeVar("T", bound=msgspec.Struct)
WAIT_S = 2.0  # for one worker's answer
MEASURE_WAIT_S = 20.0  # a manifest of a terabyte is read
AVOID_S = 15.0  # how long one that gave none is asked last
ANSWER_MAX_BYTES = 4 << 20
CONNECTIONS = 8  # to one worker


class DeskRefused(Exception):
    """A desk's answer that says no, with its code."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message)
        self.answer = answer


class Desks:
    """Asks the workers in ``serving``, whose sockets lie in ``folder``.

    Errors of all: Unavailable when no worker answers in time, DeskRefused when one says no.
    """

    def __init__(self, folder: Path, serving: Collection[int]) -> None:
        self._folder = folder
        self.serving = serving
        self._opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._sessions: dict[int, aiohttp.ClientSession] = {}
        self._silent: dict[int, float] = {}  # when it gave no answer

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
        params = {"name": name}
        wait_s = MEASURE_WAIT_S
        return await self._ask("GET", "/size", RepositorySize, params=params, wait_s=wait_s)

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
        wait_s: float | None = None,
    ) -> T:
        wait_s = WAIT_S if wait_s is None else wait_s
        for number in self._in_turn():
            try:
                async with asyncio.timeout(wait_s):
                    session = self._session(number)
                    url = f"http://desk{path}"
                    async with session.request(method, url, params=params, data=body) as found:
                        data = await found.content.read(ANSWER_MAX_BYTES)
                        while more := await found.content.read(ANSWER_MAX_BYTES):
                            data += more
            except (TimeoutError, aiohttp.ClientError, OSError):
                self._silent[number] = time.monotonic()
                continue
            self._silent.pop(number, None)
            if found.status != 200:
                raise DeskRefused(msgspec.json.decode(data, type=Answer))
            return msgspec.json.decode(data, type=shape)
        raise Unavailable("no worker answers")

    def _in_turn(self) -> list[int]:
        """Return the workers that serve, those last that gave no answer lately."""
        now = time.monotonic()
        return sorted(
            self.serving,
            key=lambda number: (
                now - self._silent.get(number, float("-inf")) < AVOID_S,
                self._silent.get(number, 0.0),
                number,
            ),
        )

    def _session(self, number: int) -> aiohttp.ClientSession:
        found = self._sessions.get(number)
        if found is None:
            path = socket_path(self._folder, number, opened=self._opened)
            connector = aiohttp.UnixConnector(path, limit=CONNECTIONS)
            found = self._sessions[number] = aiohttp.ClientSession(connector=connector)
        return found
