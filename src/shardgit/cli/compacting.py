"""shardgit repo compact: a pool written anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.completing import repository_names
from shardgit.cli.context import DataOption, JsonOption, ServerOption, failing
from shardgit.cli.operations import EagerOption, ThrottleOption, run_operation, speed
from shardgit.cli.output import human_bytes

if TYPE_CHECKING:
    from shardgit.operate.compact import Compacted


def compact(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Repository name, such as team/project.",
            autocompletion=repository_names,
        ),
    ],
    full: Annotated[
        bool, typer.Option("--full", help="Write everything anew, and not only what has grown.")
    ] = False,
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Store a repository anew, as small and as quick to clone as if it were packed today.

    Its forks share its objects and are compacted with it. Pushes and clones go on meanwhile; a compaction that was
    stopped or killed is begun again. What it replaces is freed by the next gc.

    \b
    Examples:
      shardgit repo compact team/project
      shardgit repo compact team/project --full --throttle 20MiB/s
    """
    with failing(json=json):
        from shardgit.operate.compact import compact_repository

        pace = speed(throttle, eager=eager)
        run_operation(
            server,
            data,
            local=lambda store, control: compact_repository(
                store, name, control=control, full=full
            ),
            remote=lambda client, report: client.compact_repository(
                name, full=full, pace=pace.message(), report=report
            ),
            show=lambda done: _show(name, done),
            json=json,
            pace=pace,
        )


def _show(name: str, done: Compacted) -> None:
    if not done.objects:
        typer.echo(f"{name}: nothing has grown enough to be written anew (--full does it anyway)")
        return
    sizes = f"{human_bytes(done.bytes_before)} became {human_bytes(done.bytes_after)}"
    runs = f"{done.runs_before} runs became {done.runs_after}"
    typer.echo(f"{name}: {done.objects:,} objects written anew: {sizes}, {runs}")
