"""shardgit backup: take, list, verify, restore and prune backups."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.context import (
    FAILED,
    DataOption,
    JsonOption,
    ServerOption,
    UsageRefused,
    failing,
    server_address,
)
from shardgit.cli.operations import EagerOption, ThrottleOption, run_here, run_operation, speed
from shardgit.cli.output import human_bytes, print_json, print_table
from shardgit.cli.when import parse_when

if TYPE_CHECKING:
    from shardgit.backup.create import BackupMade
    from shardgit.backup.cut import CutFacts
    from shardgit.backup.prune import BackupsPruned
    from shardgit.backup.repository import RepositoryRestored
    from shardgit.backup.restore import StoreRestored
    from shardgit.backup.verify import BackupsVerified
    from shardgit.cli.operations import Speed
    from shardgit.operate.operation import Control

app = typer.Typer(
    help="""Take backups of a store while it serves, and get any moment back.

TARGET is a folder or a URL: s3://BUCKET/PREFIX, gs://, az://, file://. Credentials come from the
environment (AWS_*, GOOGLE_*, AZURE_*), as for the clouds' own tools.""",
    no_args_is_help=True,
)
TargetArgument = Annotated[str, typer.Argument(metavar="TARGET", help="Folder or URL.")]
BackupOption = Annotated[
    str | None, typer.Option("--backup", metavar="ID", help="The backup of that id.")
]
PROBLEMS_SHOWN = 20
_AGE = re.compile(r"(\d{1,6})\s*(h|hour|d|day|w|week|y|year)s?")
_HOURS = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}


