"""shardgit shard: what the shards hold, and what a change of the ring would move."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli import moves
from shardgit.cli.completing import shard_numbers
from shardgit.cli.context import (
    DataOption,
    JsonOption,
    ServerOption,
    UsageRefused,
    failing,
    reached,
)
from shardgit.cli.operations import EagerOption, ThrottleOption, run_operation, speed
from shardgit.cli.output import human_bytes, load_bar, print_json, print_table
from shardgit.cli.store import shard_read_only

if TYPE_CHECKING:
    from shardgit.operate.planning import RingPlan

app = typer.Typer(help="Look at the shards, and move data between them.", no_args_is_help=True)
app.command("add")(moves.add)
app.command("drain")(moves.drain)
app.command("weight")(moves.weight)
app.command("remove")(moves.remove)
app.command("rebalance")(moves.rebalance)
app.command("receipt")(moves.receipt)
app.command("compact")(moves.compact)
app.command("read-only")(shard_read_only)


@app.command("list")
def list_(data: DataOption = None, server: ServerOption = None, json: JsonOption = False) -> None:
    """List the shards: where they are and what part of the ring they keep."""
    with failing(json=json), reached(server, data) as store:
        found = store.shards()
        if json:
            print_json({"shards": [asdict(one) for one in found]})
            return
        print_table(
            ["ID", "STATE", "ZONE", "WEIGHT", "PARTITIONS", "PATH"],
            [[one.id, one.state, one.zone, one.weight, one.partitions, one.path] for one in found],
        )


@app.command()
def stats(data: DataOption = None, server: ServerOption = None, json: JsonOption = False) -> None:
    """Show blocks and bytes of each shard, and how evenly they are loaded."""
    with failing(json=json), reached(server, data) as store:
        found = store.shards()
        total = sum(one.bytes for one in found)
        shares = [one.bytes / total if total else 0.0 for one in found]
        if json:
            rows = [
                {**asdict(one), "share": share} for one, share in zip(found, shares, strict=True)
            ]
            blocks = sum(one.blocks for one in found)
            print_json({"shards": rows, "bytes": total, "blocks": blocks})
            return
        print_table(
            ["ID", "BLOCKS", "LIVE", "FILE", "SHARE"],
            [
                [
                    one.id,
                    one.blocks,
                    human_bytes(one.bytes),
                    human_bytes(one.file_bytes),
                    f"{share:.1%}",
                ]
                for one, share in zip(found, shares, strict=True)
            ],
        )


@app.command()
def plan(  # noqa: PLR0913, PLR0917
    add: Annotated[
        list[float] | None,
        typer.Option("--add", metavar="WEIGHT", help="As if a shard of that weight had joined."),
    ] = None,
    drain: Annotated[
        list[int] | None,
        typer.Option(
            "--drain", metavar="ID", help="As if it had been drained.", autocompletion=shard_numbers
        ),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option("--weight", metavar="ID=WEIGHT", help="As if it had that weight."),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw the ring and the moves.")
    ] = None,
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Show what a rebalance would move: with the weights as they are, or as they might be.

    Changes nothing. The measure is the bytes that are stored in each partition now.

    \b
    Examples:
      shardgit shard plan
      shardgit shard plan --add 1 --svg plan.svg
      shardgit shard plan --drain 2 --weight 0=1.5 --json
    """
    with failing(json=json):
        from shardgit.operate.planning import RingChange, plan_ring

        changed = RingChange(tuple(add or ()), _weights(drain or [], weight or []))
        pace = speed(throttle, eager=eager)
        found = run_operation(
            server,
            data,
            local=lambda store, control: plan_ring(store, changed, control=control).summary(),
            remote=lambda client, report: client.plan(changed, pace=pace.message(), report=report),
            show=print_plan,
            json=json,
            pace=pace,
        )
        if svg is not None:
            from shardgit.cli.ring_svg import draw_plan

            svg.write_text(draw_plan(found), encoding="utf-8")


def _weights(drain: list[int], weight: list[str]) -> dict[int, float]:
    found = dict.fromkeys(drain, 0.0)
    for text in weight:
        shard, _, value = text.partition("=")
        try:
            number, amount = int(shard), float(value)
        except ValueError:
            raise UsageRefused("not a weight; write ID=WEIGHT", weight=text[:50]) from None
        if number in found:
            raise UsageRefused("a shard is changed twice", shard=number)
        found[number] = amount
    return found


def print_plan(plan: RingPlan) -> None:
    """Print a plan: the shards before and after, and what goes where."""
    most = max((max(one.bytes_before, one.bytes_after) for one in plan.shards), default=0)
    print_table(
        ["ID", "WEIGHT", "PARTITIONS", "BEFORE", "AFTER", "SHARE", "WANTED", ""],
        [
            [
                one.id,
                f"{one.weight:g}",
                f"{one.partitions_before} -> {one.partitions_after}",
                human_bytes(one.bytes_before),
                human_bytes(one.bytes_after),
                f"{one.share_after:.1%}",
                f"{one.share_wanted:.1%}",
                load_bar(one.bytes_before, one.bytes_after, most),
            ]
            for one in plan.shards
        ],
    )
    for flow in plan.flows:
        typer.echo(
            f"{flow.source} -> {flow.target}: {human_bytes(flow.bytes)}, {flow.partitions} partitions"
        )
    typer.echo(
        f"{human_bytes(plan.moved_bytes)} of {human_bytes(plan.bytes)} would move"
        f" ({plan.moved_share:.1%}), {plan.moved_partitions} partitions"
    )
