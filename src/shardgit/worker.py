"""One worker process: the HTTP, SSH and gRPC edges on one event loop, over one open store."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop
from aiohttp import web
from grpc_health.v1 import health

from shardgit import metrics, telemetry
from shardgit.accepting import BACKLOG, Acceptor, Loads, Place
from shardgit.addresses import split_address
from shardgit.calling import SECURE
from shardgit.config import RETIRE_MAX_S, ServeConfig
from shardgit.desk.server import Desk
from shardgit.door import doorkeeper_of, gate_of, tls_files
from shardgit.errors import ShardgitError
from shardgit.filelock import sweep
from shardgit.http.app import GitHttp
from shardgit.http.connections import Connections
from shardgit.leaving import Patience, take_what_waits, until_deserted
from shardgit.node import equip_hooks
from shardgit.opening import open_served
from shardgit.processes import anonymous_bytes, bound_memory, drop_left, trim
from shardgit.reporting import Reporter
from shardgit.rpc.server import SERVICES, make_server
from shardgit.service.audit import Audit
from shardgit.service.conversation import Conversations
from shardgit.service.fetch import FetchService
from shardgit.service.hooks import HookPolicy
from shardgit.service.meters import Meters
from shardgit.tracing import Tracer
from shardgit.version import VERSION
from shardgit.workers import meanwhile

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    import grpc

    from shardgit.cluster_node import Node
    from shardgit.opening import Opened
    from shardgit.service.store import Store
    from shardgit.ssh.server import SshEdge

LOOK_EVERY_S = 1.0
MEASURE_EVERY_S = 2.0
LAG_EVERY_S = 0.1
CLOSE_MAX_S = 5.0  # past the drain, to close what is idle
IDLE_MAX_S = 650.0  # of an HTTP connection: front ends that keep theirs do so for 600 s at most
TRIM_EVERY_S = 10.0
TRIM_BYTES = 16 << 20
REFUSED_EXIT = 3


def run_worker(config: ServeConfig, place: Place) -> int:
    """Serve until SIGTERM or until the supervisor is gone, then drain; returns the exit code."""
    bound_memory()
    telemetry.configure(level=config.log_level)
    _raise_file_limit()
    try:
        with open_served(config) as opened, _maintaining(config, opened):
            scratch = opened.store.scratch
            sweep(scratch, scratch / "events", scratch / "spool")
            drop_left(scratch, "push")
            uvloop.run(_serve(config, place, opened))
    except ShardgitError as error:
        telemetry.log().error("worker_refused", error=str(error), code=error.code)
        return REFUSED_EXIT
    except OSError as error:  # a disk that is full or gone, as a rule
        telemetry.log().error("worker_refused", error=str(error), exc_info=error)
        return REFUSED_EXIT
    finally:
        if telemetry.tracer is not None:
            telemetry.tracer.close()
    return 0


async def _serve(config: ServeConfig, place: Place, opened: Opened) -> None:
    store = opened.store
    place.keep()
    stop = asyncio.Event()
    patience = _leaving_when_told(config, stop)
    if config.traces == "otlp":
        telemetry.tracer = Tracer(VERSION)
    telemetry.slow_request_s = config.slow_request_s or float("inf")
    tls = tls_files(config)
    store.doorkeeper = doorkeeper_of(config, store.journal)
    store.gate = gate_of(config, store.workers, count=place.workers)
    store.audit = Audit(Path(config.audit_log) if config.audit_log else None)
    events = equip_hooks(store, _hook_policy(config))
    fetches = FetchService(store, version=VERSION)
    conversations = Conversations(store, version=VERSION, fetches=fetches)
    app = GitHttp(
        store,
        version=VERSION,
        fetches=fetches,
        url=config.http_url,
        is_private=config.on_loopback and not config.needs_auth,
    ).app()
    connections = Connections(store.limits)
    app.middlewares.insert(0, connections.heard)
    app.on_response_prepare.append(connections.last_answers)
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,  # a body is inflated under our own limit
        handler_cancellation=True,  # a client that went away must not leave work behind
        keepalive_timeout=IDLE_MAX_S,
        shutdown_timeout=CLOSE_MAX_S / 2,  # what is left then is idle, or too slow
    )
    await runner.setup()
    assert runner.server is not None
    if "ssh" in config.listens:
        importlib.import_module("shardgit.ssh.server")
    # Modules, and what else lives as long as the process: with them a full look for garbage took 36 ms.
    gc.collect()
    gc.freeze()
    peers = await _serve_peers(config, opened.node) if opened.node is not None else None
    servicer = health.aio.HealthServicer()
    server = await make_server(
        store,
        config.grpc,
        stopping=stop,
        conversations=conversations,
        tls=tls,
        servicer=servicer,
        connection_s=config.grpc_connection_s,
        maintains=config.maintenance != "off",
    )
    reporter = Reporter(store, place.number, servicer, SERVICES)
    desk = Desk(store, doorkeeper_of(config, store.journal, required=True))
    await server.start()
    ssh = await _serve_ssh(config, place, store, conversations) if place.ssh else None
    async with (
        meanwhile(_look_around(store), "look-around"),
        meanwhile(_feel_lag(), "feel-lag"),
        meanwhile(_measure(Meters(store, fetches)), "measure"),
        meanwhile(_give_back(store), "give-back"),
        reporter.reporting(),
        desk.serving(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), place.number),
        events.serving(drain_s=CLOSE_MAX_S / 2),
        connections.looking(runner.server),
    ):
        loads = Loads(place.loads, place.slots)
        acceptors = [
            Acceptor(
                socket.socket(fileno=each),
                connections,
                loads=loads,
                number=place.number,
                count=connections.count,
                tls=tls,
            )
            for each in place.http
        ]
        for acceptor in acceptors:
            acceptor.start()
        telemetry.log().info("worker_ready", pid=os.getpid())
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads that pipe from here on
        await stop.wait()
        telemetry.log().info("worker_draining", pid=os.getpid())
        await reporter.drain()
        async with asyncio.TaskGroup() as group:
            group.create_task(_end_calls(server, config.grpc, patience))
            if ssh is not None:
                group.create_task(ssh.close(patience))
            if peers is not None:
                group.create_task(_end_calls(peers, config.cluster.listen, patience))
            # Not left to aiohttp's own shutdown: that drops what running requests still receive.
            for acceptor in acceptors:
                acceptor.close()
            await connections.drain(patience)
            await patience.until(runner.cleanup(), more_s=CLOSE_MAX_S)


def _leaving_when_told(config: ServeConfig, stop: asyncio.Event) -> Patience:
    """Set ``stop`` when the worker is to leave; returns how long its requests have then."""
    loop = asyncio.get_running_loop()
    patience = Patience()
    orphan_watch = sys.stdin.fileno()

    def retire() -> None:  # another serves in its place
        patience.within(config.retire_s)
        stop.set()

    def leave() -> None:
        patience.within(config.drain_s)
        patience.hurry()
        stop.set()

    def orphaned() -> None:
        loop.remove_reader(orphan_watch)  # at its end it is readable for ever
        leave()

    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, leave)
    loop.add_signal_handler(signal.SIGUSR1, retire)
    # The supervisor holds the other end of standard input: at its end the worker is an orphan.
    loop.add_reader(orphan_watch, orphaned)
    return patience


async def _end_calls(server: grpc.aio.Server, address: str, patience: Patience) -> None:
    """Take what waits at the port, have clients go elsewhere, and let their calls end.

    A call that comes as the server is stopped is cancelled by gRPC, before its client has heard to go: where there is
    no hurry, connections come to their age first, at which gRPC cancels nothing.
    """
    port = split_address(address)[1]
    await patience.until(take_what_waits(port))
    await _either(until_deserted(port), patience.hurried())
    if not await patience.until(server.stop(RETIRE_MAX_S)):
        await server.stop(None)


async def _either(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run jobs until one of them ends."""
    tasks = [asyncio.ensure_future(each) for each in jobs]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in tasks:
            each.cancel()