@app.command()
def create(
    target: TargetArgument,
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Take a backup of the whole store, also while it serves.

    All that was acknowledged before the call is in it. Only what the target lacks is sent; a backup that was killed
    goes on where it was. With --server, TARGET is seen from the server's machine.

    \b
    Examples:
      shardgit backup create /backup/git
      shardgit backup create s3://bucket/git --throttle 50MiB/s
    """
    with failing(json=json):
        from shardgit.backup.create import create_backup

        pace = speed(throttle, eager=eager)
        run_operation(
            server,
            data,
            local=lambda store, control: create_backup(store, target, control=control),
            remote=lambda client, report: client.create_backup(
                target, pace=pace.message(), report=report
            ),
            show=_show_made,
            json=json,
            pace=pace,
        )


def _show_made(made: BackupMade) -> None:
    typer.echo(
        f"backup {made.backup}: {made.repositories:,} repositories, {made.blocks:,} blocks of"
        f" {human_bytes(made.block_bytes)}; sent {human_bytes(made.sent_bytes)}"
        f" in {made.seconds:.1f} s"
    )


@app.command("list")
def list_(target: TargetArgument, server: ServerOption = None, json: JsonOption = False) -> None:
    """List the backups of a target, oldest first."""
    with failing(json=json):
        from shardgit.backup.target import Target

        def look() -> list[CutFacts]:
            opened = Target.open(target)
            return [opened.facts(name) for name in opened.cut_ids()]

        found = run_here(
            server_address(server, None),
            local=lambda _: look(),
            remote=lambda client, _: client.list_backups(target),
        )
        if json:
            print_json({"backups": found})
            return
        print_table(
            ["ID", "TAKEN", "STORE", "REPOSITORIES", "SIZE", "SENT"],
            [
                [
                    one.id,
                    _moment(one.taken_ms),
                    one.store[:8],
                    one.repositories,
                    human_bytes(one.block_bytes + one.row_bytes),
                    human_bytes(one.sent_bytes),
                ]
                for one in found
            ],
        )


@app.command()
def verify(
    target: TargetArgument,
    backup: BackupOption = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read and hash every byte.")] = False,
    drop_damaged: Annotated[
        bool,
        typer.Option(
            "--drop-damaged",
            help="Take damaged blobs out, so that the next backup sends them again; with --deep.",
        ),
    ] = False,
    throttle: ThrottleOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Verify one backup, or all: everything that it names is there; with --deep, every byte is right.

    Exit code 1 when something is wrong.
    """
    with failing(json=json):
        from shardgit.backup.target import Target
        from shardgit.backup.verify import verify_backups

        if drop_damaged and not deep:
            raise UsageRefused("--drop-damaged goes with --deep")
        pace = speed(throttle)
        found = run_here(
            server_address(server, None),
            local=lambda control: verify_backups(
                Target.open(target),
                backup=backup,
                deep=deep,
                drop_damaged=drop_damaged,
                control=control,
            ),
            remote=lambda client, report: client.verify_backups(
                target,
                backup=backup,
                deep=deep,
                drop_damaged=drop_damaged,
                pace=pace.message(),
                report=report,
            ),
            show=_show_verified,
            json=json,
            pace=pace,
        )
        if found.problem_count:
            raise typer.Exit(FAILED)


def _show_verified(found: BackupsVerified) -> None:
    read = f", {human_bytes(found.bytes)} hashed" if found.deep else ""
    what = "damaged" if found.problem_count else "whole"
    typer.echo(
        f"{found.backups:,} backups are {what}: {found.blobs:,} blobs in {found.packs:,} packs{read}"
    )
    for one in found.problems[:PROBLEMS_SHOWN]:
        where = f" (backup {one.backup})" if one.backup else ""
        typer.echo(f"  {one.what}: {one.subject}{where}")
    if found.problem_count > PROBLEMS_SHOWN:
        typer.echo(f"  and {found.problem_count - PROBLEMS_SHOWN:,} more; --json shows 1,000")
    if found.dropped:
        typer.echo(f"took out {found.dropped:,} blobs; a new backup sends what the store still has")


@app.command()
def prune(
    target: TargetArgument,
    keep: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Keep the newest N of each store.")
    ] = None,
    older: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only older ones go: 36h, 30d, 8w, 1y.")
    ] = None,
    waste: Annotated[
        float,
        typer.Option(metavar="PART", min=0, max=1, help="Of a pack that may lie idle."),
    ] = 0.2,
    throttle: ThrottleOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Let old backups go, and what only they need. The newest of a store always stays.

    \b
    Examples:
      shardgit backup prune /backup/git --keep 14
      shardgit backup prune s3://bucket/git --older 90d --keep 7
    """
    with failing(json=json):
        from shardgit.backup.prune import prune_backups
        from shardgit.backup.target import Target

        if keep is None and older is None:
            raise UsageRefused("give --keep N, --older AGE, or both")
        older_ms = _age_ms(older) if older is not None else None
        pace = speed(throttle)
        run_here(
            server_address(server, None),
            local=lambda control: prune_backups(
                Target.open(target), keep=keep, older_ms=older_ms, waste=waste, control=control
            ),
            remote=lambda client, report: client.prune_backups(
                target,
                keep=keep,
                older_ms=older_ms,
                waste=waste,
                pace=pace.message(),
                report=report,
            ),
            show=_show_pruned,
            json=json,
            pace=pace,
        )


def _show_pruned(done: BackupsPruned) -> None:
    typer.echo(
        f"pruned {len(done.pruned):,} backups, kept {len(done.kept):,};"
        f" {human_bytes(done.freed_bytes)} became free"
    )


@app.command()
def restore(  # noqa: PLR0913, PLR0917
    target: TargetArgument,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Folder of the new store; with --repository, of the store that it comes into.",
        ),
    ] = None,
    repository: Annotated[
        str | None, typer.Option("--repository", metavar="NAME", help="Only that repository.")
    ] = None,
    as_: Annotated[
        str | None, typer.Option("--as", metavar="NEW", help="Its name from now on.")
    ] = None,
    backup: BackupOption = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Refs as of then: 2024-12-31 18:00, 10.minutes.ago."),
    ] = None,
    shards: Annotated[
        int | None, typer.Option(min=1, max=100, help="Shards of the new store; 1.")
    ] = None,
    shard_path: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Folder of a shard, once for each; sets their number."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="Into the empty cluster that a node's file names."
        ),
    ] = None,
    prepare: Annotated[
        bool,
        typer.Option(
            "--prepare", help="With --config: bring blocks only; a restore later brings the rest."
        ),
    ] = False,
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Restore the whole store into a new folder, or one repository into a store that lives.

    Without --backup and --at the newest backup. A store's restore that was killed goes on with the same call. A
    repository is taken from the store itself as long as that still has it, else from the backup.

    \b
    Examples:
      shardgit backup restore /backup/git --data /srv/new --shards 4
      shardgit backup restore s3://bucket/git --data /srv/new --at "2024-12-31 18:00"
      shardgit backup restore /backup/git --config node-1.toml
      shardgit backup restore /backup/git --repository app --at 10.minutes.ago
      shardgit backup restore /backup/git --repository app --as app-then --at yesterday
    """
    with failing(json=json):
        at_ms = moment_ms(at)
        pace = speed(throttle, eager=eager)
        if repository is None:
            if as_ is not None or server is not None:
                raise UsageRefused("--as and --server go with --repository")
            if config is not None:
                if data is not None or shards is not None or shard_path:
                    raise UsageRefused("a cluster has no --data and no shards")
                _restore_cluster(
                    target, config, backup, at_ms, prepare=prepare, pace=pace, json=json
                )
                return
            if prepare:
                raise UsageRefused("--prepare goes with --config")
            _restore_store(
                target, data, backup, at_ms, shards=shards, paths=shard_path, pace=pace, json=json
            )
            return
        if shards is not None or shard_path or config is not None or prepare:
            raise UsageRefused(
                "--shards, --shard-path, --config and --prepare go with a whole store"
            )
        from shardgit.backup.repository import restore_repository
        from shardgit.backup.target import Target

        run_operation(
            server,
            data,
            local=lambda store, control: restore_repository(
                store,
                Target.open(target),
                repository,
                new_name=as_,
                backup=backup,
                at_ms=at_ms,
                control=control,
            ),
            remote=lambda client, report: client.restore_repository(
                target,
                repository,
                new_name=as_,
                backup=backup,
                at_ms=at_ms,
                pace=pace.message(),
                report=report,
            ),
            show=_show_repository,
            json=json,
            pace=pace,
        )


