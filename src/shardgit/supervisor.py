"""The supervisor: holds the ports, has a crew of workers serve, has the admin port served (console/)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvloop
from prometheus_client import CollectorRegistry, generate_latest, multiprocess

from shardgit import telemetry
from shardgit.config import changed, settled_again
from shardgit.console.gauges import BUILD_INFO, REGISTRY, WORKER_RESTARTS, WORKERS, tell_hot
from shardgit.console.port import AdminPort
from shardgit.counts import count_folder
from shardgit.crew import Crew, Sockets
from shardgit.errors import Refused, ShardgitError
from shardgit.notifying import Notifier
from shardgit.opening import check, keep_config
from shardgit.ports import Address
from shardgit.report import hottest, read_reports
from shardgit.version import VERSION
from shardgit.workers import meanwhile

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.config import ServeConfig
    from shardgit.report import Report

HOT = 20  # repositories that are told
# What the admin port, which stays, was opened with.
OF_ADMIN = ("auth", "metrics_secret_file", "tls_certificate", "tls_key", "tls_client_ca")


class Supervisor:
    """Has a crew serve until it is told to stop; ``ready`` is called once.

    ``read_again`` gives the configuration as it is by then, checked. Errors of it: ShardgitError.
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        addresses: dict[str, Address],
        folder: str,
        ready: Callable[[], None],
        read_again: Callable[[], ServeConfig],
    ) -> None:
        self.addresses = addresses
        self.folder = folder  # where workers leave metrics and reports, and have their desks
        self.restarts = 0
        self.ready = ready
        self.read_again = read_again
        self.leaving = False
        sockets = Sockets(http=_files(addresses, "http"), ssh=_files(addresses, "ssh"))
        self.crew = Crew(
            config, sockets=sockets, metrics=folder, died=self._died, serves=self._serves
        )
        self.notifier = Notifier()
        self._hung_up_on = asyncio.Event()
        self._started = False
        self._came_up = asyncio.Event()

    @property
    def config(self) -> ServeConfig:
        """The configuration with which workers are started."""
        return self.crew.config

    @property
    def count(self) -> int:
        """How many workers there are to be."""
        return self.crew.count

    @property
    def serving(self) -> set[int]:
        """The numbers of the workers that take connections."""
        return self.crew.serving

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit code. A second signal kills, SIGHUP reloads."""
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self._told_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        code = 0
        port = AdminPort(self.config, self, Path(self.folder))
        async with port.serving(self.addresses["admin"].sockets):
            try:
                async with (
                    meanwhile(self._reloading(), "reload"),
                    meanwhile(self.notifier.watched(), "watchdog"),
                ):
                    await self.crew.run()
            except* Refused as failed:
                telemetry.log().error("serve_failed", error=str(failed.exceptions[0]))
                code = 1
        return code

    def _told_to_stop(self) -> None:
        if self.leaving:
            self._stop()
            self.crew.hurry.set()
            return
        self.leaving = True
        self.notifier.stopping()
        if self.config.leave_s:
            asyncio.get_running_loop().call_later(self.config.leave_s, self._stop)
        else:
            self._stop()

    def _stop(self) -> None:
        self.crew.stop.set()
        for key in ("http", "ssh"):
            if key in self.addresses:
                self.addresses[key].end()

    def _hung_up(self) -> None:
        """Stop when the terminal is gone; elsewhere the signal asks for a reload."""
        if sys.stdin is not None and sys.stdin.isatty():
            self._told_to_stop()
        else:
            self._hung_up_on.set()

    async def _reloading(self) -> None:
        """Reload for each SIGHUP; those that come meanwhile are one."""
        while True:
            await self._hung_up_on.wait()
            await self._came_up.wait()
            self._hung_up_on.clear()
            if not self.leaving:
                self.notifier.reloading()
                await self._reload()
                self.notifier.ready()

    async def _reload(self) -> None:
        """Read the configuration again, and replace all workers. One that is not sound changes nothing."""
        begun = time.monotonic()
        try:
            wanted = await asyncio.to_thread(self.read_again)
            fresh, fixed = settled_again(self.config, wanted)
            if fresh.in_cluster:
                keep_config(fresh)
        except (ShardgitError, OSError) as error:
            telemetry.log().error("reload_refused", error=str(error))
            return
        fixed += [f"admin: {key}" for key in changed(self.config, fresh) if key in OF_ADMIN]
        if fixed:
            telemetry.log().warning("reload_needs_restart", keys=fixed)
        telemetry.configure(level=fresh.log_level)
        telemetry.log().info("reload_begun", changed=changed(self.config, fresh))
        done = await self.crew.roll(fresh)
        telemetry.configure(level=self.config.log_level)
        seconds = round(time.monotonic() - begun, 3)
        if done:
            telemetry.log().info("reloaded", workers=self.count, seconds=seconds)
        elif not self.leaving:
            telemetry.log().error("reload_failed", seconds=seconds)

    def _died(self) -> None:
        WORKER_RESTARTS.inc()
        self.restarts += 1

    def _serves(self) -> None:
        WORKERS.set(len(self.serving))
        self._started = self._started or bool(self.serving)
        if len(self.serving) >= self.count and not self._came_up.is_set():
            self._came_up.set()
            self.ready()
            self.notifier.ready()

    # ---- for the admin port ----

    @property
    def draining(self) -> bool:
        """Whether the server stops."""
        return self.leaving

    @property
    def started(self) -> bool:
        """Whether some worker has served."""
        return self._started

    def reports(self) -> list[Report]:
        """Return what the workers that serve told of themselves last."""
        return [one for one in read_reports(Path(self.folder)) if one.number in self.serving]

    def metrics(self) -> bytes:
        """Return the supervisor's own metrics and the sum over all workers, in Prometheus' text format."""
        tell_hot(hottest(self.reports(), HOT))
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=self.folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry) + generate_latest(REGISTRY)


def _files(addresses: dict[str, Address], key: str) -> tuple[int, ...]:
    address = addresses.get(key)
    return tuple(each.fileno() for each in address.sockets) if address is not None else ()


def _prepare(config: ServeConfig) -> None:
    """Look whether what the SSH edge needs can be read, and make the host's key. Errors: ShardgitError."""
    if "ssh" in config.listens:
        from shardgit.ssh.admission import check_authorized_keys
        from shardgit.ssh.hostkey import make_host_key

        check_authorized_keys(config.ssh_authorized_keys)
        make_host_key(config.folder, config.ssh_host_key)


