"""shardgit shard verify and shard repair."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardgit.cli.context import (
    FAILED,
    DataOption,
    JsonOption,
    ServerOption,
    data_folder,
    failing,
    server_address,
)
from shardgit.cli.operations import EagerOption, ThrottleOption, run_here, run_operation, speed
from shardgit.cli.output import human_bytes
from shardgit.cli.shards import app
from shardgit.errors import DataLoss, ShardgitError

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.operate.repair import Repair
    from shardgit.operate.verifying import Verification

SHOWN = 50


@app.command()
def verify(
    shard: Annotated[
        int | None, typer.Option("--shard", metavar="ID", min=0, help="One shard only.")
    ] = None,
    objects: Annotated[
        bool, typer.Option("--objects", help="Also make every Git object and compare its id.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the last one was stopped.")
    ] = False,
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Check every byte of the store, also while it serves; exit code 1 when anything is damaged.

    Walks the pages of all databases, checks each row of the journal, hashes each copy of each block, and looks
    whether all that is named is there, at every shard that must have it. Works on a store that does not open any more.

    \b
    Examples:
      shardgit shard verify
      shardgit shard verify --objects --throttle 50MiB/s
      shardgit shard verify --resume --json
    """
    with failing(json=json):
        from shardgit.operate.verifying import verify as verify_open

        pace = speed(throttle, eager=eager)

        def here() -> Verification:
            return run_operation(
                server,
                data,
                local=lambda store, control: verify_open(
                    store, control=control, shard=shard, objects=objects, resume=resume
                ),
                remote=lambda client, report: client.verify_shards(
                    shard=shard,
                    objects=objects,
                    resume=resume,
                    pace=pace.message(),
                    report=report,
                ),
                show=_show_verified,
                json=json,
                pace=pace,
            )

        folder = None if server_address(server, data) else _unopenable(data)
        done = here() if folder is None else _closed(folder, shard, objects=objects, json=json)
        if not done.clean:
            raise typer.Exit(FAILED)


def _unopenable(data: Path | None) -> Path | None:
    """Return the folder of a store that is too damaged to be opened, or whose journal may kill who reads it."""
    from shardgit.node import open_store
    from shardgit.operate.store_files import StoreFiles

    folder = data_folder(data)
    try:
        with StoreFiles(folder) as files:
            if files.journal.walk().faults:
                return folder
        with open_store(folder):
            return None
    except DataLoss:
        return folder


def _closed(folder: Path, shard: int | None, *, objects: bool, json: bool) -> Verification:
    from shardgit.operate.verifying import verify_store

    done: Verification = run_here(
        None,
        local=lambda control: verify_store(folder, control=control, shard=shard, objects=objects),
        remote=_never,
        show=_show_verified,
        json=json,
    )
    return done


def _never(*_: object) -> Any:
    raise ShardgitError("a server's store opens")


@app.command()
def repair(
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="BACKUP",
            help="Backup (folder or URL), another store's folder, or a folder of blocks.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Mend what shard verify finds, also while the store serves; exit code 1 when something is left.

    Damaged and missing copies are put again from other copies, or from --from. Index and graph of a pool are made anew
    from its segments. What cannot be mended is listed with the objects and refs that it takes along.

    \b
    Examples:
      shardgit shard repair --dry-run
      shardgit shard repair --from /backup/git
    """
    with failing(json=json):
        from shardgit.operate.block_sources import opened_source
        from shardgit.operate.repair import repair_store

        pace = speed(throttle, eager=eager)
        with ExitStack() as stack:
            address = server_address(server, data)
            sources = (
                [stack.enter_context(opened_source(source))]
                if source is not None and address is None
                else []
            )
            if address is None:
                _remake(data, dry_run=dry_run, quiet=json)
            done = run_operation(
                server,
                data,
                local=lambda store, control: repair_store(
                    store, control=control, sources=sources, dry_run=dry_run
                ),
                remote=lambda client, report: client.repair_shards(
                    source=source or "", dry_run=dry_run, pace=pace.message(), report=report
                ),
                show=_show_repaired,
                json=json,
                pace=pace,
            )
        if not done.whole:
            raise typer.Exit(FAILED)


def _remake(data: Path | None, *, dry_run: bool, quiet: bool) -> None:
    """Make shards anew whose own pages are damaged; a store that has one may not even open."""
    from shardgit.operate.repair import remake_shards

    folder = data_folder(data)
    made = run_here(
        None,
        local=lambda control: remake_shards(folder, control=control, dry_run=dry_run),
        remote=_never,
    )
    for one in made if not quiet else ():
        text = "would be made anew" if dry_run else f"made anew with {one.blocks:,} blocks"
        if one.salvaged:
            text += f" and {one.salvaged:,} that its trees had lost"
        if one.kept:
            text += f"; the damaged file is kept: {one.kept}"
        typer.echo(f"shard {one.shard}: {text}")
    if made and dry_run:
        typer.echo("what blocks are missing is known once that is done")
        raise typer.Exit(FAILED)


def _show_verified(done: Verification) -> None:
    for one in done.findings[:SHOWN]:
        typer.echo(one.line, err=True)
    more = sum(done.counts.values()) - min(len(done.findings), SHOWN)
    if more:
        typer.echo(f"and {more:,} more; --json tells up to 1,000", err=True)
    for command in sorted({one.mend for one in done.findings}):
        typer.echo(f"run: {command}", err=True)
    read = f"{done.blocks:,} copies of blocks ({human_bytes(done.read_bytes)}), {done.rows:,} rows"
    if done.objects:
        read += f", {done.objects:,} objects"
    said = ", ".join(f"{n:,} {kind}" for kind, n in sorted(done.counts.items())) or "all whole"
    typer.echo(f"{read}: {said} ({done.seconds:.1f} s)")


def _show_repaired(done: Repair) -> None:
    for action in done.actions[:SHOWN]:
        where = f" at shard {action.shard}" if action.shard is not None else ""
        what = f"block {action.block}" if action.block else f"pool {action.pool}"
        typer.echo(f"{what}{where}: {action.what}")
    if done.action_count > SHOWN:
        typer.echo(f"and {done.action_count - SHOWN:,} more")
    for one in done.left[:SHOWN]:
        typer.echo(one.line, err=True)
    for damage in done.damage[:SHOWN]:
        typer.echo(
            f"lost: block {damage.block}, {damage.what}: {damage.object_count:,} objects"
            f" of {', '.join(damage.repositories) or 'no repository'}",
            err=True,
        )
        for ref in damage.refs[:SHOWN]:
            typer.echo(f"  reached by {ref}", err=True)
    verb = "would be mended" if done.dry_run else "mended"
    left = sum(done.left_counts.values())
    typer.echo(f"{done.action_count:,} {verb}, {left:,} left ({done.seconds:.1f} s)")
