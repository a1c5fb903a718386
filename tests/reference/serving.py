"""A gRPC server in this process."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from shardgit.rpc.server import make_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shardgit.service.store import Store


@asynccontextmanager
async def serving_rpc(store: Store) -> AsyncIterator[str]:
    """Serve a store; gives the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    server = await make_server(store, address)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(5)
