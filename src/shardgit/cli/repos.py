"""shardgit repo: make, list, show, rename, fork, delete, import, export and verify repositories."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.compacting import compact
from shardgit.cli.completing import one_of, repository_names, setting_names
from shardgit.cli.context import (
    FAILED,
    DataOption,
    JsonOption,
    ServerOption,
    UsageRefused,
    failing,
    opened_here,
    reached,
)
from shardgit.cli.operations import EagerOption, ThrottleOption, run_operation, speed
from shardgit.cli.output import (
    human_bytes,
    plural,
    print_json,
    print_json_rows,
    print_table,
    progress_bar,
)
from shardgit.cli.trees import import_tree

if TYPE_CHECKING:
    from shardgit.operate.verify import VerifyReport
    from shardgit.service.configuring import SettingsView
    from shardgit.service.explained import CloneExplained
    from shardgit.service.repositories import RepositoryInfo

TOLD_ON_OUTPUT = frozenset({"dangling", "missing", "broken_link", "unborn"})  # as git fsck does
app = typer.Typer(help="Make, import, export and look after repositories.", no_args_is_help=True)
app.command()(compact)
app.command("import-tree")(import_tree)
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Repository name, such as team/project.",
        autocompletion=repository_names,
    ),
]
NewNameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Repository name, such as team/project.")
]


@app.command()
def create(
    name: NewNameArgument,
    object_format: Annotated[
        str, typer.Option(help="sha1 or sha256.", autocompletion=one_of("sha1", "sha256"))
    ] = "sha1",
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Make an empty repository; its HEAD is refs/heads/main.

    \b
    Example:
      shardgit repo create team/project
    """
    from shardgit.oid import HashKind

    with failing(json=json):
        kind = HashKind.from_git_name(object_format)
        with reached(server, data) as store:
            _print(store.create(name, kind), json=json, text=f"made repository {name}")


