"""What a server said when it ended a call, although a request was being written to it then."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from grpc import aio

if TYPE_CHECKING:
    from collections.abc import Coroutine

LATE_S = 1.0  # for a status that comes behind the failed write


class _Told(NamedTuple):
    code: grpc.StatusCode
    details: str
    trailing: aio.Metadata


class Ending:
    """The status that a server gives to one call of a channel of grpc.aio.

    Where the server ends a call while the client writes a request, that write fails, and grpc.aio
    puts an internal error of its own in the place of the server's status
    (https://github.com/grpc/grpc/issues/36066). So the first status is kept when it comes.
    """

    def __init__(self, call: aio.Call) -> None:
        self._call = call
        self._first: _Told | None = None
        call.add_done_callback(self._ended)

    async def of(self, error: grpc.RpcError) -> grpc.RpcError:
        """Return the error of the server's status, or the one given where the server gave none."""
        if not isinstance(error, aio.AioRpcError) or not _by_grpc(error.code(), error.details()):
            return error
        told = self._first or _now(self._call)
        end = asyncio.get_running_loop().time() + LATE_S
        while told is None or _by_grpc(told.code, told.details):
            if asyncio.get_running_loop().time() > end:
                return error
            await asyncio.sleep(0.001)
            told = _now(self._call)
        if told.code is grpc.StatusCode.OK:  # not all that was asked was heard
            return error
        return aio.AioRpcError(
            told.code,
            error.initial_metadata(),
            told.trailing,
            told.details,
            error.debug_error_string(),
        )

    def _ended(self, _: object) -> None:
        self._first = _now(self._call)


def _by_grpc(code: grpc.StatusCode, details: str | None) -> bool:
    return code is grpc.StatusCode.INTERNAL and details == "Internal error from Core"


def _now(call: aio.Call) -> _Told | None:
    """Return the status that a call has, None where it has none; a task would see it too late."""
    if not call.done():
        return None
    code, details, trailing = map(_at_once, (call.code(), call.details(), call.trailing_metadata()))
    return _Told(code, details or "", trailing)


def _at_once(ready: Coroutine[Any, Any, Any]) -> Any:
    try:
        ready.send(None)
    except StopIteration as done:
        return done.value
    ready.close()
    raise RuntimeError("a call that is done has no status")
