"""shardgit shard: what the shards hold."""

from __future__ import annotations

from dataclasses import asdict

import typer

from shardgit.cli.context import DataOption, JsonOption, ServerOption, failing, reached
from shardgit.cli.output import human_bytes, print_json, print_table

app = typer.Typer(help="Look at the shards.", no_args_is_help=True)


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
