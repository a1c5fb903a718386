"""shardgit shard gc: drop what nothing needs any more."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.context import (
    FAILED,
    DataOption,
    JsonOption,
    ServerOption,
    UsageRefused,
    failing,
)
from shardgit.cli.operations import EagerOption, ThrottleOption, run_operation, speed
from shardgit.cli.output import human_bytes

if TYPE_CHECKING:
    from shardgit.operate.gc import GcResult

_DURATION = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*(s|m|h|d|w)?")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


def seconds(text: str | None, option: str) -> float | None:
    """Return a duration such as 14d, 2w, 90m or 0 in seconds; UsageRefused for what is none."""
    if text is None:
        return None
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None:
        raise UsageRefused("not a duration; write it as 14d, 36h, 90m or 0", option=option)
    return float(found[1]) * _SECONDS[found[2] or "s"]


def gc(  # noqa: PLR0913, PLR0917
    grace: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Keep what became unreachable since; default 14d."),
    ] = None,
    log_retention: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Keep ref logs of so long; default 90d, at least grace."),
    ] = None,
    orphan_age: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Keep blocks that nothing names yet; default 2h."),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Wait so long for requests that read what goes."),
    ] = None,
    garbage: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Rewrite runs of which so much is garbage; default 0.1."
        ),
    ] = None,
    repo: Annotated[
        str | None,
        typer.Option("--repo", metavar="NAME", help="Of its fork network only."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would go; change nothing.")
    ] = False,
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Drop what nothing needs any more, while the store serves.

    Objects that no ref has reached for the grace period, repositories that were deleted before it, old ref logs and
    uploads, and blocks that nothing names. Nothing that a push, a fetch or a backup may need is touched. Times are
    written as 14d, 36h, 90m, 30s or 0. Stopped or killed, it has done a part, and is simply run again.

    \b
    Examples:
      shardgit shard gc --dry-run
      shardgit shard gc --throttle 50MiB/s
      shardgit shard gc --grace 1d --repo big/project
    """
    with failing(json=json):
        from shardgit.operate.gc import GARBAGE_MIN, GcOptions
        from shardgit.operate.gc import gc as collect

        if garbage is not None and not 0 <= garbage <= 1:
            raise UsageRefused("not a share; write it as 0.1", option="--garbage")
        options = GcOptions(
            grace_s=seconds(grace, "--grace"),
            log_retention_s=seconds(log_retention, "--log-retention"),
            orphan_age_s=seconds(orphan_age, "--orphan-age"),
            wait_s=seconds(wait, "--wait"),
            garbage_min=GARBAGE_MIN if garbage is None else garbage,
            repository=repo,
            dry_run=dry_run,
        )
        pace = speed(throttle, eager=eager)
        done = run_operation(
            server,
            data,
            local=lambda store, control: collect(store, options, control=control),
            remote=lambda client, report: client.collect_garbage(
                options, pace=pace.message(), report=report
            ),
            show=print_collected,
            json=json,
            pace=pace,
        )
        if done.damaged:
            raise typer.Exit(FAILED)


def print_collected(done: GcResult) -> None:
    """Print what a gc did, and what it left and why."""
    would = "would drop" if done.dry_run else "dropped"
    typer.echo(
        f"{would} {done.dropped_objects:,} of {done.garbage_objects:,} unreachable objects"
        f" ({human_bytes(done.dropped_bytes)} of {human_bytes(done.garbage_bytes)})"
        f" in {done.pools:,} pools"
    )
    rows = {
        "deleted repositories": done.repositories_dropped,
        "pools": done.pools_dropped,
        "log rows": done.log_rows_dropped,
        "uploads": done.uploads_dropped,
        "LFS objects": done.lfs_objects_dropped,
    }
    told = ", ".join(f"{count:,} {what}" for what, count in rows.items() if count)
    if told:
        typer.echo(f"{would} {told}")
    deleted = "would delete" if done.dry_run else "deleted"
    typer.echo(f"{deleted} {done.blocks_deleted:,} blocks, {human_bytes(done.bytes_freed)}")
    if done.blocks_waiting:
        typer.echo(
            f"left {done.blocks_waiting:,} blocks that wait for "
            f"{', '.join(done.waiting_for)}; run gc again later"
        )
    if done.blocks_young:
        typer.echo(f"left {done.blocks_young:,} blocks that were written of late")
    for pool, why in done.damaged.items():
        typer.echo(f"pool {pool} is damaged, nothing of it was touched: {why}", err=True)
