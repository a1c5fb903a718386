"""shardgit shard: what the shards hold."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from shardgit.cli.context import (
    DataOption,
    JsonOption,
    ServerOption,
    connected,
    failing,
    human_bytes,
    opened,
    print_json,
    print_table,
    server_address,
)

if TYPE_CHECKING:

    from shardgit.service.shards import ShardInfo

app = typer.Typer(help="Shards, for operators.", no_args_is_help=True)


@app.command("list")
def list_(data: DataOption = None, server: ServerOption = None, json: JsonOption = False) -> None:
    """List the shards: where they are and what part of the ring they keep."""
    with failing(json=json):
        found = _shards(server_address(server, data), data)
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
    with failing(json=json):
        found = _shards(server_address(server, data), data)
        total = sum(one.bytes for one in found)
        if json:
            rows = [{**asdict(one), "share": one.bytes / total if total else 0.0} for one in found]
            print_json({"shards": rows, "bytes": total, "blocks": sum(one.blocks for one in found)})
            return
        print_table(
            ["ID", "BLOCKS", "LIVE", "FILE", "SHARE"],
            [
                [one.id, one.blocks, human_bytes(one.bytes), human_bytes(one.file_bytes), f"{one.bytes / total:.1%}" if total else "-"]
                for one in found
            ],
        )


def _shards(address: str | None, data: Path | None) -> list[ShardInfo]:
    from shardgit.service.shards import list_shards

    if address:
        with connected(address) as client:
            return client.shards()
    with opened(data) as store:
        return list_shards(store)
