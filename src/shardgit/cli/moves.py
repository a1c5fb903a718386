"""shardgit shard add, drain, weight, remove, rebalance, receipt, compact: rings, moves, files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.completing import shard_numbers
from shardgit.cli.context import (
    FAILED,
    DataOption,
    JsonOption,
    ServerOption,
    UsageRefused,
    failing,
    server_address,
)
from shardgit.cli.operations import (
    EagerOption,
    ShardArgument,
    ThrottleOption,
    on_store,
    run_operation,
    speed,
)
from shardgit.cli.output import (
    LOAD_COLUMNS,
    human_bytes,
    load_cells,
    most_loaded,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from shardgit.operate.membership import ShardChanged
    from shardgit.operate.operation import Control
    from shardgit.operate.receipt import Receipt, ReceiptCheck
    from shardgit.operate.shrinking import ShardsCompacted
    from shardgit.service.store import Store


def add(
    path: Annotated[
        Path | None,
        typer.Option(
            "--path", metavar="PATH", help="Its folder; shards/NNN in the store's without."
        ),
    ] = None,
    weight: Annotated[float, typer.Option(metavar="W", help="Its share next to the others.")] = 1.0,
    zone: Annotated[
        int | None,
        typer.Option(metavar="Z", help="What fails together; that of its disk by default."),
    ] = None,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Add a shard, empty at first: blocks come with the next rebalance.

    \b
    Examples:
      shardgit shard add --path /disk3/shard
      shardgit shard rebalance
    """
    with failing(json=json):
        from shardgit.operate.membership import add_shard

        if weight <= 0:
            raise UsageRefused("a new shard wants a weight above 0", weight=weight)
        remote_path = ""
        if path is not None and server_address(server, data):
            if not path.is_absolute():
                raise UsageRefused("on a server the path is absolute", path=str(path))
            remote_path = str(path)
        done = on_store(
            server,
            data,
            local=lambda store: add_shard(store, path, weight=weight, zone=zone),
            remote=lambda client: client.add_shard(remote_path, weight=weight, zone=zone),
        )
        _print_change(done, f"added shard {done.id} in {done.path}", json=json)


