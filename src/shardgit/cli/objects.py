"""shardgit object: read objects by id, revision or path."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from shardgit.cli.context import (
    DataOption,
    JsonOption,
    ServerOption,
    connected,
    failing,
    opened,
    print_json,
    server_address,
)

app = typer.Typer(help="Objects.", no_args_is_help=True)
RepoArgument = Annotated[str, typer.Argument(metavar="REPO")]
RevisionArgument = Annotated[
    str, typer.Argument(metavar="OID-or-REV[:PATH]", help="An id, a unique start of one, or main~2:README.md.")
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
    """Write an object's bytes to standard output (with --json: base64).

    Example: shardgit object get demo main:README.md
    """
    import base64

    from shardgit.service.reading import Reading

    with failing(json=json):
        out = sys.stdout.buffer
        if address := server_address(server, data):
            with connected(address) as client:
                facts, pieces = client.repo(repo).open(revision)
                oid, kind, size = facts.id, facts.type, facts.size
                body = b"".join(pieces) if json else None
                for piece in () if json else pieces:
                    out.write(piece)
        else:
            with opened(data) as store:
                reading = Reading(store, repo)
                info, pieces = reading.stream(reading.resolve(revision))
                oid, kind, size = info.id, info.type, info.size
                body = b"".join(pieces) if json else None
                for piece in () if json else pieces:
                    out.write(piece)
        out.flush()
        if body is not None:
            print_json({"id": oid, "type": NAMES[kind], "size": size, "data": base64.b64encode(body).decode()})


@app.command()
def info(
    repo: RepoArgument,
    revision: RevisionArgument,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Print an object's id, type and size."""
    from shardgit.service.reading import Reading

    with failing(json=json):
        if address := server_address(server, data):
            with connected(address) as client:
                facts, _ = client.repo(repo).open(revision)
                oid, kind, size = facts.id, facts.type, facts.size
        else:
            with opened(data) as store:
                reading = Reading(store, repo)
                found, _ = reading.stream(reading.resolve(revision))
                oid, kind, size = found.id, found.type, found.size
        if json:
            print_json({"id": oid, "type": NAMES[kind], "size": size})
        else:
            typer.echo(f"{oid.hex()} {NAMES[kind]} {size}")


@app.command("list")
def list_(
    repo: RepoArgument, data: DataOption = None, server: ServerOption = None, json: JsonOption = False
) -> None:
    """List all objects that the refs reach: id, type, size. With --json one object a line."""
    import json as json_module

    from shardgit.service.reading import Reading

    def show(oid: bytes, kind: int, size: int) -> None:
        row = {"id": oid.hex(), "type": NAMES[kind], "size": size}
        sys.stdout.write(json_module.dumps(row) + "\n" if json else f"{oid.hex()} {NAMES[kind]} {size}\n")

    with failing(json=json):
        if address := server_address(server, data):
            with connected(address) as client:
                for one in client.repo(repo).list_objects():
                    show(one.id, one.type, one.size)
        else:
            with opened(data) as store:
                for some in Reading(store, repo).all_infos():
                    for one in some:
                        show(one.id, one.type, one.size)
        sys.stdout.flush()
