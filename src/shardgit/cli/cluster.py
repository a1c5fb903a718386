"""shardgit cluster: the nodes, who of them is there, and what part of the blocks each is given."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.context import DataOption, JsonOption, UsageRefused, data_folder, failing
from shardgit.cli.operations import EagerOption, ThrottleOption, control_of, speed
from shardgit.cli.output import (
    LOAD_COLUMNS,
    human_bytes,
    load_cells,
    most_loaded,
    plural,
    print_json,
    print_table,
    progress_bar,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.cluster_node import Node
    from shardgit.operate.nodes import NodesMoved

app = typer.Typer(help="Look at the nodes of a cluster, join it, leave it.", no_args_is_help=True)
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="The node's TOML file; else what --data was served with."
    ),
]


@contextmanager
def _node(config: Path | None, data: Path | None) -> Iterator[Node]:
    """Open a node, as one more process of it."""
    from shardgit import telemetry
    from shardgit.blocks.layout import NODE_FILE
    from shardgit.config import load_config
    from shardgit.errors import InvalidArgument, Refused
    from shardgit.opening import kept_config, open_member

    telemetry.configure(level="error")
    try:
        if config is not None:
            flags: dict[str, object] = {"data": str(data) if data else None}
            settled = load_config(config, flags=flags)
        else:
            folder = data_folder(data)
            if not (folder / NODE_FILE).exists():
                raise Refused("folder is no node's; give --config FILE", path=str(folder))
            settled = kept_config(folder)
    except InvalidArgument as error:
        raise UsageRefused(error.message, **error.facts) from error
    if not settled.in_cluster:
        raise Refused("configuration names no cluster: etcd in [cluster] is missing")
    with open_member(settled) as opened:
        assert opened.node is not None
        yield opened.node


@app.command()
def status(config: ConfigOption = None, data: DataOption = None, json: JsonOption = False) -> None:
    """Show the nodes: whether they are heard of, and what part of the ring they have.

    \b
    Examples:
      shardgit cluster status --data /var/lib/shardgit
      shardgit cluster status --config /etc/shardgit.toml --json
    """
    with failing(json=json), _node(config, data) as node:
        from shardgit.operate.nodes import members

        now = members(node.store)
        ring = now.ring.ring
        weights = {shard.number: shard.weight for shard in ring.shards}
        total = sum(member.partitions for member in now.members)
        # This command is a process of its node, too.
        rows = [
            {
                "id": one.number,
                "node": one.record.name,
                "state": _state(weights[one.number], one.partitions),
                "processes": one.processes - (one.number == node.number),
                "zone": one.record.zone,
                "weight": weights[one.number],
                "partitions": one.partitions,
                "share": one.partitions / total if total else 0.0,
                "address": one.record.address,
            }
            for one in now.members
        ]
        phase = ring.phase.name.lower()
        if json:
            print_json(
                {"epoch": ring.epoch, "phase": phase, "replicas": ring.replicas, "nodes": rows}
            )
            return
        print_table(
            ["ID", "NODE", "STATE", "UP", "ZONE", "WEIGHT", "SHARE", "ADDRESS"],
            [
                [
                    one["id"],
                    one["node"],
                    one["state"],
                    one["processes"] or "down",
                    one["zone"] or "-",
                    f"{one['weight']:g}",
                    f"{one['share']:.1%}",
                    one["address"],
                ]
                for one in rows
            ],
        )
        typer.echo(f"ring epoch {ring.epoch}, {phase}, {plural(ring.replicas, 'replica')}")
        if phase != "settled":
            typer.echo("partitions move; if nobody is at it, go on with: shardgit cluster join")


def _state(weight: float, partitions: int) -> str:
    if weight:
        return "owner" if partitions else "joined"
    return "draining" if partitions else "drained"


@app.command()
def join(
    node: Annotated[
        str | None, typer.Argument(metavar="[NODE]", help="Name of a node; this one by default.")
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(metavar="W", help="Its share, relative to the others'; 1 by default."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would move, and move nothing.")
    ] = False,
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    config: ConfigOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Give a node its part of the blocks: it is warmed by those that have them, then asked for them.

    A node that is served is a member already, without a part. Stopped or killed, the same command goes on.

    \b
    Examples:
      shardgit cluster join --config /etc/shardgit.toml
      shardgit cluster join node-3 --weight 2 --data /var/lib/shardgit
      shardgit cluster join node-3 --plan
    """
    with failing(json=json), _node(config, data) as opened, progress_bar(quiet=json) as report:
        from shardgit.errors import Refused
        from shardgit.operate import nodes

        store = opened.store
        now = nodes.members(store)
        number = nodes.number_of(now, node) if node else opened.number
        member = next(one for one in now.members if one.number == number)
        if member.processes - (number == opened.number) < 1 and not plan:
            raise Refused("node is not served; start it first", node=member.record.name)
        before = {shard.number: shard.weight for shard in now.ring.ring.shards}[number]
        weights = {number: weight if weight is not None else before or 1.0}
        with control_of(store, speed(throttle, eager=eager), report) as control:
            if plan:
                _print_plan(nodes.plan_nodes(store, weights, control=control), json=json)
            else:
                _print_moved(nodes.move_nodes(store, weights, control=control), json=json)


@app.command()
def leave(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Name of the node.")],
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    config: ConfigOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Take a node out of the ring and the cluster, dead or alive; run it on another node.

    Nothing is lost with a node: every block is in the object store. The others are warmed as far as it answers.

    \b
    Examples:
      shardgit cluster leave node-3 --data /var/lib/shardgit
    """
    with failing(json=json), _node(config, data) as opened, progress_bar(quiet=json) as report:
        from shardgit.errors import Refused
        from shardgit.operate import nodes

        store = opened.store
        if nodes.number_of(nodes.members(store), node) == opened.number:
            raise Refused(
                "run it on another node: as one of this node it would join again", node=node
            )
        with control_of(store, speed(throttle, eager=eager), report) as control:
            _print_moved(nodes.leave(store, node, control=control), json=json)
            if not json:
                typer.echo(f"{node} is no member any more")


def _print_plan(found: object, *, json: bool) -> None:
    from shardgit.cli.shards import print_plan
    from shardgit.operate.planning import PlannedRing

    assert isinstance(found, PlannedRing)
    if json:
        print_json(found.summary())
    else:
        print_plan(found.summary())


def _print_moved(done: NodesMoved, *, json: bool) -> None:
    if json:
        print_json(asdict(done))
        return
    most = most_loaded(done.nodes)
    rows = [[one.id, one.name, *load_cells(one, most)] for one in done.nodes]
    print_table(["ID", "NODE", *LOAD_COLUMNS], rows)
    typer.echo(
        f"{plural(done.partitions, 'partition')} with {plural(done.blocks, 'block')},"
        f" {human_bytes(done.bytes)}, in {done.seconds:.1f} s; ring epochs {', '.join(map(str, done.epochs))}"
    )
    if done.blocks:
        typer.echo(
            f"new owners were given {plural(done.warmed_blocks, 'block')}, {human_bytes(done.warmed_bytes)};"
            f" {done.there_blocks} they had, {done.cold_blocks} nobody had on disk, {done.failed_blocks} did not come"
        )
