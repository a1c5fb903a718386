"""shardgit cluster: the nodes, who of them is there, and what part of the blocks each is given."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.context import (
    FAILED,
    DataOption,
    JsonOption,
    UsageRefused,
    data_folder,
    failing,
)
from shardgit.cli.moves import print_check
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
    from shardgit.operate.cluster_check import ClusterChecked
    from shardgit.operate.nodes import NodesMoved
    from shardgit.service.store import Store

app = typer.Typer(help="Look at the nodes of a cluster, join it, leave it.", no_args_is_help=True)
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="The node's TOML file; else what --data was served with."
    ),
]
ReceiptOption = Annotated[
    Path | None, typer.Option("--receipt", metavar="FILE", help="Write the receipt there.")
]
SHOWN = 50


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
def join(  # noqa: PLR0913, PLR0917
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
    receipt: ReceiptOption = None,
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
      shardgit cluster join --receipt joined.json
    """
    with failing(json=json), _node(config, data) as opened, progress_bar(quiet=json) as report:
        from shardgit.errors import Refused
        from shardgit.operate import nodes

        if plan and receipt is not None:
            raise UsageRefused("a plan moves nothing, and has no receipt")
        _check_writable(receipt)
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
                done = nodes.move_nodes(store, weights, control=control)
                _write_receipt(store, done, receipt)
                _print_moved(done, json=json)


@app.command()
def leave(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Name of the node.")],
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    receipt: ReceiptOption = None,
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

        _check_writable(receipt)
        store = opened.store
        if nodes.number_of(nodes.members(store), node) == opened.number:
            raise Refused(
                "run it on another node: as one of this node it would join again", node=node
            )
        with control_of(store, speed(throttle, eager=eager), report) as control:
            done = nodes.leave(store, node, control=control)
            _write_receipt(store, done, receipt)
            _print_moved(done, json=json)
            if not json:
                typer.echo(f"{node} is no member any more")


@app.command("receipt")
def check_receipt(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A receipt of join or leave.")],
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    config: ConfigOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Check a receipt against the cluster: every block of it is read from the object store and hashed again.

    Exit code 1 when a block is damaged or lost, or the receipt was changed. Blocks that gc has dropped since are
    counted, and no fault.

    \b
    Examples:
      shardgit cluster receipt joined.json --data /var/lib/shardgit
    """
    with failing(json=json):
        from shardgit.operate.nodes_receipt import check_nodes_receipt, decode_nodes_receipt

        known = decode_nodes_receipt(file.read_bytes())
        with (
            _node(config, data) as opened,
            progress_bar(quiet=json) as report,
            control_of(opened.store, speed(throttle, eager=eager), report) as control,
        ):
            done = check_nodes_receipt(opened.store, known, control=control)
        if json:
            print_json(done)
        else:
            print_check(done)
        if not done.ok:
            raise typer.Exit(FAILED)


@app.command()
def verify(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Compare lists of the object store; read no block."),
    ] = False,
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    config: ConfigOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Check that all of the cluster is whole where it is durable, while it is served; exit code 1 when not.

    Reads each row of the journal from etcd, holds this node's replica against it, and reads and hashes every block
    that is named, and every value in a bundle, in the object store.

    \b
    Examples:
      shardgit cluster verify --data /var/lib/shardgit
      shardgit cluster verify --quick --config /etc/shardgit.toml
      shardgit cluster verify --throttle 100MiB/s --json
    """
    _check(config, data, None, throttle, eager=eager, mend=False, listed=quick, json=json)


@app.command()
def repair(
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="BACKUP",
            help="Backup (folder or URL), a store's folder, or a folder of blocks.",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Mend what lists show to be missing; read no other block."),
    ] = False,
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    config: ConfigOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Mend what cluster verify finds, while the cluster is served; exit code 1 when something is left.

    A block that the object store has lost is put there again from the disk of a node that has it, or from --from.
    Index and graph of a pool are made anew from its segments.

    \b
    Examples:
      shardgit cluster repair --data /var/lib/shardgit
      shardgit cluster repair --from s3://backups/git
    """
    _check(config, data, source, throttle, eager=eager, mend=True, listed=quick, json=json)


def _check(
    config: Path | None,
    data: Path | None,
    source: str | None,
    throttle: str | None,
    *,
    eager: bool,
    mend: bool,
    listed: bool,
    json: bool,
) -> None:
    with failing(json=json), ExitStack() as stack:
        from shardgit.operate.block_sources import opened_source
        from shardgit.operate.cluster_check import check_cluster

        pace = speed(throttle, eager=eager)
        sources = [stack.enter_context(opened_source(source))] if source is not None else []
        opened = stack.enter_context(_node(config, data))
        report = stack.enter_context(progress_bar(quiet=json))
        control = stack.enter_context(control_of(opened.store, pace, report))
        done = check_cluster(
            opened.store, control=control, mend=mend, listed=listed, sources=sources
        )
        if json:
            print_json(done)
        else:
            _print_checked(done)
        if not done.clean:
            raise typer.Exit(FAILED)


def _print_checked(done: ClusterChecked) -> None:
    for line in done.mended[:SHOWN]:
        typer.echo(line)
    if len(done.mended) > SHOWN:
        typer.echo(f"and {len(done.mended) - SHOWN:,} more")
    for one in done.findings[:SHOWN]:
        typer.echo(one.line, err=True)
    more = sum(done.counts.values()) - min(len(done.findings), SHOWN)
    if more:
        typer.echo(f"and {more:,} more; --json tells up to 1,000", err=True)
    for command in sorted({one.mend for one in done.findings}):
        typer.echo(f"run: {command}", err=True)
    if done.replica_renewed:
        typer.echo("this node's replica was not what etcd has: it has come anew")
    if done.stopped_by:
        typer.echo(f"not all was looked at: {done.stopped_by}", err=True)
    said = ", ".join(f"{n:,} {kind}" for kind, n in sorted(done.counts.items())) or (
        "all whole" if done.clean else "none wrong of these"
    )
    mended = f", {len(done.mended):,} mended" if done.mended else ""
    read = f" ({human_bytes(done.read_bytes)})" if done.read_bytes else ""
    typer.echo(
        f"{plural(done.rows, 'row')}, {plural(done.blocks, 'block')}{read}: {said}{mended}"
        f" ({done.seconds:.1f} s)"
    )


def _check_writable(receipt: Path | None) -> None:
    """See to it before a move that its receipt can be written behind it."""
    if receipt is not None:
        try:
            receipt.open("ab").close()
        except OSError as error:
            raise UsageRefused("receipt cannot be written", path=str(receipt)) from error


def _write_receipt(store: Store, done: NodesMoved, file: Path | None) -> None:
    if file is not None:
        from shardgit.operate.nodes_receipt import receipt_of
        from shardgit.operate.receipt import encode_receipt

        file.write_bytes(encode_receipt(receipt_of(store, done)))


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
        print_json({key: value for key, value in asdict(done).items() if key != "moves"})
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
