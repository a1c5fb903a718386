"""The supervisor: probes the ports, starts the workers, restarts one that dies, serves the admin port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import msgspec
import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest, multiprocess

from shardgit import telemetry
from shardgit.config import ServeConfig, split_address
from shardgit.errors import Refused
from shardgit.node import check_readers

if TYPE_CHECKING:
    from collections.abc import Callable

OWN = CollectorRegistry()
WORKER_RESTARTS = Counter(
    "shardgit_worker_restarts_total", "Workers that died and were started again.", registry=OWN
)
BACKOFF_MAX_S = 10.0
START_MAX_S = 60.0


def free_port(address: str, key: str) -> str:
    """Return the address, port 0 replaced by a free port; Refused when somebody listens there.

    The probe is made without SO_REUSEPORT: with it, two servers would share a port in silence.
    """
    host, port = split_address(address, key)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as cause:
            raise Refused("address is in use or not ours", key=key, address=address, cause=cause.strerror) from cause
        found = probe.getsockname()[1]
    return f"[{host}]:{found}" if ":" in host else f"{host}:{found}"


class Supervisor:
    """Keeps ``count`` workers alive until it is told to stop."""

    def __init__(self, config: ServeConfig, count: int, metrics: str, ready: Callable[[ServeConfig], None]) -> None:
        self.config = config
        self.count = count
        self.metrics = metrics
        self.ready = ready
        self.stop = asyncio.Event()
        self.alive: dict[int, asyncio.subprocess.Process] = {}

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        admin = await self._admin()
        code = 0
        try:
            async with asyncio.TaskGroup() as group:
                started = [asyncio.Event() for _ in range(self.count)]
                for number in range(self.count):
                    group.create_task(self._keep(number, started[number]))
                group.create_task(self._all(started))
        except* Refused as failed:
            telemetry.log().error("serve_failed", error=str(failed.exceptions[0]))
            code = 1
        finally:
            await admin.cleanup()
        return code

    async def _all(self, started: list[asyncio.Event]) -> None:
        for event in started:
            await event.wait()
        if not self.stop.is_set():
            self.ready(self.config)

    async def _keep(self, number: int, started: asyncio.Event) -> None:
        """Start worker ``number`` again and again until the stop."""
        delay = 0.1
        try:
            while not self.stop.is_set():
                begun = time.monotonic()
                code = await self._one(number, started)
                if self.stop.is_set():
                    return
                if not started.is_set():
                    raise Refused("a worker does not start", worker=number, exit_code=code)
                WORKER_RESTARTS.inc()
                freed = await asyncio.to_thread(check_readers, self.config.folder)
                telemetry.log().warning("worker_died", worker=number, exit_code=code, readers_freed=freed)
                delay = 0.1 if time.monotonic() - begun > 60 else min(delay * 2, BACKOFF_MAX_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), delay)
        finally:
            started.set()

    async def _one(self, number: int, started: asyncio.Event) -> int:
        """Run one worker process to its end."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import sys, msgspec; from shardgit.config import ServeConfig; from shardgit.worker import main; "
            "main(msgspec.json.decode(sys.argv[1], type=ServeConfig))",
            msgspec.json.encode(self.config).decode(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": self.metrics},
            start_new_session=True,  # ctrl-C reaches the supervisor, which stops the workers in order
        )
        assert process.stdout is not None
        self.alive[number] = process
        stopping = asyncio.ensure_future(self.stop.wait())
        ended = asyncio.ensure_future(process.wait())
        try:
            async with asyncio.timeout(START_MAX_S):
                if await process.stdout.readline() == b"ready\n":
                    started.set()
            await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                process.terminate()
                await asyncio.wait({ended}, timeout=self.config.drain_s + 10)
        finally:
            if not ended.done():
                process.kill()
            stopping.cancel()
            self.alive.pop(number, None)
        multiprocess.mark_process_dead(process.pid, path=self.metrics)  # type: ignore[no-untyped-call]
        return await ended

    # ---- admin port ----

    async def _admin(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/livez", self._live)
        app.router.add_get("/readyz", self._readyz)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        host, port = split_address(self.config.admin)
        await web.TCPSite(runner, host, port).start()
        return runner

    async def _metrics(self, _: web.Request) -> web.Response:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=self.metrics)  # type: ignore[no-untyped-call]
        return web.Response(body=generate_latest(registry) + generate_latest(OWN), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self.stop.is_set():
            return web.Response(status=503, text="draining\n")
        missing = self.count - len(self.alive)
        return web.Response(status=503 if missing else 200, text=f"{missing} workers missing\n" if missing else "ok\n")


def serve(config: ServeConfig, *, ready: Callable[[ServeConfig], None]) -> int:
    """Serve a store until a signal; returns the exit code. ``ready`` is called once with the addresses in use."""
    with tempfile.TemporaryDirectory(prefix="shardgit-metrics-") as metrics:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
        telemetry.configure(level=config.log_level)
        addresses = {key: free_port(getattr(config, key), key) for key in ("grpc", "http", "admin")}
        settled = msgspec.structs.replace(config, data=str(config.folder.resolve()), **addresses)
        count = config.workers or os.cpu_count() or 1

        async def run() -> int:
            return await Supervisor(settled, count, metrics, ready).run()

        return uvloop.run(run())
