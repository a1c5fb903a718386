"""Serve streams of equal messages by grpc.aio: what gRPC itself costs. Prints its port."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import uvloop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def stream(request: bytes, _: object) -> AsyncIterator[bytes]:
    """Send as many messages of a size as were asked for."""
    size, count = map(int, request.split())
    message = bytes(size)
    for _number in range(count):
        yield message


async def main() -> None:
    """Serve until stopped."""
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    handler = grpc.unary_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("limit", {"Stream": handler})]
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main())
