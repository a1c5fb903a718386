"""shardgit repo import-tree: all Git repositories below a folder."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.context import (
    FAILED,
    DataOption,
    JsonOption,
    ServerOption,
    UsageRefused,
    failing,
    opened_here,
)
from shardgit.cli.output import plain, plural, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from shardgit.service.tree_import import TreeImported

QUIET = frozenset({"unchanged"})


def import_tree(  # noqa: PLR0913, PLR0917
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with Git repositories somewhere below.")
    ],
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="TEXT", help="Before all names, such as team/.")
    ] = "",
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", min=0, max=64, help="Side by side; 0: two a core.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Also undo what was pushed since the last import."),
    ] = False,
    receipt: Annotated[
        Path | None,
        typer.Option("--receipt", metavar="FILE", help="Write what became of each as JSON."),
    ] = None,
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Import every Git repository below a folder, bare or with a work tree, under its path without .git.

    One that has the source's refs already is passed over, so a run that was stopped is simply begun again. One that
    borrows objects from another below DIR (alternates) becomes its fork. What fails is told at the end, with exit code
    1; the others are there. Works on the store's folder, also while a server runs on it.

    \b
    Examples:
      shardgit repo import-tree /srv/git --dry-run
      shardgit repo import-tree /srv/git --prefix team/ --receipt import.json
    """
    with failing(json=json):
        _check(receipt)
    with failing(json=json), opened_here(server, data, "repo import-tree") as store:
        from shardgit.service.tree_import import TreeOptions
        from shardgit.service.tree_import import import_tree as run

        options = TreeOptions(prefix, jobs, dry_run, overwrite)
        with progress_bar(quiet=json) as report:
            done = run(store, folder, options, progress=report)
        if receipt is not None:
            _write(receipt, done)
        if json:
            print_json({**asdict(done), "dry_run": dry_run})
        else:
            _print(done, dry_run=dry_run)
        if not done.clean:
            raise typer.Exit(FAILED)


def _print(done: TreeImported, *, dry_run: bool) -> None:
    print_table(
        ["NAME", "STATE", "REFS", "OBJECTS", "WHY"],
        [
            [
                one.name,
                f"fork of {one.base}" if one.base and one.state == "forked" else one.state,
                one.refs,
                one.objects,
                one.error,
            ]
            for one in done.entries
            if one.state not in QUIET
        ],
    )
    said = ", ".join(f"{count:,} {state}" for state, count in sorted(done.counts.items()))
    what = "would be done" if dry_run else f"{done.objects:,} new objects"
    count = plural(len(done.entries), "repository").replace("repositorys", "repositories")
    rate = len(done.entries) / done.seconds if done.seconds else 0.0
    typer.echo(f"{count}: {said or 'none'}; {what} in {done.seconds:.1f} s ({rate:.0f}/s)")


def _check(receipt: Path | None) -> None:
    """Refuse a receipt that could not be written once all is done."""
    if receipt is None:
        return
    folder = receipt.parent
    if receipt.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise UsageRefused("receipt cannot be written there", file=str(receipt))


def _write(file: Path, done: TreeImported) -> None:
    """Write a receipt: whole or not at all."""
    from json import dumps

    made = file.with_name(f".{file.name}.{os.getpid()}")
    made.write_text(dumps(plain(asdict(done)), indent=1) + "\n", encoding="utf-8")
    made.replace(file)
