"""shardgit key: who may come in over SSH."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from shardgit.cli.context import DataOption, JsonOption, ServerOption, failing, opened_here
from shardgit.cli.output import print_json, print_table
from shardgit.cli.tokens import READ_HELP, WRITE_HELP, allowed

app = typer.Typer(help="Let public keys in over SSH, or shut them out.", no_args_is_help=True)
FILE_MAX_BYTES = 1 << 20


@app.command()
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .pub file; - for stdin.")],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Whom the key stands for; else its comment.")
    ] = "",
    read: Annotated[list[str] | None, typer.Option(metavar="GLOB", help=READ_HELP)] = None,
    write: Annotated[list[str] | None, typer.Option(metavar="GLOB", help=WRITE_HELP)] = None,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Let a key in. From the first one on, nobody comes in without a key.

    Without --read and --write it may read and write all repositories. What it may do counts where the server has
    auth = "required".

    \b
    Examples:
      shardgit key add ~/.ssh/id_ed25519.pub --name ada
      shardgit key add ci.pub --name ci --read '**' --write 'ci/**'
    """
    with failing(json=json), opened_here(server, data, "key") as store:
        from shardgit.errors import InvalidArgument
        from shardgit.service.access import ALL_REPOSITORIES, Rights
        from shardgit.service.keys import Keys, keys_in

        text = sys.stdin.read(FILE_MAX_BYTES) if str(file) == "-" else _text(file)
        found = list(keys_in(text))
        for key in found:
            if isinstance(key, InvalidArgument):
                raise key
        if not found:
            raise InvalidArgument("file holds no public key", path=str(file))
        keys = Keys(store.journal)
        rights = (
            Rights(tuple(read or ()), tuple(write or ())) if read or write else ALL_REPOSITORIES
        )
        added = [
            keys.add(key, name, rights=rights)
            for key in found
            if not isinstance(key, InvalidArgument)
        ]
        if json:
            print_json({"keys": [asdict(one) for one in added]})
            return
        for one in added:
            typer.echo(f"{one.fingerprint} may come in as {one.name}")


@app.command("list")
def list_(data: DataOption = None, server: ServerOption = None, json: JsonOption = False) -> None:
    """List the keys."""
    with failing(json=json), opened_here(server, data, "key") as store:
        from shardgit.service.keys import Keys

        found = Keys(store.journal).all()
        if json:
            print_json({"keys": [asdict(one) for one in found]})
            return
        print_table(
            ["NAME", "TYPE", "FINGERPRINT", "MAY", "ADDED"],
            [
                [
                    one.name,
                    one.type,
                    one.fingerprint,
                    allowed(one.rights),
                    f"{datetime.fromtimestamp(one.created_ms / 1000, UTC):%Y-%m-%d}",
                ]
                for one in found
            ],
        )


@app.command()
def remove(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A fingerprint, or a name.")],
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Shut a key out, or all keys of a name. Sessions under way go on, and no new one begins."""
    with failing(json=json), opened_here(server, data, "key") as store:
        from shardgit.service.keys import Keys

        gone = Keys(store.journal).remove(key)
        if json:
            print_json({"keys": [asdict(one) for one in gone]})
            return
        for one in gone:
            typer.echo(f"{one.fingerprint} ({one.name}) may come in no more")


def _text(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(FILE_MAX_BYTES)
