"""What every command shares: where the store is, how to print, how to fail."""

from __future__ import annotations

import json as json_module
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardgit.errors import InvalidArgument, NotAStore, Refused, ShardgitError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.client import Client
    from shardgit.progress import Progress, Report
    from shardgit.service.store import Store

DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder of the store (SHARDGIT_DATA; else ./data).")
]
ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="HOST:PORT", help="gRPC address of a server (SHARDGIT_SERVER).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]





@contextmanager
def failing(*, json: bool = False) -> Iterator[None]:
    """Turn typed errors into one line (or one JSON object) on standard error and exit code 1."""
    try:
        yield
    except ShardgitError as error:
        if json:
            body = {"error": {"reason": error.reason, "code": error.code, "message": error.message, "facts": error.facts}}
            sys.stderr.write(json_module.dumps(body, default=str) + "\n")
        else:
            sys.stderr.write(f"shardgit: {error}\n")
        raise typer.Exit(2 if isinstance(error, _Usage) else 1) from None
    except BrokenPipeError:
        # The reader of our output is gone: nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


class _Usage(InvalidArgument):
    """The words on the command line do not fit together."""


def data_folder(data: Path | None) -> Path:
    """Return the store's folder: the flag, SHARDGIT_DATA, or ./data."""
    if data is not None:
        return data
    if given := os.environ.get("SHARDGIT_DATA"):
        return Path(given)
    return Path("data")


def server_address(server: str | None, data: Path | None) -> str | None:
    """Return the server to talk to, None when the store is opened directly. A flag beats a variable."""
    if server and data:
        raise _Usage("give --server or --data, not both")
    if server or data:
        return server
    return os.environ.get("SHARDGIT_SERVER") if "SHARDGIT_DATA" not in os.environ else None


@contextmanager
def opened(data: Path | None) -> Iterator[Store]:
    """Open the store in a folder."""
    from shardgit.node import open_store

    folder = data_folder(data)
    if data is None and "SHARDGIT_DATA" not in os.environ and not (folder / "format").exists():
        raise NotAStore("no store in ./data; give --data DIR or --server HOST:PORT, or make one: shardgit init DIR")
    with open_store(folder) as store:
        yield store


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """Connect to a server."""
    from shardgit.client import connect

    with connect(address) as client:
        yield client


def local_only(server: str | None, what: str) -> None:
    """Refuse --server for a command that works on the store's folder only."""
    if server:
        raise Refused(f"{what} works on a store's folder in this release; use --data DIR (a server may be running on it)")


def plain(value: Any) -> Any:
    """Return a value as JSON can show it: bytes as hex, dataclasses as objects."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: plain(one) for key, one in asdict(value).items()}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def print_json(value: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(json_module.dumps(plain(value), indent=2) + "\n")


def print_table(columns: list[str], rows: list[list[object]]) -> None:
    """Print rows in aligned columns, numbers to the right."""
    text = [columns, *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[n]) for row in text) for n in range(len(columns))]
    numeric = [bool(rows) and all(isinstance(row[n], int | float) for row in rows) for n in range(len(columns))]
    for row in text:
        cells = [cell.rjust(w) if number else cell.ljust(w) for cell, w, number in zip(row, widths, numeric, strict=True)]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def human_bytes(count: float) -> str:
    """Return a size as people read it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Report]:
    """Show progress on a terminal's standard error; tell nobody elsewhere."""
    from shardgit.progress import silent

    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    with Bars(
        TextColumn("{task.description:>18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as bars:
        tasks: dict[str, Any] = {}

        def report(step: Progress) -> None:
            if step.stage not in tasks:
                tasks[step.stage] = bars.add_task(step.stage, total=step.total, unit=step.unit)
            bars.update(tasks[step.stage], completed=step.done, total=step.total)

        yield report
