"""shardgit repo: make, list, show, rename, delete, import, export and verify repositories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardgit.cli.context import (
    DataOption,
    JsonOption,
    ServerOption,
    connected,
    failing,
    human_bytes,
    local_only,
    opened,
    print_json,
    print_table,
    progress_bar,
    server_address,
)

app = typer.Typer(help="Repositories.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Repository name, such as team/project.")]


@app.command()
def create(
    name: NameArgument,
    object_format: Annotated[str, typer.Option(help="sha1 or sha256.")] = "sha1",
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Make an empty repository."""
    from shardgit.oid import HashKind
    from shardgit.service.repositories import Repositories

    with failing(json=json):
        kind = HashKind.from_git_name(object_format)
        if address := server_address(server, data):
            with connected(address) as client:
                info = client.create(name, object_format=object_format)
        else:
            with opened(data) as store:
                info = Repositories(store).create(name, kind)
        _print(info, json=json, text=f"made repository {name}")


@app.command("list")
def list_(
    prefix: Annotated[str, typer.Option(help="Only names that start so.")] = "",
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """List repositories."""
    from shardgit.service.repositories import PAGE, Repositories

    with failing(json=json):
        if address := server_address(server, data):
            with connected(address) as client:
                found = list(client.repositories(prefix=prefix))
        else:
            found = []
            with opened(data) as store:
                while True:
                    some = Repositories(store).list(prefix=prefix, after=found[-1].name if found else "")
                    found += some
                    if len(some) < PAGE:
                        break
        if json:
            print_json({"repositories": [_plain(info) for info in found]})
        else:
            print_table(["NAME", "FORMAT", "HEAD"], [[one.name, one.hash_kind.git_name, one.head] for one in found])


@app.command()
def show(
    name: NameArgument, data: DataOption = None, server: ServerOption = None, json: JsonOption = False
) -> None:
    """Show a repository: counts and sizes."""
    from shardgit.service.repositories import Repositories

    with failing(json=json):
        if address := server_address(server, data):
            with connected(address) as client:
                info, stats = client.repository(name), client.repo(name).stats()
        else:
            with opened(data) as store:
                info, stats = Repositories(store).get(name), Repositories(store).stats(name)
        if json:
            from dataclasses import asdict

            print_json({**_plain(info), **asdict(stats)})
            return
        typer.echo(f"{info.name}  ({info.hash_kind.git_name}, HEAD -> {info.head})")
        typer.echo(f"objects     {stats.objects:,} ({stats.reachable_objects:,} reachable)")
        typer.echo(f"refs        {stats.refs:,}")
        typer.echo(f"stored      {human_bytes(stats.stored_bytes)} in {stats.segments:,} segments, {stats.runs} runs")
        typer.echo(f"generation  {stats.generation}")


@app.command()
def rename(
    name: NameArgument,
    new_name: Annotated[str, typer.Argument(metavar="NEW-NAME")],
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Give a repository another name."""
    from shardgit.service.repositories import Repositories

    with failing(json=json):
        if address := server_address(server, data):
            with connected(address) as client:
                info = client.rename(name, new_name)
        else:
            with opened(data) as store:
                info = Repositories(store).rename(name, new_name)
        _print(info, json=json, text=f"renamed {name} to {new_name}")


@app.command()
def delete(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Delete a repository. Its objects stay until gc's grace period is over."""
    from shardgit.service.repositories import Repositories

    with failing(json=json):
        if not yes and not json:
            typer.confirm(f"delete repository {name}?", abort=True)
        if address := server_address(server, data):
            with connected(address) as client:
                client.delete(name)
        else:
            with opened(data) as store:
                Repositories(store).delete(name)
        if json:
            print_json({"deleted": name})
        else:
            typer.echo(f"deleted repository {name}")


@app.command("import")
def import_(
    name: NameArgument,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Path of a Git repository, or a URL that git reads.")],
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Import a Git repository; a second import brings what is new.

    The repository is made when it is missing; afterwards its refs are those of the source.

    Example: shardgit repo import demo ~/src/project --data ./data
    """
    from shardgit.service.importing import import_repository

    with failing(json=json):
        local_only(server_address(server, data), "repo import")
        with opened(data) as store, progress_bar(quiet=json) as report:
            done = import_repository(store, name, source, progress=report)
        if json:
            print_json(done)
            return
        typer.echo(
            f"imported {done.objects:,} new objects ({human_bytes(done.stored_bytes)}) and {done.refs:,} refs "
            f"into {name} in {done.seconds:.1f} s"
        )
        if done.objects_unreachable:
            typer.echo(f"left out {done.objects_unreachable:,} objects that no ref reaches")


@app.command()
def export(
    name: NameArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the new bare repository.")],
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Write a repository as a bare Git repository, every object checked."""
    from shardgit.service.exporting import export_repository

    with failing(json=json):
        local_only(server_address(server, data), "repo export")
        with opened(data) as store, progress_bar(quiet=json) as report:
            done = export_repository(store, name, folder, progress=report)
        if json:
            print_json(done)
        else:
            typer.echo(
                f"exported {done.objects:,} objects and {done.refs:,} refs to {folder} "
                f"({human_bytes(done.pack_bytes)}) in {done.seconds:.1f} s"
            )


@app.command()
def verify(
    name: NameArgument, data: DataOption = None, server: ServerOption = None, json: JsonOption = False
) -> None:
    """Make every object anew, compare its id, and follow all links."""
    from shardgit.operate.verify import verify_repository

    with failing(json=json):
        local_only(server_address(server, data), "repo verify")
        with opened(data) as store, progress_bar(quiet=json) as report:
            done = verify_repository(store, name, progress=report)
        if json:
            print_json(done)
        elif not done.bad:
            typer.echo(f"{name}: {done.objects:,} objects and {done.refs:,} refs are whole ({done.seconds:.1f} s)")
        for oid in done.bad if not json else ():
            typer.echo(f"damaged object {oid}", err=True)
        if done.bad:
            raise typer.Exit(1)


def _plain(info: object) -> dict[str, object]:
    from shardgit.service.repositories import RepositoryInfo

    assert isinstance(info, RepositoryInfo)
    return {
        "id": info.id,
        "name": info.name,
        "object_format": info.hash_kind.git_name,
        "created_ms": info.created_ms,
        "head": info.head,
    }


def _print(info: object, *, json: bool, text: str) -> None:
    if json:
        print_json(_plain(info))
    else:
        typer.echo(text)
