"""shardgit bench: how fast a server is, by prepared requests and readers that throw the answers away."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.context import (
    DataOption,
    JsonOption,
    ServerOption,
    UsageRefused,
    data_folder,
    failing,
    server_address,
)
from shardgit.cli.output import human_bytes, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.cli.bench_load import Measured
    from shardgit.cli.bench_machine import Limits
    from shardgit.cli.bench_target import Target

SUITES = ("clone", "fetch", "push", "objects", "refs")
COLUMNS = ["suite", "clients", "p50 ms", "p95 ms", "p99 ms", "per s", "bytes/s", "CPU ms each"]


def bench(  # noqa: PLR0913, PLR0917
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="|".join(SUITES) + "; all without.")
    ] = None,
    repo: Annotated[
        str | None,
        typer.Option(
            "--repo",
            metavar="NAME|PATH",
            help="Repository of the store; or a path, measured in a store of its own.",
        ),
    ] = None,
    data: DataOption = None,
    server: ServerOption = None,
    http: Annotated[
        str | None,
        typer.Option(
            "--http", metavar="URL", help="HTTP of --server; default its host, port 7421."
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600, help="How long each suite asks; the last ask ends.")
    ] = 5.0,
    clients: Annotated[int, typer.Option(min=1, max=256, help="Clients at once.")] = 4,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Workers of a server of its own.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure a server: one that runs (--server), or one of its own over --data DIR or a --repo PATH.

    Pushes go into repositories that it makes and deletes. Objects count one by one; their times are those of a
    call for 2,000. CPU is known of a server of its own.

    \b
    Examples:
      shardgit bench --repo ~/src/project
      shardgit bench clone --server 127.0.0.1:7420 --repo demo --clients 16
    """
    with failing(json=json):
        if suite is not None and suite not in SUITES:
            raise UsageRefused("there is no such suite", suite=suite, known="|".join(SUITES))
        wanted = SUITES if suite is None else (suite,)
        with reached(repo, data, server, http, workers) as target:
            found = measure(target, wanted, seconds, clients)
        from shardgit.cli.bench_machine import limits

        machine = limits()
        if json:
            rows = [as_json(one) for one in found]
            print_json({"repository": target.repository, "suites": rows, "machine": machine})
        else:
            show(found, machine, own=bool(target.pid))


@contextmanager
def reached(
    repo: str | None,
    data: Path | None,
    server: str | None,
    http: str | None,
    workers: int | None,
) -> Iterator[Target]:
    """Return what to measure, with a repository that is there."""
    from shardgit.cli import bench_target

    path = Path(repo).expanduser() if repo is not None else None
    is_path = path is not None and (path.is_absolute() or repo[:1] == "." or path.is_dir())  # type: ignore[index]
    address = None if is_path and not (server or data) else server_address(server, data)
    if http is not None and address is None:
        raise UsageRefused("--http goes with --server")
    if workers is not None and address is not None:
        raise UsageRefused("--workers is of a server of its own; this one runs")
    if is_path and (server or data):
        raise UsageRefused("give the name of a repository of the store, or a path alone", repo=repo)
    if is_path and path is not None:
        with bench_target.temporary(path, workers) as target:
            yield target
        return
    place = (
        nullcontext(bench_target.given(address, http, repo or ""))
        if address is not None
        else bench_target.served(data_folder(data), repo or "", workers)
    )
    with place as target:
        yield named(target)


def named(target: Target) -> Target:
    """Return a target with the repository that is meant: the only one, where none was named."""
    from dataclasses import replace

    from shardgit.calling import from_environment
    from shardgit.client import connect

    with connect(target.grpc, calling=from_environment()) as client:
        if target.repository:
            client.repository(target.repository)
            return target
        names = [one.name for one, _ in zip(client.repositories(), range(2), strict=False)]
    if len(names) != 1:
        what = "has several repositories" if names else "has no repository"
        raise UsageRefused(f"the store {what}; name one with --repo")
    return replace(target, repository=names[0])


def measure(
    target: Target, suites: tuple[str, ...], seconds: float, clients: int
) -> list[Measured]:
    """Run suites one after another."""
    from shardgit.calling import from_environment
    from shardgit.cli.bench_load import SUITES as JOBS
    from shardgit.client import connect

    with connect(target.grpc, calling=from_environment()) as client:
        return [JOBS[suite](target, client, seconds, clients) for suite in suites]


def as_json(one: Measured) -> dict[str, object]:
    """Return what a suite found, its times as quantiles."""
    p50, p95, p99 = one.quantiles_s()
    facts = asdict(one)
    facts.pop("times_s")
    return {
        **facts,
        "operations": len(one.times_s),
        "p50_s": p50,
        "p95_s": p95,
        "p99_s": p99,
        "items_per_s": one.items / one.wall_s,
        "bytes_per_s": one.bytes / one.wall_s,
    }


def show(found: list[Measured], machine: Limits, *, own: bool) -> None:
    """Print a table, and what the machine can do."""
    rows: list[list[object]] = []
    for one in found:
        times = [f"{seconds * 1e3:.2f}" for seconds in one.quantiles_s()]
        cpu = "N/A" if one.cpu_s is None else f"{one.cpu_s / one.items * 1e3:.3f}"
        per_s, size = one.items / one.wall_s, human_bytes(one.bytes / one.wall_s)
        rows.append([one.suite, str(one.clients), *times, f"{per_s:,.0f}", size, cpu])
    print_table(COLUMNS, rows)
    if not own:
        typer.echo("CPU is known of servers that bench starts itself (--data, or --repo PATH).")
    typer.echo(
        f"\nthis machine: {machine.cores} cores; SHA-1 {human_bytes(machine.sha1_bytes)}/s,"
        f" copy {human_bytes(machine.copy_bytes)}/s, loopback {human_bytes(machine.loopback_bytes)}/s,"
        f" {machine.fsyncs:,.0f} fsyncs/s (temporary folder)"
    )
