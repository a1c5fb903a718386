"""Repository names."""

from __future__ import annotations

import re

from shardgit.errors import InvalidRepositoryName

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")


_SLASHES = re.compile("/{2,}")


def name_in_path(path: str) -> str:
    """Return the repository name in the path of a URL: without slashes round it, "~" and .git."""
    plain = _SLASHES.sub("/", path).strip("/").removeprefix("~/").rstrip("/")
    return plain.removesuffix(".git").rstrip("/")


def check_repository_name(name: str, *, max_bytes: int) -> None:
    """Raise InvalidRepositoryName unless the name is parts of [A-Za-z0-9._-] joined by "/".

    A part does not start with "." or "-", holds no "..", and does not end in ".git" or ".lock".
    """
    if len(name.encode()) > max_bytes:
        raise InvalidRepositoryName(
            "repository name is too long", bytes=len(name.encode()), limit=max_bytes
        )
    bad = (".git", ".lock", ".")
    if (
        not _NAME.fullmatch(name)
        or ".." in name
        or any(part.lower().endswith(bad) for part in name.split("/"))
    ):
        raise InvalidRepositoryName(
            "not a repository name; use letters, digits and . _ - in parts joined by /",
            name=name[:200],
        )
