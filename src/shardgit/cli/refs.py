"""shardgit ref: list, get, change, log and restore refs."""

from __future__ import annotations

import os
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.completing import ref_names, repository_names
from shardgit.cli.context import (
    DataOption,
    JsonOption,
    ServerOption,
    UsageRefused,
    failing,
    reached,
)
from shardgit.cli.output import print_json, print_json_rows, print_line
from shardgit.cli.when import split_when
from shardgit.errors import InvalidArgument
from shardgit.oid import ObjectId
from shardgit.refs.update import ANY, RefUpdate

if TYPE_CHECKING:
    from shardgit.cli.backend import Backend, ChangeRow, LogLine, RefRow
    from shardgit.refs.update import Old

app = typer.Typer(help="Read and change refs, and look into their log.", no_args_is_help=True)
RepoArgument = Annotated[
    str,
    typer.Argument(
        metavar="REPO",
        help="Repository name, such as team/project.",
        autocompletion=repository_names,
    ),
]
RefArgument = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="Full name, such as refs/heads/main, or HEAD.",
        autocompletion=ref_names,
    ),
]


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
    name: RefArgument,
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
        found = store.ref(repo, _full(name))
        if json:
            print_json(_plain(found))
        elif found.target is not None:
            typer.echo(found.target.hex())
        else:
            print_line(f"unborn, points to {_text(found.symbolic or b'')}")


