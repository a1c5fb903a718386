"""What every command shares: its options, where the store is, how to fail."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.errors import InvalidArgument, NotAStore, Refused, ShardgitError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.cli.backend import Backend
    from shardgit.service.store import Store

DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Folder of the store (SHARDGIT_DATA; else ./data)."),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        help="gRPC address of a server (SHARDGIT_SERVER; grpcs://HOST:PORT for TLS; SHARDGIT_TOKEN).",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DONE, FAILED, USAGE = 0, 1, 2
# Commands that change nothing.
READING = frozenset(
    (
        "list",
        "show",
        "get",
        "log",
        "stats",
        "status",
        "plan",
        "verify",
        "deleted",
        "export",
        "bench",
    )
)


class UsageRefused(InvalidArgument):
    """The words on the command line do not fit together."""


@contextmanager
def failing(*, json: bool = False) -> Iterator[None]:
    """Turn what goes wrong into one line (or JSON object) on standard error and an exit code."""
    try:
        yield
        sys.stdout.flush()
    except ShardgitError as error:
        _tell(error, json=json)
        raise typer.Exit(USAGE if isinstance(error, UsageRefused) else FAILED) from None
    except BrokenPipeError:
        # The reader of our output is gone: nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        # Threads end their step first; a second ctrl-C does not wait for them.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        sys.stderr.write("shardgit: interrupted\n")
        raise typer.Exit(FAILED) from None
    except OSError as cause:
        facts = {"path": cause.filename} if cause.filename else {}
        _tell(ShardgitError(cause.strerror or str(cause), **facts), json=json)
        raise typer.Exit(FAILED) from None


def _tell(error: ShardgitError, *, json: bool) -> None:
    if not json:
        sys.stderr.write(f"shardgit: {' '.join(str(error).split())}\n")
        return
    from json import dumps

    facts = {"code": error.code, "message": error.message, "facts": error.facts}
    sys.stderr.write(dumps({"error": {"reason": error.reason, **facts}}, default=str) + "\n")


def data_folder(data: Path | None) -> Path:
    """Return the store's folder: the flag, SHARDGIT_DATA, or ./data when that is a store."""
    given = data or (Path(text) if (text := os.environ.get("SHARDGIT_DATA")) else None)
    if given is not None:
        return given
    from shardgit.opening import is_store

    if not is_store(Path("data")):
        raise NotAStore(
            "no store in ./data; give --data DIR or --server HOST:PORT, or make one:"
            " shardgit init DIR"
        )
    return Path("data")


def server_address(server: str | None, data: Path | None) -> str | None:
    """Return the server to talk to, None to open the store directly. Flags beat variables."""
    if server and data:
        raise UsageRefused("give --server or --data, not both")
    if server or data:
        return server
    if os.environ.get("SHARDGIT_SERVER") and os.environ.get("SHARDGIT_DATA"):
        raise UsageRefused(
            "SHARDGIT_SERVER and SHARDGIT_DATA are both set; give --server or --data"
        )
    return os.environ.get("SHARDGIT_SERVER") or None


@contextmanager
def reached(server: str | None, data: Path | None) -> Iterator[Backend]:
    """Return the store, through a server or directly."""
    if address := server_address(server, data):
        from shardgit.addresses import split_address
        from shardgit.calling import from_environment, split_target
        from shardgit.cli.remote import RemoteBackend
        from shardgit.client import connect

        if not address.startswith("unix:"):  # as hooks are given
            split_address(split_target(address)[0], "server")
        with connect(address, calling=from_environment()) as client:
            yield RemoteBackend(client)
    else:
        from shardgit.cli.local import LocalBackend

        with opened(data) as store:
            yield LocalBackend(store)


@contextmanager
def opened_here(server: str | None, data: Path | None, what: str) -> Iterator[Store]:
    """Open the store for a command that works on its folder only; --server is refused."""
    if server_address(server, data):
        raise Refused(
            f"{what} works on the store's folder in this release; use --data DIR,"
            " also while a server runs on it"
        )
    with opened(data) as store:
        yield store


@contextmanager
def opened(data: Path | None) -> Iterator[Store]:
    """Open the store in a folder."""
    folder = data_folder(data)
    from shardgit import telemetry
    from shardgit.config import PREFIX, check_detection
    from shardgit.opening import open_folder

    telemetry.configure(level="warning")  # to standard error; the default would be our output
    # What would be looked for by a server of the store is looked for here.
    detection = check_detection(os.environ.get(f"{PREFIX}DETECT_COLLISIONS", "push"))
    with open_folder(folder, detect_collisions=detection) as made, _audited():
        yield made.store


@contextmanager
def _audited() -> Iterator[None]:
    """Leave a line in the audit log that SHARDGIT_AUDIT_LOG names, unless the command only reads."""
    file = os.environ.get("SHARDGIT_AUDIT_LOG")
    words = [word for word in sys.argv[1:] if not word.startswith("-")][:3]
    if not file or READING & set(words[:2]):
        yield
        return
    import getpass

    from shardgit.service.access import trusted
    from shardgit.service.audit import Audit

    code = "OK"
    try:
        yield
    except ShardgitError as error:
        code = error.code
        raise
    except BaseException:
        code = "CANCELLED"
        raise
    finally:
        repository = words[2] if words[0] in ("repo", "ref", "object") and len(words) > 2 else None
        what = " ".join(words[:2])
        Audit(Path(file)).write(what, trusted(getpass.getuser()), repository, code, edge="cli")
