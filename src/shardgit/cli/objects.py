"""shardgit object: read objects by id, revision or path; store some."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.completing import repository_names
from shardgit.cli.context import (
    DataOption,
    JsonOption,
    ServerOption,
    UsageRefused,
    failing,
    reached,
)
from shardgit.cli.output import print_json, print_json_rows

if TYPE_CHECKING:
    from shardgit.cli.backend import ObjectRow

app = typer.Typer(help="Read and store objects.", no_args_is_help=True)
RepoArgument = Annotated[
    str,
    typer.Argument(
        metavar="REPO",
        help="Repository name, such as team/project.",
        autocompletion=repository_names,
    ),
]
RevisionArgument = Annotated[
    str,
    typer.Argument(
        metavar="OID-or-REV[:PATH]", help="An id, a unique start of one, or main~2:README.md."
    ),
]
NAMES = {1: "commit", 2: "tree", 3: "blob", 4: "tag"}


@app.command()
def get(
    repo: RepoArgument,
    revision: RevisionArgument,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Write an object's bytes to standard output; with --json they stand there as base64.

    \b
    Examples:
      shardgit object get demo HEAD
      shardgit object get demo main:README.md
      shardgit object get demo v1.0^{tree} --json
    """
    with failing(json=json), reached(server, data) as store:
        row, pieces = store.open(repo, revision)
        if json:
            from base64 import b64encode

            body = b64encode(b"".join(pieces)).decode("ascii")
            print_json({**_plain(row), "data": body})
            return
        for piece in pieces:
            sys.stdout.buffer.write(piece)


@app.command()
def info(
    repo: RepoArgument,
    revision: RevisionArgument,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Print an object's id, type and size.

    \b
    Example:
      shardgit object info demo main:README.md
    """
    with failing(json=json), reached(server, data) as store:
        row, _ = store.open(repo, revision)
        if json:
            print_json(_plain(row))
        else:
            typer.echo(_line(row))


@app.command("list")
def list_(
    repo: RepoArgument,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """List all objects that the refs reach: id, type, size."""
    with failing(json=json), reached(server, data) as store:
        rows = store.objects(repo)
        if json:
            print_json_rows("objects", map(_plain, rows))
            return
        for row in rows:
            sys.stdout.write(_line(row) + "\n")


@app.command()
def put(
    repo: RepoArgument,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Standard input without any.")
    ] = None,
    type_: Annotated[
        str, typer.Option("--type", help="blob, tree, commit or tag; of all files.")
    ] = "blob",
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Store files as objects, all in one commit, and print their ids.

    Until a ref names them, they count as the repository's own for 14 days.

    \b
    Examples:
      shardgit object put demo README.md
      git cat-file commit HEAD | shardgit object put demo --type commit
    """
    with failing(json=json):
        numbers = {name: number for number, name in NAMES.items()}
        if type_ not in numbers:
            raise UsageRefused("unknown type", type=type_, known="|".join(numbers))
        with reached(server, data) as store:
            read = (file.read_bytes() for file in files) if files else [sys.stdin.buffer.read()]
            ids = store.put(repo, ((numbers[type_], body) for body in read))
            if json:
                print_json({"ids": [oid.hex() for oid in ids]})
                return
            for oid in ids:
                typer.echo(oid.hex())


def _plain(row: ObjectRow) -> dict[str, object]:
    return {"id": row.id.hex(), "type": NAMES[row.type], "size": row.size}


def _line(row: ObjectRow) -> str:
    return f"{row.id.hex()} {NAMES[row.type]} {row.size}"