@app.command()
def update(  # noqa: PLR0913, PLR0917 - options of a command
    repo: RepoArgument,
    ref: RefArgument,
    new: Annotated[
        str | None,
        typer.Argument(
            metavar="NEW",
            help="Id or revision; with --symbolic a ref; none with --delete.",
            show_default=False,
        ),
    ] = None,
    old: Annotated[
        str | None,
        typer.Argument(
            metavar="OLD",
            help="What it must be now: a full id, all zeros for none, or a ref with --symbolic.",
            show_default=False,
        ),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", "-d", help="Delete the ref.")] = False,
    symbolic: Annotated[
        bool, typer.Option("--symbolic", help="Let the ref point to another.")
    ] = False,
    message: Annotated[str, typer.Option("--message", "-m", help="For the log.")] = "",
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Change one ref, if OLD is what it is now.

    \b
    Examples:
      shardgit ref update demo refs/heads/release main~2
      shardgit ref update demo HEAD refs/heads/trunk --symbolic
      shardgit ref update demo refs/heads/old --delete
    """
    with failing(json=json):
        if delete and (symbolic or old is not None):
            raise UsageRefused("--delete takes the ref, and at most its old value")
        if not delete and new is None:
            raise UsageRefused("give what the ref shall be, or --delete")
        with reached(server, data) as store:
            if delete:
                change = RefUpdate(_full(ref), _old(new), None)
            elif symbolic:
                change = RefUpdate(
                    _full(ref),
                    ANY,
                    None,
                    symbolic=os.fsencode(new or ""),
                    old_symbolic=os.fsencode(old) if old is not None else None,
                )
            else:
                change = RefUpdate(_full(ref), _old(old), _target(store, repo, new or ""))
            store.update_ref(repo, change, message)
            found = None if delete else store.ref(repo, os.fsencode(ref))
        if json:
            print_json(_plain(found) if found else {"deleted": ref})
        elif found is None:
            print_line(f"deleted {ref}")
        else:
            print_line(f"{ref} is now {_value(found.target, found.symbolic if symbolic else None)}")


@app.command()
def log(
    repo: RepoArgument,
    ref: Annotated[
        str | None,
        typer.Argument(
            metavar="REF", help="Its full name; all refs without.", autocompletion=ref_names
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="Entries; 0: all.")] = 0,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Show who changed refs when and why, newest first: of one ref, or of all.

    The number in REF@{N} is what `ref restore` takes.

    \b
    Example:
      shardgit ref log demo refs/heads/main -n 5
    """
    with failing(json=json), reached(server, data) as store:
        rows = store.ref_log(repo, _full(ref) if ref else None, limit or None)
        if json:
            print_json_rows("entries", map(_plain_entry, rows))
            return
        for number, entry in enumerate(rows):
            said = f"{_time(entry.time_ms)} {entry.actor or '-'}: {entry.message}"
            if ref:
                change = entry.changes[0]
                value = _value(change.new, change.new_symbolic)
                print_line(f"{value} {ref}@{{{number}}}: {said}")
                continue
            print_line(f"{entry.sequence} {said}")
            for change in entry.changes:
                before = _value(change.old, change.old_symbolic)
                after = _value(change.new, change.new_symbolic)
                print_line(f"    {before} {after} {_text(change.name)}")
            if entry.change_count > len(entry.changes):
                print_line(f"    and {entry.change_count - len(entry.changes):,} more")


@app.command()
def restore(
    repo: RepoArgument,
    moment: Annotated[
        str,
        typer.Argument(
            metavar="REF@{MOMENT}", help="A number of moves (see ref log) or a time, as git has it."
        ),
    ],
    message: Annotated[str, typer.Option("--message", "-m", help="For the log.")] = "",
    override: Annotated[
        bool,
        typer.Option("--override", help="Although the repository's rules or hooks forbid it."),
    ] = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Make a ref again what it was, also one that was deleted.

    Protected refs stay protected, as from a push, unless they are overridden.

    \b
    Examples:
      shardgit ref restore demo 'refs/heads/main@{1}'
      shardgit ref restore demo 'refs/heads/main@{2.hours.ago}'
      shardgit ref restore demo 'refs/heads/gone@{2024-12-31 18:00}'
    """
    with failing(json=json):
        name, when = split_when(moment, datetime.now().astimezone())
        with reached(server, data) as store:
            said = message or f"restore {moment}"
            change = store.restore_ref(repo, _full(name), when, said, override=override)
        if json:
            print_json(_plain_change(change))
        else:
            print_line(f"{name} is again {_value(change.new, change.new_symbolic)}")


def _full(ref: str) -> bytes:
    """Return a ref's full name as the store has it."""
    if ref != "HEAD" and not ref.startswith("refs/"):
        raise UsageRefused(
            "not a full ref name; write refs/heads/NAME, refs/tags/NAME or HEAD", ref=ref
        )
    return os.fsencode(ref)


def _old(text: str | None) -> ObjectId | Old | None:
    """Return the id in a text; None for zeros: there must be no ref."""
    if text is None:
        return ANY
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) not in (20, 32):
        raise InvalidArgument("an old value is a full id", value=text[:100])
    return ObjectId(raw) if any(raw) else None


def _target(store: Backend, repo: str, text: str) -> ObjectId:
    row, _ = store.open(repo, text)
    return row.id


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000).astimezone().isoformat(" ", "seconds")


def _value(oid: ObjectId | None, symbolic: bytes | None) -> str:
    return _text(symbolic) if symbolic is not None else oid.hex() if oid else "-"


def _plain_change(change: ChangeRow) -> dict[str, str | None]:
    return {
        "name": change.name.decode("utf-8", "replace"),
        "old": change.old.hex() if change.old else None,
        "new": change.new.hex() if change.new else None,
        "old_symbolic": change.old_symbolic.decode("utf-8", "replace")
        if change.old_symbolic
        else None,
        "new_symbolic": change.new_symbolic.decode("utf-8", "replace")
        if change.new_symbolic
        else None,
    }


def _plain_entry(entry: LogLine) -> dict[str, object]:
    return {
        "sequence": entry.sequence,
        "time_ms": entry.time_ms,
        "actor": entry.actor,
        "message": entry.message,
        "address": entry.address,
        "change_count": entry.change_count,
        "changes": [_plain_change(change) for change in entry.changes],
    }


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _plain(ref: RefRow) -> dict[str, str | None]:
    return {
        "name": ref.name.decode("utf-8", "replace"),
        "target": ref.target.hex() if ref.target else None,
        "peeled": ref.peeled.hex() if ref.peeled else None,
        "symbolic": ref.symbolic.decode("utf-8", "replace") if ref.symbolic else None,
    }
