"""shardgit quota: how much an owner's repositories may take, and how many it may have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.context import DataOption, JsonOption, ServerOption, UsageRefused, failing
from shardgit.cli.operations import on_store
from shardgit.cli.output import human_bytes, print_json, print_table

if TYPE_CHECKING:
    from shardgit.service.quotas import OwnerQuota

app = typer.Typer(
    help="Bound what owners, the first parts of names, may have.", no_args_is_help=True
)
OwnerArgument = Annotated[
    str, typer.Argument(metavar="OWNER", help="First part of repository names, such as team.")
]


@app.command("set")
def set_(
    owner: OwnerArgument,
    bytes_: Annotated[
        str | None,
        typer.Option("--bytes", metavar="SIZE", help="As 500MiB or 10GiB; 0 for no bound."),
    ] = None,
    objects: Annotated[
        int | None, typer.Option(min=0, help="Objects in all repositories; 0 for no bound.")
    ] = None,
    repositories: Annotated[
        int | None, typer.Option(min=0, help="How many repositories; 0 for no bound.")
    ] = None,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Set bounds of an owner; those that are not given stay. One repository: repo config NAME quota.bytes SIZE.

    \b
    Examples:
      shardgit quota set team --bytes 10GiB --repositories 100
      shardgit quota set team --objects 0
    """
    with failing(json=json):
        size = None if bytes_ is None else size_of(bytes_)
        if size is None and objects is None and repositories is None:
            raise UsageRefused("say --bytes, --objects or --repositories")
        from shardgit.service.quotas import Quotas

        found = on_store(
            server,
            data,
            local=lambda store: Quotas(store).set(
                owner, bytes_max=size, objects_max=objects, repositories_max=repositories
            ),
            remote=lambda client: client.set_quota(
                owner, bytes=size, objects=objects, repositories=repositories
            ),
        )
        _print([found], json=json)
        for name in () if json else found.uncounted:
            typer.echo(
                f"{name} is damaged and was not counted; once it is mended gc counts it", err=True
            )


@app.command("list")
def list_(data: DataOption = None, server: ServerOption = None, json: JsonOption = False) -> None:
    """List the owners with a quota, and what they use of it."""
    with failing(json=json):
        from shardgit.service.quotas import Quotas

        found = on_store(
            server,
            data,
            local=lambda store: Quotas(store).list(),
            remote=lambda client: client.quotas(),
        )
        if json:
            print_json({"quotas": found})
        else:
            _print(found, json=False)


@app.command()
def show(
    owner: OwnerArgument,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Show the quota of one owner, and what it uses of it."""
    with failing(json=json):
        from shardgit.service.quotas import Quotas

        found = on_store(
            server,
            data,
            local=lambda store: Quotas(store).get(owner),
            remote=lambda client: client.quotas(owner)[0],
        )
        _print([found], json=json)


@app.command()
def remove(
    owner: OwnerArgument,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Take an owner's quota away; nothing of it is counted any more."""
    with failing(json=json):
        from shardgit.service.quotas import Quotas

        on_store(
            server,
            data,
            local=lambda store: Quotas(store).remove(owner),
            remote=lambda client: client.remove_quota(owner),
        )
        if json:
            print_json({"removed": owner})
        else:
            typer.echo(f"{owner} has no quota any more")


def size_of(text: str) -> int:
    """Return the bytes in a size such as 500MiB or 10GiB."""
    from shardgit.service.sizes import size_in

    size = size_in(text)
    if size is None:
        raise UsageRefused("not a size; write it as 500MiB or 10GiB", size=text[:50])
    return size


def _print(found: list[OwnerQuota], *, json: bool) -> None:
    if json:
        print_json(found[0])
        return
    print_table(
        ["OWNER", "BYTES", "OBJECTS", "REPOSITORIES"],
        [
            [
                one.owner,
                f"{human_bytes(one.used_bytes)} of {human_bytes(one.bytes) if one.bytes else 'any'}",
                f"{one.used_objects:,} of {_bound(one.objects)}",
                f"{one.used_repositories:,} of {_bound(one.repositories)}",
            ]
            for one in found
        ],
    )


def _bound(count: int) -> str:
    return f"{count:,}" if count else "any"
