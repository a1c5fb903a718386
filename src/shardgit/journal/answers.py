"""How those who wait for a commit hear what came of it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from shardgit.errors import Internal, ShardgitError

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future


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
