"""How those who wait for a commit hear what came of it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from shardgit.errors import Internal, ShardgitError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardgit.journal.interface import Condition, Operation


class CommitsSoon(ABC):
    """A journal that commits behind its caller, and what waits for that."""

    @abstractmethod
    def commit_soon(
        self,
        conditions: Sequence[Condition],
        operations: Sequence[Operation],
        answer: Callable[[int | BaseException], None],
    ) -> None:
        """See StoreJournal."""

    def commit_sync(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        """See Journal."""
        future: Future[int] = Future()
        self.commit_soon(conditions, operations, partial(settle, future))
        try:
            return future.result()
        finally:
            # An error leads to this frame, hence by the future to itself, and would keep all that the frames above
            # hold until Python looks for cycles.
            del future

    async def commit(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        """See Journal."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self.commit_soon(conditions, operations, partial(settle_there, loop, future))
        try:
            return await future
        finally:
            del future  # as above


def settle(future: Future[int], outcome: int | BaseException) -> None:
    """Tell a thread that waits."""
    if isinstance(outcome, int):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)


def settle_there(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[int], outcome: int | BaseException
) -> None:
    """Tell a coroutine that waits, from another thread."""
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(_tell, future, outcome)


def _tell(future: asyncio.Future[int], outcome: int | BaseException) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(outcome, int):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)


def copy_of(error: BaseException) -> BaseException:
    """Return an error of its own for each waiter: a traceback grows with every raise."""
    if not isinstance(error, ShardgitError):
        return Internal("journal commit failed", cause=repr(error))
    copy = type(error)(error.message, **error.facts)
    copy.__cause__ = error.__cause__
    return copy
