"""The supervisor: holds the ports, keeps the workers alive, has the admin port served (console/)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop
from prometheus_client import CollectorRegistry, generate_latest, multiprocess

from shardgit import telemetry
from shardgit.accepting import ABSENT, BACKLOG, Loads, Place
from shardgit.addresses import split_address
from shardgit.console.gauges import BUILD_INFO, REGISTRY, WORKER_RESTARTS, WORKERS, tell_hot
from shardgit.console.port import AdminPort
from shardgit.errors import Refused, ShardgitError
from shardgit.node import check_readers
from shardgit.opening import keep_config
from shardgit.report import hottest, read_reports
from shardgit.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.config import ServeConfig
    from shardgit.report import Report

HOT = 20  # repositories that are told
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 10.0
STEADY_S = 60.0  # a worker that lived that long is restarted without a wait
START_MAX_S = 60.0
KILL_AFTER_S = 10.0  # past the drain
NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
# What gRPC writes beside our log is no JSON, and any client may cause it.
QUIET = {"GRPC_VERBOSITY": "NONE"}


class Address:
    """A listening address that is ours until ``close``; port 0 has become a free port.

    The probe is made without SO_REUSEPORT: with it, two servers would share a port in silence. Then a socket keeps the
    port for the workers: one that never listens, where each opens its own, or one that ``listens`` for all of them.
    """

    def __init__(self, text: str, key: str, *, listens: bool = False) -> None:
        host, port = split_address(text, key)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as cause:
            raise Refused("host does not resolve", key=key, address=text) from cause
        self.sockets: list[socket.socket] = []
        places = dict.fromkeys((family, where) for family, _, _, _, where in found)
        lacking: OSError | None = None
        try:
            for family, (address, _, *rest) in places if listens else list(places)[:1]:
                try:
                    port = self._open(family, (address, port, *rest), listens=listens)
                except (
                    OSError
                ) as cause:  # a name may have an IPv6 address on a machine without IPv6
                    if cause.errno not in NOT_HERE:
                        raise
                    lacking = cause
            if lacking is not None and not self.sockets:
                raise lacking
        except OSError as cause:
            self.close()
            if cause.errno == errno.EADDRINUSE:
                raise Refused(
                    "address is in use; is another server running?", key=key, address=text
                ) from cause
            raise Refused(
                "address cannot be bound", key=key, address=text, cause=cause.strerror
            ) from cause
        self.text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _open(self, family: int, where: tuple[object, ...], *, listens: bool) -> int:
        """Take one of the host's addresses; returns the port."""
        with _socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
            where = probe.getsockname()
        held = _socket(family)
        try:
            shared = socket.SO_REUSEADDR if listens else socket.SO_REUSEPORT
            held.setsockopt(socket.SOL_SOCKET, shared, 1)
            held.bind(where)
            if listens:
                held.listen(BACKLOG)
        except OSError:
            held.close()
            raise
        self.sockets.append(held)
        return int(held.getsockname()[1])

    def close(self) -> None:
        """Give the port back."""
        for each in self.sockets:
            each.close()

    def end(self) -> None:
        """Listen no more, in whatever process: the next connection is refused."""
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:  # as of a server that listens to [::] beside another on 0.0.0.0
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


