"""How commands run long operations: here or through a server, with a bar or JSON, until ctrl-C."""

from __future__ import annotations

import re
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from shardgit.cli.completing import shard_numbers
from shardgit.cli.context import UsageRefused, opened, server_address
from shardgit.cli.output import print_json, progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardgit.operate.operation import Control
    from shardgit.operators import Operators
    from shardgit.progress import Report
    from shardgit.service.store import Store
    from shardgit.v1 import shard_pb2

T = TypeVar("T")
ShardArgument = Annotated[
    int,
    typer.Argument(metavar="ID", min=0, help="Number of the shard.", autocompletion=shard_numbers),
]
ThrottleOption = Annotated[
    str | None,
    typer.Option("--throttle", metavar="RATE", help="At most so much a second, as 50MiB/s."),
]
EagerOption = Annotated[
    bool, typer.Option("--eager", help="Do not slow down while the store is busy.")
]
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?(?:/s)?", re.IGNORECASE)
_SCALE = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
RATE_MAX = 1 << 50


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast an operation may go: bytes a second, None without a bound, and whether load slows it."""

    rate_bytes_s: float | None = None
    ignore_load: bool = False

    def message(self) -> shard_pb2.Pace:
        """Return it as a server is told."""
        from shardgit.v1 import shard_pb2

        rate = max(int(self.rate_bytes_s), 1) if self.rate_bytes_s else 0
        return shard_pb2.Pace(bytes_per_s=rate, ignore_load=self.ignore_load)


def speed(throttle: str | None, *, eager: bool = False) -> Speed:
    """Return the speed that --throttle and --eager ask for; UsageRefused for what is no rate."""
    if throttle is None:
        return Speed(ignore_load=eager)
    found = _RATE.fullmatch(throttle.strip())
    rate = float(found[1]) * _SCALE[found[2].lower()] if found else 0.0
    if not 1 <= rate <= RATE_MAX:
        raise UsageRefused("not a rate; write it as 50MiB/s", throttle=throttle[:50])
    return Speed(rate, eager)


def run_operation(
    server: str | None,
    data: Path | None,
    *,
    local: Callable[[Store, Control], T],
    remote: Callable[[Operators, Report], T],
    show: Callable[[T], None] | None = None,
    json: bool = False,
    pace: Speed | None = None,
) -> T:
    """Run a long operation on the store's folder, or have a server run it; prints and returns its result.

    Progress goes to a bar on a terminal, and nowhere with ``json``: then the result is printed as JSON, nothing else.
    Without ``json`` it is ``show`` that prints it. The first ctrl-C stops the operation at its next step, where it
    can go on later.
    """
    address = server_address(server, data)
    if address:
        from shardgit.operators import Operators

        with Operators(address) as client, progress_bar(quiet=json) as report:
            done = remote(client, report)
    else:
        with (
            opened(data) as store,
            progress_bar(quiet=json) as report,
            control_of(store, pace or Speed(), report) as control,
        ):
            done = local(store, control)
    if json:
        print_json(done)
    elif show is not None:
        show(done)
    return done


def run_here(
    server: str | None,
    *,
    local: Callable[[Control], T],
    remote: Callable[[Operators, Report], T],
    show: Callable[[T], None] | None = None,
    json: bool = False,
    pace: Speed | None = None,
) -> T:
    """Do what run_operation does, for an operation that needs no store."""
    if server:
        from shardgit.operators import Operators

        with Operators(server) as client, progress_bar(quiet=json) as report:
            done = remote(client, report)
    else:
        from shardgit.operate.operation import Control, Throttle

        with progress_bar(quiet=json) as report:
            rate = pace.rate_bytes_s if pace is not None else None
            control = Control(report=report, throttle=Throttle(rate))
            with _stopping(control):
                done = local(control)
    if json:
        print_json(done)
    elif show is not None:
        show(done)
    return done


def on_store(
    server: str | None,
    data: Path | None,
    *,
    local: Callable[[Store], T],
    remote: Callable[[Operators], T],
) -> T:
    """Do something short for operators on the store's folder, or through a server."""
    address = server_address(server, data)
    if address:
        from shardgit.operators import Operators

        with Operators(address) as client:
            return remote(client)
    with opened(data) as store:
        return local(store)


@contextmanager
def control_of(store: Store, pace: Speed, report: Report) -> Iterator[Control]:
    """Return what controls an operation on a store that is open: its pace, ctrl-C, a low priority."""
    from shardgit.operate.operation import Control, Throttle, step_back, store_probe

    probe = None if pace.ignore_load else store_probe(store)
    control = Control(report=report, throttle=Throttle(pace.rate_bytes_s, probe=probe))
    step_back(store)
    with _stopping(control):
        yield control


@contextmanager
def _stopping(control: Control) -> Iterator[None]:
    """Let ctrl-C stop an operation in order; a second one does not wait for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_: int, __: object) -> None:
        control.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