async def _serve_peers(config: ServeConfig, node: Node) -> grpc.aio.Server:
    """Serve this node's blocks to the others."""
    from shardgit.rpc.peer import make_peer_server

    server, _ = await make_peer_server(
        node.blocks, node.store.limits, config.cluster.listen, tls=node.tls
    )
    await server.start()
    return server


@contextlib.contextmanager
def _maintaining(config: ServeConfig, opened: Opened) -> Iterator[None]:
    """Have the store maintained meanwhile, by this worker when it is its turn."""
    if config.maintenance == "off":
        yield
        return
    from shardgit.operate.maintenance import Maintenance, Plan
    from shardgit.service.mirror_credentials import Credentials

    node = opened.node
    work = Maintenance(
        opened.store,
        Plan(
            interval_s=config.maintenance_interval_s,
            gc_interval_s=config.gc_interval_s,
            scrub_interval_s=config.scrub_interval_s,
            rate_bytes_s=config.maintenance_bytes_per_s,
            credentials=Credentials.of(config.mirror_credentials),
            scrubs=node is None,
        ),
        sweep=node.bundles.sweep if node is not None else None,
    )
    work.start()
    try:
        yield
    finally:
        work.stop()


async def _look_around(store: Store) -> None:
    """Let the worker hear of other rings and compacted shards also while nobody asks it anything."""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            await store.workers.run(store.blocks.look_around)
        except ShardgitError as error:
            telemetry.log().error("shards_not_seen", error=str(error))
        except Exception as error:  # once more in a second
            telemetry.log().error("shards_not_seen", exc_info=error)


