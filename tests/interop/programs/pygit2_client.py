"""A Git client of a few verbs on pygit2 (libgit2), for the interop matrix."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pygit2

if TYPE_CHECKING:
    from collections.abc import Callable

UNSUPPORTED = 3


class Answers(pygit2.RemoteCallbacks):
    """Raises what the server refused."""

    def push_update_reference(self, refname: str, message: str | None) -> None:
        """See pygit2."""
        if message is not None:
            raise pygit2.GitError(f"{refname}: {message}")


def clone(url: str, folder: str) -> None:
    pygit2.clone_repository(url, folder)


def shallow(url: str, folder: str, depth: str) -> None:
    pygit2.clone_repository(url, folder, depth=int(depth))


def fetch(folder: str) -> None:
    pygit2.Repository(folder).remotes["origin"].fetch()


def push(folder: str, *specs: str) -> None:
    pygit2.Repository(folder).remotes["origin"].push(list(specs), callbacks=Answers())


VERBS: dict[str, Callable[..., None]] = {
    "clone": clone,
    "shallow": shallow,
    "fetch": fetch,
    "push": push,
}

if __name__ == "__main__":
    verb = VERBS.get(sys.argv[1])
    if verb is None or os.environ.get("OBJECT_FORMAT") == "sha256":
        what = {"atomic": "atomic push", "partial": "partial clone"}.get(sys.argv[1], "SHA-256")
        sys.stderr.write(f"libgit2 has no {what}\n")
        sys.exit(UNSUPPORTED)
    verb(*sys.argv[2:])