def drain(
    shard: ShardArgument,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Give a shard weight 0: the next rebalance moves all that it holds to others."""
    with failing(json=json):
        from shardgit.operate.membership import set_weight

        done = on_store(
            server,
            data,
            local=lambda store: set_weight(store, shard, 0.0),
            remote=lambda client: client.set_weight(shard, 0.0),
        )
        _print_change(done, f"shard {done.id} is to be drained", json=json)


def weight(
    shard: ShardArgument,
    weight: Annotated[float, typer.Argument(metavar="WEIGHT", min=0, help="0 drains it.")],
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Give a shard another weight: its share next to the others' from the next rebalance on."""
    with failing(json=json):
        from shardgit.operate.membership import set_weight

        done = on_store(
            server,
            data,
            local=lambda store: set_weight(store, shard, weight),
            remote=lambda client: client.set_weight(shard, weight),
        )
        _print_change(done, f"shard {done.id} weighs {done.weight:g}", json=json)


def remove(
    shard: ShardArgument,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Take a drained and empty shard out of the store. Its folder is left empty."""
    with failing(json=json):
        from shardgit.operate.membership import remove_shard

        done = on_store(
            server,
            data,
            local=lambda store: remove_shard(store, shard),
            remote=lambda client: client.remove_shard(shard),
        )
        if json:
            print_json(done)
        else:
            typer.echo(f"removed shard {done.id}")


def _print_change(done: ShardChanged, text: str, *, json: bool) -> None:
    if json:
        print_json(done)
    else:
        typer.echo(f"{text}; ring epoch {done.epoch}. Blocks move with: shardgit shard rebalance")


def rebalance(  # noqa: PLR0913, PLR0917
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    status: Annotated[
        bool, typer.Option("--status", help="Show where the last one stands.")
    ] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Undo the one that is under way.")] = False,
    receipt: Annotated[
        Path | None, typer.Option("--receipt", metavar="FILE", help="Write the receipt there.")
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            "--keep",
            metavar="SECONDS",
            min=0,
            max=86_400,
            help="How long old copies stay once all is moved; 60 by default.",
        ),
    ] = None,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Move blocks to where the weights want them, while the store is served.

    Stopped or killed at any point, the same command goes on. --abort goes back to the shards as they were before.

    \b
    Examples:
      shardgit shard rebalance --throttle 50MiB/s --receipt moved.json
      shardgit shard rebalance --status
      shardgit shard rebalance --abort
    """
    with failing(json=json):
        if status and abort:
            raise UsageRefused("give --status or --abort, not both")
        if status:
            _show_status(server, data, receipt, json=json)
            return
        pace = speed(throttle, eager=eager)

        def local(store: Store, control: Control) -> Receipt:
            from shardgit.operate import rebalance as work
            from shardgit.operate.receipt import receipt_of

            (work.abort if abort else work.rebalance)(store, control=control, keep_s=keep)
            return receipt_of(store)

        done = run_operation(
            server,
            data,
            local=local,
            remote=lambda client, report: client.rebalance(
                abort=abort, keep_s=keep, pace=pace.message(), report=report
            ),
            show=_print_receipt,
            json=json,
            pace=pace,
        )
        _write_receipt(done, receipt)


def _write_receipt(done: Receipt, file: Path | None) -> None:
    if file is not None:
        from shardgit.operate.receipt import encode_receipt

        file.write_bytes(encode_receipt(done))


def _print_receipt(done: Receipt) -> None:
    most = most_loaded(done.shards)
    rows = [[one.id, *load_cells(one, most)] for one in done.shards]
    print_table(["ID", *LOAD_COLUMNS], rows)
    what = {"aborted": "went back:", "done": "moved"}.get(done.state, f"{done.state}:")
    typer.echo(
        f"{what} {done.blocks} blocks, {human_bytes(done.bytes)} of"
        f" {human_bytes(done.stored_bytes)} ({done.moved_share:.1%}) in {done.seconds:.1f} s;"
        f" ring epochs {', '.join(map(str, done.epochs))}"
    )


def _show_status(
    server: str | None, data: Path | None, receipt: Path | None, *, json: bool
) -> None:
    from shardgit.operate.operation import is_running
    from shardgit.operate.rebalance import KIND
    from shardgit.operate.rebalance import status as status_of
    from shardgit.operate.receipt import receipt_of

    if receipt is not None:
        if server_address(server, data):
            raise UsageRefused("--status --receipt works on the store's folder; give --data DIR")
        done = on_store(server, data, local=receipt_of, remote=_never)
        _write_receipt(done, receipt)
    now, busy = on_store(
        server,
        data,
        local=lambda store: (status_of(store), is_running(store, KIND)),
        remote=lambda client: client.rebalance_status(),
    )
    if json:
        print_json({"rebalance": asdict(now) if now is not None else None, "running": busy})
        return
    if now is None:
        typer.echo("no rebalance yet")
        return
    typer.echo(f"rebalance {now.id}: {now.state}{'' if busy or now.ended else ', nobody is at it'}")
    typer.echo(f"{human_bytes(now.bytes)} of {human_bytes(max(now.total_bytes, now.bytes))} copied")
    if now.damaged:
        typer.echo(f"{len(now.damaged)} damaged block(s) cannot be moved, first {now.damaged[0]}")
    if not now.ended and not busy:
        typer.echo("go on with: shardgit shard rebalance, or undo it with --abort")


def _never(_: object) -> Receipt:
    raise AssertionError


def receipt(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A receipt of shard rebalance.")],
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Check a rebalance's receipt against the store: every block of it is read and hashed again.

    Exit code 1 when a block is damaged or lost, or the receipt was changed. Blocks that gc has dropped since are
    counted, and no fault.
    """
    with failing(json=json):
        from shardgit.operate.receipt import check_receipt, decode_receipt

        raw = file.read_bytes()
        known = decode_receipt(raw)
        pace = speed(throttle, eager=eager)
        done = run_operation(
            server,
            data,
            local=lambda store, control: check_receipt(store, known, control=control),
            remote=lambda client, report: client.check_receipt(
                raw, pace=pace.message(), report=report
            ),
            show=print_check,
            json=json,
            pace=pace,
        )
        if not done.ok:
            raise typer.Exit(FAILED)


def print_check(done: ReceiptCheck) -> None:
    """Print what came of a check of a receipt."""
    for line in done.bad:
        typer.echo(line)
    if done.problems > len(done.bad):
        typer.echo(f"and {done.problems - len(done.bad)} more")
    typer.echo(
        f"{done.unchanged} of {done.partitions} partitions are as they were moved; {done.blocks} blocks,"
        f" {human_bytes(done.bytes)} read; {done.gone} deleted since; {done.problems} problem(s)"
    )


def compact(
    shards: Annotated[
        list[int] | None,
        typer.Argument(metavar="[ID...]", help="Numbers of shards.", autocompletion=shard_numbers),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All shards.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also where no more than 15% of the file is free.")
    ] = False,
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Give the free space in the files of shards back to the disk, while the store is served.

    A file never shrinks by itself: live blocks are copied into a fresh one, which takes its place. There must be room
    for both meanwhile. Killed at any point, nothing has happened but for a folder that the next call removes.

    \b
    Examples:
      shardgit shard compact --all
      shardgit shard compact 3 --throttle 50MiB/s
    """
    with failing(json=json):
        from shardgit.operate.shrinking import compact_shards

        numbers = shards or []
        if bool(numbers) == every:
            raise UsageRefused("give the numbers of shards, or --all")
        pace = speed(throttle, eager=eager)
        run_operation(
            server,
            data,
            local=lambda store, control: compact_shards(
                store, numbers, force=force, control=control
            ),
            remote=lambda client, report: client.compact_shards(
                numbers, force=force, pace=pace.message(), report=report
            ),
            show=_print_compacted,
            json=json,
            pace=pace,
        )


def _print_compacted(done: ShardsCompacted) -> None:
    for one in done.shards:
        if one.copied:
            typer.echo(
                f"shard {one.id}: {human_bytes(one.file_before)} -> {human_bytes(one.file_after)},"
                f" {one.blocks} blocks"
            )
        else:
            typer.echo(f"shard {one.id}: {human_bytes(one.file_before)}, too little to win")
        if one.damaged:
            typer.echo(f"shard {one.id}: {one.damaged} damaged block(s) copied as they are")
