"""shardgit store, and shard read-only: whether the store and its shards take changes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.completing import one_of
from shardgit.cli.context import DataOption, JsonOption, ServerOption, UsageRefused, failing
from shardgit.cli.operations import ShardArgument, on_store, run_operation
from shardgit.cli.output import print_json

if TYPE_CHECKING:
    from shardgit.operate.holding import ShardMode
    from shardgit.service.modes import StoreMode

app = typer.Typer(help="Make the store read-only, and writable again.", no_args_is_help=True)
WORDS = {"on": True, "off": False}
WordArgument = Annotated[
    str,
    typer.Argument(
        metavar="on|off", help="Whether it shall be.", autocompletion=one_of("on", "off")
    ),
]
ReasonOption = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Told to whoever is refused.")
]


@app.command("read-only")
def read_only(
    word: WordArgument,
    reason: ReasonOption = "",
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Refuse all changes of repositories, in all processes and nodes, until it is off again.

    Once the command has ended no push, upload, fork or settle is committed; clones and reads go on, and so does what
    operators do with settings, tokens, quotas and backups. A single repository: repo config NAME read_only true.

    \b
    Examples:
      shardgit store read-only on --reason "moving to new disks until noon"
      shardgit store read-only off
    """
    with failing(json=json):
        on = _checked(word, reason)
        from shardgit.cli.local import note_of_user
        from shardgit.service.modes import set_mode

        found = on_store(
            server,
            data,
            local=lambda store: set_mode(
                store, read_only=on, why=reason, by=note_of_user("").actor
            ),
            remote=lambda client: client.set_mode(read_only=on, why=reason),
        )
        _print(found, json=json)


def shard_read_only(
    shard: ShardArgument,
    word: WordArgument,
    reason: ReasonOption = "",
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Write nothing to a shard until it is off again; what it holds is read as ever.

    No block moves: new ones are born where other shards keep them, also those of pushes. What is deleted meanwhile
    stays until a gc behind it. The rebalance, shard repair and changes of weights wait until it is off. Once the
    command has ended nothing writes to the shard's file, which may then be copied.

    \b
    Examples:
      shardgit shard read-only 2 on --reason "its disk is copied"
      shardgit shard read-only 2 off
    """
    with failing(json=json):
        on = _checked(word, reason)
        from shardgit.cli.local import note_of_user
        from shardgit.operate.holding import set_shard_mode

        run_operation(
            server,
            data,
            local=lambda store, control: set_shard_mode(
                store,
                shard,
                read_only=on,
                why=reason,
                by=note_of_user("").actor,
                control=control,
            ),
            remote=lambda client, report: client.set_shard_mode(
                shard, read_only=on, why=reason, report=report
            ),
            show=lambda mode: typer.echo(f"shard {mode.id}: {_words(mode)}"),
            json=json,
        )


@app.command()
def show(data: DataOption = None, server: ServerOption = None, json: JsonOption = False) -> None:
    """Show whether the store takes changes."""
    with failing(json=json):
        from shardgit.service.modes import store_mode

        found = on_store(server, data, local=store_mode, remote=lambda client: client.mode())
        _print(found, json=json)


def _checked(word: str, reason: str) -> bool:
    if word not in WORDS or (reason and not WORDS[word]):
        raise UsageRefused("say on, with a reason if you like, or off", word=word[:20])
    return WORDS[word]


def _print(mode: StoreMode, *, json: bool) -> None:
    if json:
        print_json(mode)
    else:
        typer.echo(_words(mode))


def _words(mode: StoreMode | ShardMode) -> str:
    if not mode.read_only:
        return "takes changes"
    since = f"{datetime.fromtimestamp(mode.since_ms / 1_000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"read-only since {since}, by {mode.by}: {mode.why or 'no reason was given'}"
