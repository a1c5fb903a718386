"""shardgit mirror: repositories that follow another one elsewhere."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.completing import repository_names
from shardgit.cli.context import (
    FAILED,
    DataOption,
    JsonOption,
    ServerOption,
    failing,
    server_address,
)
from shardgit.cli.operations import on_store
from shardgit.cli.output import print_json, print_table, progress_bar
from shardgit.cli.tokens import seconds_of

if TYPE_CHECKING:
    from shardgit.operators import Operators
    from shardgit.service.mirrors import Mirror
    from shardgit.service.store import Store

app = typer.Typer(help="Have repositories follow others elsewhere.", no_args_is_help=True)
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Repository name, such as team/project.",
        autocompletion=repository_names,
    ),
]
POLL_S = 0.5
SYNC_WAIT_S = 6 * 3_600.0


@app.command()
def add(  # noqa: PLR0913, PLR0917
    name: NameArgument,
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Of http, https, ssh, git; without a password.")
    ],
    interval: Annotated[
        str, typer.Option("--interval", metavar="DURATION", help="From look to look, as 5m or 1h.")
    ] = "5m",
    refs: Annotated[
        list[str] | None,
        typer.Option("--refs", metavar="PATTERN", help="Which refs, as refs/heads/*; repeat."),
    ] = None,
    credential: Annotated[
        str,
        typer.Option("--credential", metavar="NAME", help="Of mirror_credentials."),
    ] = "",
    object_format: Annotated[str, typer.Option(help="Of a new one: sha1 or sha256.")] = "sha1",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also where the repository has refs.")
    ] = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Have a repository, which is made when it is missing, follow a URL: its refs, as they are there, deletions too.

    It takes no pushes as long as it does. The maintenance of the server looks from time to time.

    \b
    Examples:
      shardgit mirror add linux/stable https://git.example.org/stable.git --interval 1h
      shardgit mirror add tool https://example.org/tool.git --refs 'refs/heads/*'
    """
    with failing(json=json):
        from shardgit.cli.local import note_of_user
        from shardgit.oid import HashKind
        from shardgit.service.mirrors import MirrorPlan, Mirrors

        plan = MirrorPlan(
            url,
            seconds_of(interval),
            tuple(refs or ()),
            credential,
            overwrite,
            HashKind.from_git_name(object_format),
        )
        made = on_store(
            server,
            data,
            local=lambda store: Mirrors(store).add(name, plan, note_of_user("mirror")),
            remote=lambda client: client.add_mirror(name, plan),
        )
        if json:
            print_json(made)
        else:
            typer.echo(f"{name} follows {url}")


@app.command("list")
def list_(data: DataOption = None, server: ServerOption = None, json: JsonOption = False) -> None:
    """List the repositories that follow another, and how that goes."""
    with failing(json=json):
        from shardgit.service.mirrors import Mirrors

        found = on_store(
            server,
            data,
            local=lambda store: Mirrors(store).all(),
            remote=lambda client: client.mirrors(),
        )
        if json:
            print_json({"mirrors": found})
            return
        print_table(
            ["NAME", "URL", "IN STEP", "NEXT", "FAILURES", "ERROR"],
            [
                [
                    one.repository,
                    one.url,
                    _when(one.synced_ms, "never"),
                    _when(one.due_ms, "now"),
                    one.failures,
                    one.error,
                ]
                for one in found
            ],
        )


@app.command()
def show(
    name: NameArgument,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Show one mirror."""
    with failing(json=json):
        from shardgit.service.mirrors import Mirrors

        found = on_store(
            server,
            data,
            local=lambda store: Mirrors(store).get(name),
            remote=lambda client: client.mirrors(name)[0],
        )
        _print(found, json=json)


@app.command()
def sync(
    name: NameArgument,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Bring a mirror in step now; through a server its maintenance does, and this waits for it."""
    with failing(json=json), progress_bar(quiet=json) as report:
        if address := server_address(server, data):
            from shardgit.operators import Operators as Client

            with Client(address) as client:
                found = _awaited(client, client.sync_mirror(name))
        else:

            def here(store: Store) -> Mirror:
                from shardgit.config import PREFIX
                from shardgit.service.mirror_credentials import Credentials
                from shardgit.service.mirror_sync import sync_mirror

                words = os.environ.get(f"{PREFIX}MIRROR_CREDENTIALS", "").split(",")
                known = Credentials.of(word.strip() for word in words if word.strip())
                return sync_mirror(store, name, known, progress=report)

            found = on_store(None, data, local=here, remote=lambda client: client.mirrors(name)[0])
        _print(found, json=json)
        if found.failures:
            raise typer.Exit(FAILED)


@app.command()
def remove(
    name: NameArgument,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Have a repository follow nobody any more: it keeps what it has, and takes pushes."""
    with failing(json=json):
        from shardgit.service.mirrors import Mirrors

        on_store(
            server,
            data,
            local=lambda store: Mirrors(store).remove(name),
            remote=lambda client: client.remove_mirror(name),
        )
        if json:
            print_json({"removed": name})
        else:
            typer.echo(f"{name} follows nobody any more")


def _awaited(client: Operators, before: Mirror) -> Mirror:
    """Wait until the server has tried anew: what it was at when it was asked may be older."""
    from shardgit.errors import Unavailable

    end = time.monotonic() + SYNC_WAIT_S
    while time.monotonic() < end:
        (now,) = client.mirrors(before.repository)
        if now.answered >= before.asked or now.asked < before.asked:  # then it follows another
            return now
        time.sleep(POLL_S)
    raise Unavailable("mirror was not tried in time; is the maintenance on?")


def _when(time_ms: int, without: str) -> str:
    if not time_ms:
        return without
    return f"{datetime.fromtimestamp(time_ms / 1_000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _print(one: Mirror, *, json: bool) -> None:
    if json:
        print_json(one)
        return
    typer.echo(f"{one.repository} follows {one.url}")
    typer.echo(f"interval   {one.interval_s} s")
    if one.refs:
        typer.echo(f"refs       {' '.join(one.refs)}")
    if one.credential:
        typer.echo(f"credential {one.credential}")
    typer.echo(f"in step    {_when(one.synced_ms, 'never')}")
    typer.echo(f"next look  {_when(one.due_ms, 'now')}")
    if one.failures:
        typer.echo(f"failures   {one.failures}, at {_when(one.tried_ms, 'never')}: {one.error}")
