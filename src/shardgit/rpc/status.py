"""The one place where errors become gRPC codes, and requests get their id, time and count."""

from __future__ import annotations

import asyncio
import functools
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from shardgit import telemetry
from shardgit.errors import DataLoss, Internal, ShardgitError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    import grpc

DOMAIN = "shardgit"


def status_of(error: ShardgitError) -> grpc.Status:
    """Return the status of an error: its code, its message and an ErrorInfo with reason and facts."""
    hidden = isinstance(error, Internal)
    facts = (
        {}
        if hidden
        else {key: json.dumps(value, default=str) for key, value in error.facts.items()}
    )
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts)
    detail = any_pb2.Any()
    detail.Pack(info)
    text = error.message if isinstance(error, DataLoss | Internal) else str(error)
    return rpc_status.to_status(
        status_pb2.Status(code=code_pb2.Code.Value(error.code), message=text, details=[detail])
    )


def _given_id(context: grpc.aio.ServicerContext) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "x-request-id":
            return str(value)
    return None


def unary(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wrap a method with one answer."""

    @functools.wraps(method)
    async def wrapped(self: object, request: object, context: grpc.aio.ServicerContext) -> Any:
        with telemetry.request("grpc", method.__name__, _given_id(context)) as seen:
            try:
                return await method(self, request, context)
            except asyncio.CancelledError:
                seen.gone()
                raise
            except ShardgitError as error:
                seen.failed(error)
                await context.abort_with_status(status_of(error))

    return wrapped


def stream(method: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """Wrap a method that answers with a stream: an async generator."""

    @functools.wraps(method)
    async def wrapped(
        self: object, request: object, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Any]:
        with telemetry.request("grpc", method.__name__, _given_id(context)) as seen:
            try:
                made = cast("AsyncGenerator[Any, None]", method(self, request, context))
                async with aclosing(made) as answers:
                    async for answer in answers:
                        yield answer
            except (asyncio.CancelledError, GeneratorExit):
                seen.gone()
                raise
            except ShardgitError as error:
                seen.failed(error)
                await context.abort_with_status(status_of(error))

    return wrapped
