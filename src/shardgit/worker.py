"""One worker process: the HTTP and gRPC edges on one event loop, over one open store."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

import uvloop
from aiohttp import web

from shardgit import telemetry
from shardgit.config import ServeConfig, split_address
from shardgit.http.app import GitHttp
from shardgit.node import open_store
from shardgit.rpc.server import make_server
from shardgit.version import VERSION

if TYPE_CHECKING:
    from shardgit.service.store import Store

BACKLOG = 1_024


def main(config: ServeConfig) -> None:
    """Serve until SIGTERM or until the supervisor is gone, then drain."""
    telemetry.configure(level=config.log_level)
    with open_store(config.folder) as store:
        uvloop.run(_serve(config, store))


async def _serve(config: ServeConfig, store: Store) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # The supervisor holds the other end of standard input: at its end the worker is an orphan and goes.
    loop.add_reader(sys.stdin.fileno(), stop.set)
    host, port = split_address(config.http)
    runner = web.AppRunner(
        GitHttp(store, version=VERSION).app(),
        access_log=None,
        auto_decompress=False,  # a body is inflated under our own limit
        handler_cancellation=True,  # a client that went away must not leave work behind
        shutdown_timeout=config.drain_s,
    )
    await runner.setup()
    await web.TCPSite(runner, host, port, reuse_port=True, backlog=BACKLOG).start()
    server = await make_server(store, config.grpc)
    await server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    telemetry.log().info("worker_ready", pid=os.getpid(), http=config.http, grpc=config.grpc)
    await stop.wait()
    telemetry.log().info("worker_draining", pid=os.getpid())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(config.drain_s + 5), asyncio.TaskGroup() as group:
            group.create_task(server.stop(config.drain_s))
            group.create_task(runner.cleanup())
