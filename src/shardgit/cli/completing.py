"""Words that a shell completes with: repositories, refs and shards of the store that the line names, settings."""

from __future__ import annotations

import os
import re
import signal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardgit.cli.context import reached
from shardgit.errors import ShardgitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shardgit.cli.backend import Backend

WORDS_MAX = 200  # nobody reads more
WAIT_S = 5  # a server that is away must not hold a prompt; what is loaded before does not count
_HARMLESS = re.compile(r"[\w./@+:=,%-]+")
OF_REPOSITORY = ("repo", "name", "source")


def repository_names(ctx: Any, incomplete: str) -> list[str]:
    """Return names of repositories."""
    return _asked(ctx, lambda store: (one.name for one in store.repositories(incomplete)))


def ref_names(ctx: Any, incomplete: str) -> list[str]:
    """Return full names of refs of the repository that stands before; not those that a shell reads as more."""
    name = next((ctx.params[key] for key in OF_REPOSITORY if ctx.params.get(key)), None)
    if name is None:
        return []
    found = _asked(
        ctx,
        lambda store: (
            row.name.decode("utf-8", "replace") for row in store.refs(name, incomplete.encode())
        ),
    )
    head = ["HEAD"] if "HEAD".startswith(incomplete) else []
    # Whoever pushes names refs, and bash takes a word as it stands: $(...) in one would be run.
    return [*head, *filter(_HARMLESS.fullmatch, found)]


def shard_numbers(ctx: Any, incomplete: str) -> list[str]:
    """Return numbers of shards."""
    found = _asked(ctx, lambda store: (str(one.id) for one in store.shards()))
    return [number for number in found if number.startswith(incomplete)]


def setting_names(incomplete: str) -> list[str]:
    """Return keys of settings of a repository."""
    from shardgit.service.setting_keys import known_keys

    return [key for key in known_keys() if key.startswith(incomplete)]


def one_of(*words: str) -> Callable[[str], list[str]]:
    """Return what completes with some words."""

    def found(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return found


def _asked(ctx: Any, ask: Callable[[Backend], Iterable[str]]) -> list[str]:
    """Ask the store; nothing where there is none, where it does not answer soon, or where it refuses."""
    from shardgit.cli import local, remote  # noqa: F401 - loaded before the clock runs

    server, data = ctx.params.get("server"), ctx.params.get("data")
    # The process completes one word and ends, so it may as well end now.
    before = signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
    signal.alarm(WAIT_S)
    try:
        # A shell leaves ~ as it is in a line that is not run yet.
        folder = Path(data).expanduser() if data else None
        with reached(server, folder) as store:
            return list(islice(ask(store), WORDS_MAX))
    except (ShardgitError, OSError):
        return []
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