class Supervisor:
    """Keeps ``count`` workers alive until it is told to stop; ``ready`` is called once."""

    def __init__(
        self,
        config: ServeConfig,
        *,
        http: Address,
        admin: Address,
        count: int,
        folder: str,
        ready: Callable[[], None],
    ) -> None:
        self.config = config
        self.http = http
        self.admin = admin
        self.loads = Loads.make(count)
        self.count = count
        self.folder = folder  # where workers leave metrics and reports, and have their desks
        self.restarts = 0
        self.ready = ready
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.serving: set[int] = set()
        self._served: set[int] = set()  # workers that were ready at least once
        self._readers = asyncio.Lock()

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit code. A second signal kills."""
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self._told_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        code = 0
        port = AdminPort(self.config, self, Path(self.folder))
        async with port.serving(self.admin.sockets):
            try:
                async with asyncio.TaskGroup() as group:
                    for number in range(self.count):
                        group.create_task(self._keep(number))
            except* Refused as failed:
                telemetry.log().error("serve_failed", error=str(failed.exceptions[0]))
                code = 1
            finally:
                self.loads.close()
        return code

    def _told_to_stop(self) -> None:
        if self.stop.is_set():
            self.hurry.set()
        self.stop.set()
        self.http.end()

    def _hung_up(self) -> None:
        """Stop when the terminal is gone; elsewhere the signal is kept for reloading."""
        if sys.stdin is not None and sys.stdin.isatty():
            self._told_to_stop()
        else:
            telemetry.log().warning("sighup_ignored")

    async def _keep(self, number: int) -> None:
        """Start worker ``number`` again and again until the stop."""
        delay = BACKOFF_MIN_S
        while not self.stop.is_set():
            begun = time.monotonic()
            code = await self._one(number)
            if self.stop.is_set():
                return
            if number not in self._served:
                raise Refused("a worker does not start", worker=number, exit_code=code)
            WORKER_RESTARTS.inc()
            self.restarts += 1
            telemetry.log().warning("worker_died", worker=number, exit_code=code)
            await self._free_readers()
            steady = time.monotonic() - begun > STEADY_S
            delay = BACKOFF_MIN_S if steady else min(delay * 2, BACKOFF_MAX_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self.stop.wait()

    async def _free_readers(self) -> None:
        """Free the reader slots that a dead worker left; an old reader keeps pages from reuse."""
        if self.config.in_cluster:
            return  # the process that feeds the replica does so
        async with self._readers:  # an environment is open once in a process
            try:
                freed = await asyncio.to_thread(check_readers, self.config.folder)
            except (ShardgitError, OSError) as error:  # a shard that leaves at that moment
                telemetry.log().error("reader_check_failed", error=str(error))
            else:
                telemetry.log().info("readers_freed", count=freed)

    async def _one(self, number: int) -> int:
        """Run one worker process to its end; returns its exit code."""
        listeners = tuple(each.fileno() for each in self.http.sockets)
        place = Place(number, self.count, listeners, self.loads.file)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "shardgit.worker",
            msgspec.json.encode(self.config).decode(),
            msgspec.json.encode(place).decode(),
            pass_fds=(*listeners, self.loads.file),
            stdin=asyncio.subprocess.PIPE,  # its end tells the worker that the supervisor is gone
            stdout=asyncio.subprocess.PIPE,
            env={**QUIET, **os.environ, "PROMETHEUS_MULTIPROC_DIR": self.folder},
            start_new_session=True,  # ctrl-C reaches the supervisor, which stops workers in order
        )
        assert process.stdout is not None
        first_line = asyncio.ensure_future(process.stdout.readline())
        ended = asyncio.ensure_future(process.wait())
        stopping = asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait(
                {first_line, stopping}, timeout=START_MAX_S, return_when=asyncio.FIRST_COMPLETED
            )
            if first_line.done() and first_line.result() == b"ready\n":
                self._now_serving(number)
                await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.serving.discard(number)
            WORKERS.set(len(self.serving))
            await self._end(process, ended)
            self.loads.tell(number, ABSENT)
            first_line.cancel()
            stopping.cancel()
            multiprocess.mark_process_dead(process.pid, path=self.folder)  # type: ignore[no-untyped-call]
        return ended.result()

    def _now_serving(self, number: int) -> None:
        self.serving.add(number)
        self._served.add(number)
        WORKERS.set(len(self.serving))
        if len(self._served) == self.count and self.ready is not None:
            announce, self.ready = self.ready, _nothing
            announce()

    async def _end(self, process: asyncio.subprocess.Process, ended: asyncio.Future[int]) -> None:
        """Ask a worker to drain and go; kill it when it takes too long or a second signal comes."""
        if not ended.done():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            hurry = asyncio.ensure_future(self.hurry.wait())
            either: list[asyncio.Future[Any]] = [ended, hurry]
            await asyncio.wait(
                either,
                timeout=self.config.drain_s + KILL_AFTER_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            hurry.cancel()
        if not ended.done():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.wait({ended})

    # ---- for the admin port ----

    @property
    def draining(self) -> bool:
        """Whether the server stops."""
        return self.stop.is_set()

    @property
    def started(self) -> bool:
        """Whether some worker has served."""
        return bool(self._served)

    def reports(self) -> list[Report]:
        """Return what the workers that serve told of themselves last."""
        return [one for one in read_reports(Path(self.folder)) if one.number in self.serving]

    def metrics(self) -> bytes:
        """Return the supervisor's own metrics and the sum over all workers, in Prometheus' text format."""
        tell_hot(hottest(self.reports(), HOT))
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=self.folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry) + generate_latest(REGISTRY)


def _nothing() -> None:
    """Stand for what was announced already."""


def serve(config: ServeConfig, *, ready: Callable[[ServeConfig], None]) -> int:
    """Serve a store until a signal; returns the exit code.

    ``ready`` is called once, with the addresses in use. Errors: Refused when an address is taken.
    """
    telemetry.configure(level=config.log_level)
    BUILD_INFO.labels(VERSION).set(1)
    with contextlib.ExitStack() as held:
        texts: dict[str, str] = {}
        addresses: dict[str, Address] = {}
        for key in config.listens:
            address = Address(getattr(config, key), key, listens=key in ("http", "admin"))
            held.callback(address.close)
            texts[key] = address.text
            addresses[key] = address
        if config.in_cluster:
            config.folder.mkdir(parents=True, exist_ok=True)
        if "ssh" in config.listens:
            from shardgit.ssh.admission import check_authorized_keys
            from shardgit.ssh.hostkey import make_host_key

            check_authorized_keys(config.ssh_authorized_keys)
            make_host_key(config.folder, config.ssh_host_key)
        if config.in_cluster:
            peers = Address(config.cluster.listen, "cluster.listen")
            held.callback(peers.close)
            cluster = msgspec.structs.replace(config.cluster, listen=peers.text)
            config = msgspec.structs.replace(config, cluster=cluster)
        settled = msgspec.structs.replace(config, data=str(config.folder.resolve()), **texts)
        if settled.in_cluster:
            keep_config(settled)
        count = config.workers or os.cpu_count() or 1
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="shardgit-metrics-"))

        async def run() -> int:
            return await Supervisor(
                settled,
                http=addresses["http"],
                admin=addresses["admin"],
                count=count,
                folder=folder,
                ready=lambda: ready(settled),
            ).run()

        return uvloop.run(run())
