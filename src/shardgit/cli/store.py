"""shardgit store: whether the store takes changes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.completing import one_of
from shardgit.cli.context import DataOption, JsonOption, ServerOption, UsageRefused, failing
from shardgit.cli.operations import on_store
from shardgit.cli.output import print_json

if TYPE_CHECKING:
    from shardgit.service.modes import StoreMode

app = typer.Typer(help="Make the store read-only, and writable again.", no_args_is_help=True)
WORDS = {"on": True, "off": False}


@app.command("read-only")
def read_only(
    word: Annotated[
        str,
        typer.Argument(
            metavar="on|off", help="Whether it shall be.", autocompletion=one_of("on", "off")
        ),
    ],
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Told to whoever is refused.")
    ] = "",
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
        if word not in WORDS or (reason and not WORDS[word]):
            raise UsageRefused("say on, with a reason if you like, or off", word=word[:20])
        from shardgit.cli.local import note_of_user
        from shardgit.service.modes import set_mode

        found = on_store(
            server,
            data,
            local=lambda store: set_mode(
                store, read_only=WORDS[word], why=reason, by=note_of_user("").actor
            ),
            remote=lambda client: client.set_mode(read_only=WORDS[word], why=reason),
        )
        _print(found, json=json)


@app.command()
def show(data: DataOption = None, server: ServerOption = None, json: JsonOption = False) -> None:
    """Show whether the store takes changes."""
    with failing(json=json):
        from shardgit.service.modes import store_mode

        found = on_store(server, data, local=store_mode, remote=lambda client: client.mode())
        _print(found, json=json)


def _print(mode: StoreMode, *, json: bool) -> None:
    if json:
        print_json(mode)
    elif mode.read_only:
        since = f"{datetime.fromtimestamp(mode.since_ms / 1_000, UTC):%Y-%m-%d %H:%M:%S} UTC"
        typer.echo(f"read-only since {since}, by {mode.by}: {mode.why or 'no reason was given'}")
    else:
        typer.echo("takes changes")