def _restore_store(
    target: str,
    data: Path | None,
    backup: str | None,
    at_ms: int | None,
    *,
    shards: int | None,
    paths: list[Path] | None,
    pace: Speed,
    json: bool,
) -> None:
    from shardgit.backup.target import Target
    from shardgit.node import restore_store

    if data is None:
        raise UsageRefused("give --data DIR, a folder that does not exist or is empty")
    if paths and shards not in (None, len(paths)):
        raise UsageRefused("--shards and --shard-path disagree", shards=shards)

    def job(control: Control) -> StoreRestored:
        return restore_store(
            Target.open(target),
            data,
            shards=shards or 1,
            shard_paths=paths or None,
            backup=backup,
            at_ms=at_ms,
            control=control,
        )

    run_here(None, local=job, remote=_nowhere, show=_show_restored, json=json, pace=pace)


def _restore_cluster(
    target: str,
    file: Path,
    backup: str | None,
    at_ms: int | None,
    *,
    prepare: bool,
    pace: Speed,
    json: bool,
) -> None:
    from shardgit import telemetry
    from shardgit.backup.target import Target
    from shardgit.cluster_node import restore_node
    from shardgit.config import load_config
    from shardgit.errors import InvalidArgument

    try:
        config = load_config(file)
    except InvalidArgument as error:
        raise UsageRefused(error.message, **error.facts) from error
    if not config.in_cluster:
        raise UsageRefused("configuration names no cluster: etcd in [cluster] is missing")
    telemetry.configure(level="error")

    def job(control: Control) -> StoreRestored:
        return restore_node(
            Target.open(target),
            config,
            backup=backup,
            at_ms=at_ms,
            prepare=prepare,
            control=control,
        )

    run_here(None, local=job, remote=_nowhere, show=_show_restored, json=json, pace=pace)


def _nowhere(*_: object) -> StoreRestored:
    raise AssertionError("a store is restored by the command itself")


def _show_repository(done: RepositoryRestored) -> None:
    where = f"backup {done.backup}" if done.backup else "the store itself"
    when = f" as of {_moment(done.at_ms)}" if done.at_ms else ""
    typer.echo(
        f"restored {done.repository}{when} from {where}: {done.refs:,} refs,"
        f" {human_bytes(done.bytes)} in {done.seconds:.1f} s"
    )


def _show_restored(done: StoreRestored) -> None:
    rate = done.bytes / done.seconds if done.seconds else 0
    typer.echo(
        f"restored {done.repositories:,} repositories, {done.blocks:,} blocks into {done.path}"
        f" as of {_moment(done.at_ms)}: {human_bytes(done.bytes)} in {done.seconds:.1f} s,"
        f" {human_bytes(rate)}/s"
    )


def moment_ms(text: str | None) -> int | None:
    """Return the moment of --at; UsageRefused for what is none."""
    if text is None:
        return None
    when = parse_when(text, datetime.now().astimezone())
    if when.time_ms is None:
        raise UsageRefused("--at takes a time, such as 2024-12-31 18:00 or 2.hours.ago")
    return when.time_ms


def _age_ms(text: str) -> int:
    found = _AGE.fullmatch(text.strip().lower())
    if found is None:
        raise UsageRefused("not an age; write it as 36h, 30d, 8w or 1y", older=text[:50])
    return int(found[1]) * _HOURS[found[2][0]] * 3_600_000


def _moment(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}Z"
