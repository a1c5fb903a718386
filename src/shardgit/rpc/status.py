"""The one place where errors become gRPC codes, and requests get their id, time and count."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from shardgit import telemetry, tracing
from shardgit.errors import DataLoss, Internal, RateLimited, ShardgitError, Unavailable
from shardgit.service.access import begin_call, trusted
from shardgit.service.calls import end_call
from shardgit.service.doorkeeper import Shown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    import grpc

    from shardgit.journal.interface import Journal
    from shardgit.limits import Limits
    from shardgit.service.access import Call
    from shardgit.service.doorkeeper import Doorkeeper
    from shardgit.service.store import Store

DOMAIN = "shardgit"
TEXT_MAX = 1_000  # characters of a message, and of all its facts: trailers of 8 KiB are lost whole
SLOWEST_BYTES_PER_S = 8_192  # of a client that is not cut off
STALE_OK = {
    "FetchPack",
    "UploadPack",
    "UploadArchive",
}  # fetches, which go on while the journal is away
T = TypeVar("T")


def status_of(error: ShardgitError) -> grpc.Status:
    """Return the status of an error: its code, its message and an ErrorInfo with reason and facts."""
    facts = {} if isinstance(error, Internal) else _facts(error)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts)
    detail = any_pb2.Any()
    detail.Pack(info)
    text = error.message if isinstance(error, DataLoss | Internal) else str(error)
    text = _cut(text, TEXT_MAX)
    details = [detail]
    if isinstance(error, RateLimited):
        details.append(any_pb2.Any())
        wait = duration_pb2.Duration(seconds=int(str(error.facts.get("retry_after_s", 1))))
        details[-1].Pack(error_details_pb2.RetryInfo(retry_delay=wait))
    return rpc_status.to_status(
        status_pb2.Status(code=code_pb2.Code.Value(error.code), message=text, details=details)
    )


def _facts(error: ShardgitError) -> dict[str, str]:
    """Return an error's facts as JSON. Long texts are cut, and what has no room then is left out."""
    facts: dict[str, str] = {}
    room = TEXT_MAX
    for key, value in error.facts.items():
        plain = _cut(value, TEXT_MAX // 2) if isinstance(value, str) else value
        text = json.dumps(plain, default=str, ensure_ascii=False)
        if len(key) + len(text) <= room:
            facts[key] = text
            room -= len(key) + len(text)
    return facts


def _cut(text: str, most: int) -> str:
    """Return text of at most so many bytes, with dots where some is missing."""
    raw = text.encode("utf-8", "replace")
    return text if len(raw) <= most else raw[: most - 3].decode("utf-8", "ignore") + "..."


async def paced(requests: AsyncIterator[T], limits: Limits) -> AsyncGenerator[T, None]:
    """Return a client's messages; Unavailable when it lets us wait for the next one, or for all, too long."""
    source = aiter(requests)
    pause_s, whole_s = limits.client_pause_max_s, limits.request_time_max_s
    loop = asyncio.get_running_loop()
    end = loop.time() + whole_s
    while True:
        try:
            with telemetry.spending("client"):
                async with asyncio.timeout_at(min(loop.time() + pause_s, end)):
                    request = await anext(source, None)
        except TimeoutError:
            if loop.time() >= end:
                raise Unavailable("request takes too long", seconds=whole_s) from None
            raise Unavailable("client sent nothing for too long", seconds=pause_s) from None
        if request is None:
            return
        yield request


def _unexpected(seen: telemetry.Request, method: str) -> grpc.Status:
    """Note what nobody expected, with its trace; the client is told no more than that it happened."""
    seen.code = Internal.code
    telemetry.log().exception("request_failed", edge="grpc", what=method)
    return status_of(Internal("internal error"))


def _seen(context: grpc.aio.ServicerContext, name: str) -> telemetry.Request:
    """Return the request that a call is, with what its client carries on."""
    told = {str(key): value for key, value in context.invocation_metadata() or ()}
    carried = {key: _word(told[key]) or "" for key in tracing.HEADERS if key in told}
    given = _word(told.get("x-request-id"))
    return telemetry.Request("grpc", name, given, method=name, carried=carried)


async def _look(
    servicer: _Serves, method: Callable[..., Any], context: grpc.aio.ServicerContext
) -> None:
    """See to it that what the call reads was not overtaken by commits of other nodes.

    When these do not answer the call is Unavailable, unless it is a fetch or its client says ``x-stale-ok: 1``.
    """
    journal: Journal | None = getattr(servicer.store, "journal", None)  # peers have none
    if journal is not None:
        stale_ok = method.__name__ in STALE_OK or ("x-stale-ok", "1") in (
            context.invocation_metadata() or ()
        )
        with telemetry.spending("journal"):
            await journal.fresh(stale_ok=stale_ok)


async def _admit(servicer: _Serves, context: grpc.aio.ServicerContext) -> Call:
    """Find out who calls, and let it in. Errors: Unauthenticated, RateLimited."""
    doorkeeper: Doorkeeper | None = getattr(servicer, "doorkeeper", None) or getattr(
        servicer.store, "doorkeeper", None
    )
    address = address_of(context.peer())
    if doorkeeper is None:
        if getattr(servicer, "admits_peers", False):
            return begin_call(trusted("peer", address))
        raise Internal("service has no door")
    told = {str(key): value for key, value in context.invocation_metadata() or ()}
    names = context.auth_context().get("x509_common_name", ())
    shown = Shown(
        address,
        authorization=_word(told.get("authorization")),
        certificate=names[0].decode("utf-8", "replace") if names else "",
        actor=_word(told.get("x-shardgit-actor")) or "",
        for_address=_word(told.get("x-shardgit-address")) or "",
    )
    principal = await doorkeeper.admit(shown)
    again = functools.partial(doorkeeper.principal, shown, again=True)
    gate = None if hasattr(servicer, "doorkeeper") else getattr(servicer.store, "gate", None)
    return begin_call(principal, gate, again)  # a hook's reads are part of a push that is in


def _end(servicer: _Serves, seen: telemetry.Request, call: Call | None) -> None:
    if call is None:
        return
    if getattr(servicer.store, "audit", None) is None:  # peers have none
        call.end()
    else:
        end_call(cast("Store", servicer.store), seen, call)


def _word(value: str | bytes | None) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def unary(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wrap a method with one answer."""

    @functools.wraps(method)
    async def wrapped(self: _Serves, request: object, context: grpc.aio.ServicerContext) -> Any:
        call: Call | None = None
        name = method.__name__
        with _seen(context, name) as seen:
            try:
                call = await _admit(self, context)
                await _look(self, method, context)
                return await method(self, request, context)
            except asyncio.CancelledError:
                seen.gone()
                raise
            except ShardgitError as error:
                seen.failed(error)
                await context.abort_with_status(status_of(error))
            except Exception:
                await context.abort_with_status(_unexpected(seen, method.__name__))
            finally:
                _end(self, seen, call)

    return wrapped


def address_of(peer: str) -> str:
    """Return the address in gRPC's name of a peer: ``ipv4:127.0.0.1:5``, ``ipv6:%5B::1%5D:5``."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")


class _Limited(Protocol):
    """Who has limits: a store."""

    @property
    def limits(self) -> Limits: ...


class _Serves(Protocol):
    """A servicer."""

    @property
    def store(self) -> _Limited: ...


def bounded_stream(
    method: Callable[..., AsyncIterator[Any]],
) -> Callable[..., AsyncIterator[Any]]:
    """Wrap a method as ``stream`` does; a request ends after ``limits.request_time_max_s``, as on the other edges.

    For all that reads blocks at a client's pace: gc waits for it.
    """
    return stream(method, bounded=True)


def stream(
    method: Callable[..., AsyncIterator[Any]], *, bounded: bool = False
) -> Callable[..., AsyncIterator[Any]]:
    """Wrap a method that answers with a stream: an async generator.

    A client that does not take an answer for ``limits.client_stall_max_s``, and longer for a large
    one, is cut off.
    """

    @functools.wraps(method)
    async def wrapped(
        self: _Serves, request: object, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Any]:
        call: Call | None = None
        name = method.__name__
        with _seen(context, name) as seen:
            limits = self.store.limits
            stall = _Stall(limits.client_stall_max_s, context)
            if bounded:
                stall.end_all_after(limits.request_time_max_s)
            try:
                call = await _admit(self, context)
                await _look(self, method, context)
                made = cast("AsyncGenerator[Any, None]", method(self, request, context))
                async with aclosing(made) as answers:
                    async for answer in answers:
                        stall.begin(answer)
                        with telemetry.spending("client"):
                            yield answer
                        stall.end()
            except (asyncio.CancelledError, GeneratorExit):
                seen.gone()
                raise
            except ShardgitError as error:
                seen.failed(error)
                await context.abort_with_status(status_of(error))
            except Exception:
                await context.abort_with_status(_unexpected(seen, method.__name__))
            finally:
                stall.close()
                _end(self, seen, call)

    return wrapped


class _Stall:
    """Ends a call in whose task it was made when an answer is not taken in time.

    gRPC tells of an answer only that it is gone, not how much of it: so it has the time that a slow
    line takes for it on top. What gRPC itself holds of the call, a message at most, stays until the
    client takes it or its connection ends.
    """

    def __init__(self, most_s: float, context: grpc.aio.ServicerContext) -> None:
        self._most_s = most_s
        self._context = context
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._whole: asyncio.TimerHandle | None = None

    def end_all_after(self, seconds: float) -> None:
        """Bound the call as a whole."""
        self._whole = self._loop.call_later(seconds, self._cut, "request takes too long")

    def close(self) -> None:
        """Take note that the call has ended."""
        self.end()
        if self._whole is not None:
            self._whole.cancel()

    def begin(self, answer: Any) -> None:
        """Take note that an answer goes out."""
        size = len(answer) if isinstance(answer, bytes) else answer.ByteSize()
        seconds = self._most_s + size / SLOWEST_BYTES_PER_S
        self._timer = self._loop.call_later(seconds, self._cut, "client took nothing for too long")

    def end(self) -> None:
        """Take note that it was taken."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut(self, why: str) -> None:
        telemetry.log().info("client_stalled", edge="grpc", peer=self._context.peer(), why=why)
        telling = self._loop.create_task(self._tell(why), name="stalled-call")
        _telling.add(telling)
        telling.add_done_callback(_telling.discard)
        if self._task is not None:
            self._loop.call_soon(self._task.cancel)  # behind the status: it goes out first

    async def _tell(self, why: str) -> None:
        error = Unavailable(why)
        with contextlib.suppress(Exception):  # raised in any case: it would end a handler
            await self._context.abort_with_status(status_of(error))


_telling: set[asyncio.Task[None]] = set()  # until the client takes it, or its connection ends
