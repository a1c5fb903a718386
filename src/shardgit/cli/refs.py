"""shardgit ref: list and get refs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.context import DataOption, JsonOption, ServerOption, failing, reached
from shardgit.cli.output import print_json, print_json_rows, print_line

if TYPE_CHECKING:
    from shardgit.cli.backend import RefRow

app = typer.Typer(help="Read refs.", no_args_is_help=True)
RepoArgument = Annotated[str, typer.Argument(metavar="REPO")]


@app.command("list")
def list_(
    repo: RepoArgument,
    prefix: Annotated[str, typer.Option(help="Only refs that start so, such as refs/tags/.")] = "",
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """List refs with the ids that they name, by rising name.

    \b
    Example:
      shardgit ref list demo --prefix refs/tags/
    """
    with failing(json=json), reached(server, data) as store:
        rows = store.refs(repo, os.fsencode(prefix))
        if json:
            print_json_rows("refs", map(_plain, rows))
            return
        for ref in rows:
            print_line(f"{ref.target.hex() if ref.target else '-'} {_text(ref.name)}")


@app.command()
def get(
    repo: RepoArgument,
    name: Annotated[
        str, typer.Argument(metavar="REF", help="Full name, such as refs/heads/main, or HEAD.")
    ],
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Print the id that a ref names.

    \b
    Example:
      shardgit ref get demo HEAD --json
    """
    with failing(json=json), reached(server, data) as store:
        found = store.ref(repo, os.fsencode(name))
        if json:
            print_json(_plain(found))
        elif found.target is not None:
            typer.echo(found.target.hex())
        else:
            print_line(f"unborn, points to {_text(found.symbolic or b'')}")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _plain(ref: RefRow) -> dict[str, str | None]:
    return {
        "name": ref.name.decode("utf-8", "replace"),
        "target": ref.target.hex() if ref.target else None,
        "peeled": ref.peeled.hex() if ref.peeled else None,
        "symbolic": ref.symbolic.decode("utf-8", "replace") if ref.symbolic else None,
    }
