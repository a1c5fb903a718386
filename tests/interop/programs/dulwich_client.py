"""A Git client of a few verbs on dulwich, for the interop matrix."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from dulwich import porcelain
from dulwich.repo import Repo

if TYPE_CHECKING:
    from collections.abc import Callable

UNSUPPORTED = 3
SILENT = io.BytesIO()


def unsupported(what: str) -> None:
    """End with the code that says so."""
    sys.stderr.write(f"dulwich has no {what}\n")
    sys.exit(UNSUPPORTED)


def clone(url: str, folder: str) -> None:
    porcelain.clone(url, folder, errstream=SILENT)


def shallow(url: str, folder: str, depth: str) -> None:
    porcelain.clone(url, folder, depth=int(depth), errstream=SILENT)


def partial(url: str, folder: str) -> None:
    porcelain.clone(url, folder, checkout=False, filter_spec="blob:none", errstream=SILENT)


def fetch(folder: str) -> None:
    with Repo(folder) as repo:
        porcelain.fetch(repo, "origin", errstream=SILENT)


def push(folder: str, *specs: str) -> None:
    with Repo(folder) as repo:
        porcelain.push(
            repo,
            "origin",
            list(specs),
            errstream=SILENT,
            outstream=sys.stdout.buffer,
        )


VERBS: dict[str, Callable[..., None]] = {
    "clone": clone,
    "shallow": shallow,
    "partial": partial,
    "fetch": fetch,
    "push": push,
}

if __name__ == "__main__":
    verb = VERBS.get(sys.argv[1])
    if verb is None:
        unsupported(f"{sys.argv[1]} push" if sys.argv[1] == "atomic" else sys.argv[1])
    else:
        verb(*sys.argv[2:])
