"""shardgit repo deleted, shardgit repo undelete: repositories that were deleted by mistake."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from shardgit.cli.context import DataOption, JsonOption, ServerOption, failing
from shardgit.cli.operations import on_store
from shardgit.cli.output import print_json, print_table


def deleted(data: DataOption = None, server: ServerOption = None, json: JsonOption = False) -> None:
    """List deleted repositories that can be brought back; gc drops them 14 days later."""
    with failing(json=json):
        from shardgit.operate.undeleting import list_deleted

        found = on_store(
            server, data, local=list_deleted, remote=lambda client: client.deleted_repositories()
        )
        if json:
            print_json({"deleted": found})
            return
        print_table(
            ["ID", "NAME", "CREATED", "DELETED"],
            [[one.id, one.name, _when(one.created_ms), _when(one.deleted_ms)] for one in found],
        )


def undelete(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name that it had.")],
    new_name: Annotated[str, typer.Option("--as", metavar="NAME", help="Under another name.")] = "",
    number: Annotated[
        int,
        typer.Option("--id", metavar="ID", min=0, help="Which, when several had the name."),
    ] = 0,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Bring a deleted repository back with all that it had: refs, their log, settings, LFS objects.

    Of several that had the name it is the one that was deleted last. After gc has dropped it, only a backup has it.

    \b
    Examples:
      shardgit repo deleted
      shardgit repo undelete team/project
      shardgit repo undelete team/project --as team/project-old --id 42
    """
    with failing(json=json):
        from shardgit.cli.local import note_of_user
        from shardgit.operate.undeleting import undelete_repository

        found = on_store(
            server,
            data,
            local=lambda store: undelete_repository(
                store, name, number=number, new_name=new_name, note=note_of_user("undelete")
            ),
            remote=lambda client: client.undelete(name, number=number, new_name=new_name),
        )
        if json:
            print_json(found)
        else:
            typer.echo(f"repository {found.name} is back as it was")


def _when(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
