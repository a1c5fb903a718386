"""Single flights: one fetch for all threads that want the same block at once."""

from __future__ import annotations

from threading import Event, Lock
from typing import TYPE_CHECKING

from shardgit.errors import ShardgitError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.oid import BlockId


class Flight:
    """A block that one thread fetches and others wait for."""

    __slots__ = ("_data", "_error", "_landed")

    def __init__(self) -> None:
        self._landed = Event()
        self._data: bytes | None = None
        self._error: BaseException | None = None

    def end(self, data: bytes | None, error: BaseException | None) -> None:
        """Tell the outcome."""
        self._data, self._error = data, error
        self._landed.set()

    @property
    def has_landed(self) -> bool:
        """Whether the outcome is known."""
        return self._landed.is_set()

    def wait(self) -> bytes | None:
        """Return the block, None when it is missing; raises what the fetch raised, each waiter its own."""
        self._landed.wait()
        if self._error is None:
            return self._data
        if isinstance(self._error, ShardgitError):
            raise type(self._error)(self._error.message, **self._error.facts)
        raise Unavailable("block was not fetched", cause=str(self._error))


class Flights:
    """The fetches that are under way in this process. For any number of threads."""

    def __init__(self) -> None:
        self._flights: dict[BlockId, Flight] = {}
        self._lock = Lock()

    def board(self, ids: Sequence[BlockId]) -> tuple[list[BlockId], dict[BlockId, Flight]]:
        """Return the blocks that the caller has to fetch, and land, and the flights of all."""
        mine: list[BlockId] = []
        flights: dict[BlockId, Flight] = {}
        with self._lock:
            for block in ids:
                if block in flights:
                    continue
                found = self._flights.get(block)
                if found is None:
                    found = self._flights[block] = Flight()
                    mine.append(block)
                flights[block] = found
        return mine, flights

    def land(self, block: BlockId, data: bytes | None, error: BaseException | None = None) -> None:
        """Tell all who wait; nothing happens when they were told already."""
        with self._lock:
            found = self._flights.pop(block, None)
        if found is not None:
            found.end(data, error)