@app.command("list")
def list_(
    prefix: Annotated[str, typer.Option(help="Only names that start so.")] = "",
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """List repositories by name."""
    with failing(json=json), reached(server, data) as store:
        found = store.repositories(prefix)
        if json:
            print_json_rows("repositories", map(_plain, found))
        else:
            rows: list[list[object]] = [
                [one.name, one.hash_kind.git_name, one.head] for one in found
            ]
            print_table(["NAME", "FORMAT", "HEAD"], rows)


@app.command()
def show(
    name: NameArgument,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Show a repository: counts and sizes."""
    with failing(json=json), reached(server, data) as store:
        from shardgit.service.usages import NOT_COUNTED

        info, stats = store.repository(name), store.stats(name)
        if json:
            print_json({**_plain(info), **asdict(stats)})
            return
        typer.echo(f"{info.name}  ({info.hash_kind.git_name}, HEAD {info.head})")
        typer.echo(f"objects     {stats.objects:,} ({stats.reachable_objects:,} reachable)")
        if stats.shallow_commits:
            typer.echo(f"shallow     history ends at {stats.shallow_commits:,} commits")
        typer.echo(f"refs        {stats.refs:,}")
        stored = human_bytes(stats.stored_bytes)
        typer.echo(
            f"stored      {stored} in {plural(stats.segments, 'segment')} of {plural(stats.runs, 'run')}"
        )
        typer.echo(f"generation  {stats.generation}")
        if stats.used != NOT_COUNTED:
            of_bytes, of_objects = stats.used.bytes_max, stats.used.objects_max
            typer.echo(
                f"quota       {human_bytes(stats.used.bytes)}"
                f"{f' of {human_bytes(of_bytes)}' if of_bytes else ''}, {stats.used.objects:,} objects"
                f"{f' of {of_objects:,}' if of_objects else ''}"
            )
        if stats.read_only:
            typer.echo(stats.read_only)


@app.command("explain-clone")
def explain_clone(
    name: NameArgument,
    depth: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="As git clone --depth; 0: all.")
    ] = 0,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="SPEC", help="As git clone --filter, such as blob:none."),
    ] = None,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Tell what a clone is made of, where its time goes, and what would make it cheaper.

    All the work of a clone is done, with its bytes sent nowhere. Against --server it is done there, with what that
    process has in memory; run it twice to see what the first clone after a start costs, and the next.

    \b
    Example:
      shardgit repo explain-clone demo --server 127.0.0.1:7420
      shardgit repo explain-clone demo --filter blob:none
    """
    with failing(json=json), reached(server, data) as store:
        made = store.explain_clone(name, depth, filters or ())
        if json:
            print_json({**asdict(made), "seconds": made.seconds})
        else:
            _show_explained(made)


def _show_explained(made: CloneExplained) -> None:
    known = "known" if made.reach_known else "walked"
    typer.echo(
        f"refs      {made.refs:,} in {human_bytes(made.refs_bytes)}, their reach was {known}"
    )
    typer.echo(f"objects   {made.objects:,} of the {made.pool_objects:,} that the pool has")
    typer.echo(f"pack      {human_bytes(made.pack_bytes)}")
    parts = (
        (made.whole_bytes, f"as stored, {plural(made.whole_segments, 'segment')}"),
        (made.picked_bytes, f"picked out of {plural(made.picked_segments, 'segment')}"),
        (made.made_bytes, f"made anew, {plural(made.made_objects, 'object')}"),
    )
    for size, words in parts:
        if size:
            share = size / max(made.pack_bytes, 1)
            typer.echo(f"          {share:5.1%} {human_bytes(size)} {words}")
    if made.recents:
        typer.echo(
            f"unsettled {human_bytes(made.recents_bytes)} of pushes, {made.recents:,} of them"
        )
    rows: list[list[object]] = [
        [stage.name, f"{stage.seconds * 1_000:.1f} ms", f"{stage.cpu_s * 1_000:.1f} ms"]
        for stage in made.stages
    ]
    print_table(["STAGE", "TIME", "CPU"], rows)
    for sentence in made.advice:
        typer.echo(f"- {sentence}")


@app.command()
def rename(
    name: NameArgument,
    new_name: Annotated[str, typer.Argument(metavar="NEW-NAME", help="The name from now on.")],
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Give a repository another name."""
    with failing(json=json), reached(server, data) as store:
        _print(store.rename(name, new_name), json=json, text=f"renamed {name} to {new_name}")


@app.command()
def fork(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Name of a repository.", autocompletion=repository_names
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Name of the new repository.")],
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Make a repository with the refs of another, at once and without copying objects.

    The fork keeps what SOURCE hides hidden; all other settings begin at their defaults.

    \b
    Example:
      shardgit repo fork team/project ann/project
    """
    with failing(json=json), reached(server, data) as store:
        _print(store.fork(source, target), json=json, text=f"forked {source} to {target}")


@app.command()
def delete(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Delete a repository. It can be brought back (repo undelete) until gc drops it, 14 days later."""
    with failing(json=json), reached(server, data) as store:
        if not yes:
            if json or not sys.stdin.isatty():
                raise UsageRefused("deleting needs --yes where nobody can be asked")
            store.repository(name)
            typer.confirm(f"delete repository {name}?", abort=True, err=True)
        store.delete(name)
        if json:
            print_json({"deleted": name})
        else:
            typer.echo(f"deleted repository {name}")


@app.command()
def config(
    name: NameArgument,
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY", help="Such as receive.deny_deletes.", autocompletion=setting_names
        ),
    ] = None,
    value: Annotated[str | None, typer.Argument(metavar="VALUE", help="What it is to be.")] = None,
    unset: Annotated[bool, typer.Option("--unset", help="Back to the default.")] = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Show or change settings; docs/settings.md lists them.

    \b
    Examples:
      shardgit repo config demo
      shardgit repo config demo receive.deny_non_fast_forwards true
      shardgit repo config demo receive.max_push_bytes 500m
      shardgit repo config demo receive.max_push_bytes --unset
    """
    with failing(json=json):
        from shardgit.service.setting_keys import parse_value, type_of

        if unset and (key is None or value is not None):
            raise UsageRefused("--unset takes a key and no value")
        if key is not None:
            type_of(key)
        with reached(server, data) as store:
            if key is not None and (unset or value is not None):
                new = None if value is None else parse_value(key, value)
                view = store.update_settings(name, {key: new})
            else:
                view = store.settings(name)
            _print_settings(view, key, json=json, quiet=unset or value is not None)


@app.command("import")
def import_(
    name: NameArgument,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Path of any Git repository, or a URL: http, https, ssh, git or file.",
        ),
    ],
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Also undo what was pushed since the last import."),
    ] = False,
    detect: Annotated[
        bool,
        typer.Option("--detect-collisions", help="Refuse objects made to have another's SHA-1."),
    ] = False,
    public_only: Annotated[
        bool,
        typer.Option(
            "--public-only",
            help="Refuse a source on this machine or in a private network: for URLs that others name.",
        ),
    ] = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Import a Git repository; importing again brings what is new.

    The repository is made when it is missing. Afterwards its refs are those of the source; one that
    was pushed to since its last import is left alone. Works on the store's folder, also while a
    server runs on it.

    \b
    Examples:
      shardgit repo import demo ~/src/project
      shardgit repo import demo https://example.org/project.git --data ./data
    """
    with failing(json=json), opened_here(server, data, "repo import") as store:
        from shardgit.service.importing import import_repository

        with progress_bar(quiet=json) as report:
            done = import_repository(
                store,
                name,
                source,
                progress=report,
                overwrite=overwrite,
                detect=detect or None,
                private=not public_only,
            )
        if json:
            print_json(done)
            return
        typer.echo(
            f"imported {done.objects:,} new objects ({human_bytes(done.stored_bytes)} stored), "
            f"{done.refs:,} refs into {name} in {done.seconds:.1f} s"
        )
        if done.objects_unreachable:
            typer.echo(f"left out {done.objects_unreachable:,} objects that no ref reaches")


@app.command()
def export(
    name: NameArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The new bare repository; must not exist.")
    ],
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Write a repository as a bare Git repository, every object checked.

    \b
    Example:
      shardgit repo export demo demo.git && git -C demo.git fsck --strict
    """
    with failing(json=json), opened_here(server, data, "repo export") as store:
        from shardgit.service.exporting import export_repository

        with progress_bar(quiet=json) as report:
            done = export_repository(store, name, folder, progress=report)
        if json:
            print_json(done)
            return
        typer.echo(
            f"exported {done.objects:,} objects ({human_bytes(done.pack_bytes)}), "
            f"{done.refs:,} refs to {folder} in {done.seconds:.1f} s"
        )


@app.command()
def verify(
    name: NameArgument,
    throttle: ThrottleOption = None,
    eager: EagerOption = False,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Check one repository as git fsck does, and what holds it; exit code 1 on errors.

    Every object is made and its id compared, all links, refs and the ref log are followed. The settings fsck.* of the
    repository say which messages are errors. Objects that nothing reaches are told as dangling.
    """
    with failing(json=json):
        from shardgit.operate.verify import verify_repository

        pace = speed(throttle, eager=eager)
        done = run_operation(
            server,
            data,
            local=lambda store, control: verify_repository(store, name, control=control),
            remote=lambda client, report: client.verify_repository(
                name, pace=pace.message(), report=report
            ),
            show=_show_verified,
            json=json,
            pace=pace,
        )
        if not done.clean:
            raise typer.Exit(FAILED)


def _show_verified(done: VerifyReport) -> None:
    for one in done.findings:
        typer.echo(one.line, err=one.kind not in TOLD_ON_OUTPUT)
    counts = f"{done.objects:,} objects, {done.refs:,} refs, {done.log_entries:,} log entries"
    if not done.counts:
        typer.echo(f"{done.repository}: {counts} are whole ({done.seconds:.1f} s)")
        return
    said = ", ".join(f"{n:,} {word}s" for word, n in sorted(done.counts.items()))
    typer.echo(f"{done.repository}: {counts}: {said} ({done.seconds:.1f} s)")


def _print_settings(view: SettingsView, key: str | None, *, json: bool, quiet: bool) -> None:
    if key is None:
        from shardgit.service.setting_keys import without_secrets

        values = without_secrets(view.values)
        if json:
            print_json({"settings": values, "changed": view.changed})
        else:
            rows: list[list[object]] = [
                [each, _shown(value), "*" if each in view.changed else ""]
                for each, value in values.items()
            ]
            print_table(["KEY", "VALUE", ""], rows)
        return
    table, _, entry = key.rpartition(".")
    value = view.values[key] if key in view.values else view.values[table].get(entry)
    if json:
        print_json({key: value})
    elif not quiet:
        typer.echo(_shown(value) if value is not None else "")


def _shown(value: object) -> str:
    """Return a value as it is typed."""
    if isinstance(value, str):
        return value
    return json_module.dumps(value, ensure_ascii=False)


def _plain(info: RepositoryInfo) -> dict[str, object]:
    return {
        "id": info.id,
        "name": info.name,
        "object_format": info.hash_kind.git_name,
        "created_ms": info.created_ms,
        "head": info.head,
        "forked_from": info.forked_from,
    }


def _print(info: RepositoryInfo, *, json: bool, text: str) -> None:
    if json:
        print_json(_plain(info))
    else:
        typer.echo(text)