async def _measure(meters: Meters) -> None:
    """Have metrics told what the store keeps and has waiting."""
    while True:
        try:
            meters.look()
        except Exception as error:  # once more in a moment
            telemetry.log().error("not_measured", exc_info=error)
        await asyncio.sleep(MEASURE_EVERY_S)


async def _feel_lag() -> None:
    """Measure how late the event loop is."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        metrics.LOOP_LAG.observe(max(0.0, loop.time() - due))


async def _give_back(store: Store) -> None:
    """Have the allocator give back what crowds of clients have left: of 461 MiB behind 100 of them 69 were in use."""
    floor = anonymous_bytes()
    while True:
        await asyncio.sleep(TRIM_EVERY_S)
        if anonymous_bytes() > floor + TRIM_BYTES:
            with contextlib.suppress(ShardgitError):
                await store.workers.run(trim)
            floor = anonymous_bytes()


def _hook_policy(config: ServeConfig) -> HookPolicy:
    programs = Path(config.hooks_dir) if config.hooks_dir else None
    server = f"{SECURE}{config.grpc}" if config.tls_certificate else config.grpc
    return HookPolicy(programs=programs, targets=config.hook_targets, server=server)


async def _serve_ssh(
    config: ServeConfig, place: Place, store: Store, conversations: Conversations
) -> SshEdge:
    from shardgit.addresses import is_loopback
    from shardgit.ssh.admission import Admission
    from shardgit.ssh.hostkey import make_host_key
    from shardgit.ssh.server import SshEdge

    host, _ = split_address(config.ssh)
    admission = Admission(store, file=config.ssh_authorized_keys, host=host)
    http = config.http_url or f":{split_address(config.http)[1]}"
    edge = SshEdge(conversations, admission, http=http, tls=bool(config.tls_certificate))
    listeners = [socket.socket(fileno=each) for each in place.ssh]
    host_key = make_host_key(config.folder, config.ssh_host_key)
    await edge.listen(listeners, host_key=host_key, backlog=BACKLOG)
    if not is_loopback(host) and not await admission.any_key():
        telemetry.log().warning("ssh_lets_nobody_in", address=config.ssh)
    return edge


def _raise_file_limit() -> None:
    """Let the process have as many files, so connections, as the system allows it: shells give 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(
        run_worker(
            msgspec.json.decode(sys.argv[1], type=ServeConfig),
            msgspec.json.decode(sys.argv[2], type=Place),
        )
    )
