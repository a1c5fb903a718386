"""shardgit token: who may come in over HTTP and gRPC, and what they may do."""

from __future__ import annotations

import getpass
import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from shardgit.cli.context import (
    DataOption,
    JsonOption,
    ServerOption,
    UsageRefused,
    failing,
    opened_here,
)
from shardgit.cli.output import print_json, print_table

app = typer.Typer(
    help="Make tokens for HTTP and gRPC, list them, revoke them.", no_args_is_help=True
)
READ_HELP = "Repositories that may be read: * within a part of a name, ** for parts too; repeat."
WRITE_HELP = "Repositories that may be read and written; repeat."
ADMIN_HELP = "Everything, on the store too."
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhdw]|y)")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}


@app.command()
def create(
    read: Annotated[list[str] | None, typer.Option(metavar="GLOB", help=READ_HELP)] = None,
    write: Annotated[list[str] | None, typer.Option(metavar="GLOB", help=WRITE_HELP)] = None,
    admin: Annotated[bool, typer.Option("--admin", help=ADMIN_HELP)] = False,
    expires: Annotated[
        str,
        typer.Option(metavar="DURATION", help="How long it holds: 12h, 30d, 1y; else for ever."),
    ] = "",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Whom it stands for in logs; else your login.")
    ] = "",
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Make a token. It is printed last, once: only its hash is kept.

    Git takes it as the password, whatever the user name; gRPC as "authorization: Bearer".

    \b
    Examples:
      shardgit token create --read 'team/**' --expires 30d --name ci
      shardgit token create --write 'team/app' --write 'team/lib-*'
      shardgit token create --admin --name ops
    """
    with failing(json=json), opened_here(server, data, "token") as store:
        from shardgit.service.access import Rights
        from shardgit.service.tokens import Tokens

        rights = Rights(tuple(read or ()), tuple(write or ()), admin)
        user = getpass.getuser()
        known, token = Tokens(store.journal).create(
            name or user, rights, expires_s=seconds_of(expires) if expires else None, by=user
        )
        if json:
            print_json({"token": token, **asdict(known)})
            return
        typer.echo(f"{known.id}: {known.name} may {allowed(known)}, {_ends(known.expires_ms)}")
        typer.echo(token)


@app.command("list")
def list_(data: DataOption = None, server: ServerOption = None, json: JsonOption = False) -> None:
    """List the tokens, without their secrets."""
    with failing(json=json), opened_here(server, data, "token") as store:
        from shardgit.service.tokens import Tokens

        found = Tokens(store.journal).all()
        if json:
            print_json({"tokens": [asdict(one) for one in found]})
            return
        print_table(
            ["ID", "NAME", "MAY", "MADE", "BY", "ENDS"],
            [
                [
                    one.id,
                    one.name,
                    allowed(one),
                    _day(one.created_ms),
                    one.by,
                    _ends(one.expires_ms),
                ]
                for one in found
            ],
        )


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="An id, a name, or a whole token.")],
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Revoke a token, or all tokens of a name, from the next request on."""
    with failing(json=json), opened_here(server, data, "token") as store:
        from shardgit.service.tokens import Tokens

        gone = Tokens(store.journal).revoke(token)
        if json:
            print_json({"tokens": [asdict(one) for one in gone]})
            return
        for one in gone:
            typer.echo(f"{one.id} ({one.name}) lets nobody in any more")


def seconds_of(text: str) -> int:
    """Return the seconds in a duration such as 90m, 12h, 30d, 2w or 1y."""
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None:
        raise UsageRefused("not a duration; say 90m, 12h, 30d, 2w or 1y", duration=text[:40])
    return int(found[1]) * _SECONDS[found[2]]


def allowed(one: object) -> str:
    """Return in words what a token or rights allow."""
    read, write, admin = (getattr(one, key) for key in ("read", "write", "admin"))
    if admin:
        return "do everything"
    words = [f"write {' '.join(write)}"] if write else []
    return "; ".join([f"read {' '.join(read)}", *words] if read else words)


def _day(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d}"


def _ends(time_ms: int) -> str:
    if not time_ms:
        return "for ever"
    return f"until {datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