def serve(
    config: ServeConfig,
    *,
    ready: Callable[[ServeConfig], None],
    read_again: Callable[[], ServeConfig],
) -> int:
    """Serve a store until a signal; returns the exit code.

    ``ready`` is called once, with the addresses in use; ``read_again`` for each SIGHUP, in a thread. Errors: Refused
    when an address is taken.
    """
    telemetry.configure(level=config.log_level)
    BUILD_INFO.labels(VERSION).set(1)
    with contextlib.ExitStack() as held:
        texts: dict[str, str] = {}
        addresses: dict[str, Address] = {}
        for key in config.listens:
            address = Address(getattr(config, key), key, listens=key != "grpc")
            held.callback(address.close)
            texts[key] = address.text
            addresses[key] = address
        if config.in_cluster:
            config.folder.mkdir(parents=True, exist_ok=True)
        _prepare(config)
        if config.in_cluster:
            peers = Address(config.cluster.listen, "cluster.listen")
            held.callback(peers.close)
            cluster = msgspec.structs.replace(config.cluster, listen=peers.text)
            config = msgspec.structs.replace(config, cluster=cluster)
        settled = msgspec.structs.replace(config, data=str(config.folder.resolve()), **texts)
        if settled.in_cluster:
            keep_config(settled)
        folder = str(held.enter_context(count_folder()))

        def checked() -> ServeConfig:
            wanted = read_again()
            check(settled_again(settled, wanted)[0])
            _prepare(settled_again(settled, wanted)[0])
            return wanted

        async def run() -> int:
            return await Supervisor(
                settled,
                addresses=addresses,
                folder=folder,
                ready=lambda: ready(settled),
                read_again=checked,
            ).run()

        return uvloop.run(run())
