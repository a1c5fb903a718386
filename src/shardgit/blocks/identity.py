"""A shard's identity file: whose it is, and in which folder its environment lies. See docs/formats/store.md."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from shardgit import faultpoints
from shardgit.errors import DataLoss, Refused, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

IDENTITY_FILE = "shard.json"
ENVIRONMENT_PREFIX = "env-"
NO_MARK = (0, 0)  # of a folder without an identity file
_ENVIRONMENT = re.compile(r"env-[0-9a-f]{16}")


def write_identity(path: Path, store_id: str, number: int, *, environment: str = "") -> None:
    """Write a shard's identity file, durably, in one step."""
    facts: dict[str, Any] = {"store": store_id, "shard": number}
    if environment:
        facts["environment"] = environment
    write_durably(path / IDENTITY_FILE, json.dumps(facts) + "\n")


def check_identity(path: Path, store_id: str, number: int) -> None:
    """Refuse a shard folder that is missing or belongs to another store or number."""
    facts = read_identity(path)
    if facts is None:
        raise Refused("shard is not there; is its disk mounted?", shard=number, path=str(path))
    facts.pop("environment", None)
    if facts != {"store": store_id, "shard": number}:
        raise Refused("folder belongs to another shard or store", shard=number, path=str(path))


def environment_of(path: Path) -> Path:
    """Return the folder of a shard's environment: the shard's own until it was compacted, or without identity file.

    Errors: Unavailable and DataLoss when there is an identity file that does not tell.
    """
    return environment_by(path, _facts(path) or {})


def environment_by(path: Path, facts: dict[str, Any]) -> Path:
    """Return the folder of the environment that the facts of a shard's identity file name."""
    name = facts.get("environment")
    if name is None:
        return path
    if not isinstance(name, str) or not _ENVIRONMENT.fullmatch(name):
        raise Refused("shard's identity file names an impossible folder", path=str(path))
    return path / name


def identity_mark(path: Path) -> tuple[int, int]:
    """Return what changes when the identity file is replaced; cheap, one look at the folder entry.

    NO_MARK without one. Errors: Unavailable when that is not to be seen.
    """
    try:
        found = (path / IDENTITY_FILE).stat()
    except (FileNotFoundError, NotADirectoryError):
        return NO_MARK
    except OSError as cause:
        raise _unreadable(path, cause) from cause
    return (found.st_ino, found.st_mtime_ns)


def read_identity(path: Path) -> dict[str, Any] | None:
    """Return what the identity file says, None without a whole one."""
    with suppress(Unavailable, DataLoss):
        return _facts(path)
    return None


def _facts(path: Path) -> dict[str, Any] | None:
    """Return what the identity file says, None when there is none."""
    facts: object = None
    try:
        facts = json.loads((path / IDENTITY_FILE).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as cause:
        raise _unreadable(path, cause) from cause
    except (ValueError, RecursionError):
        pass
    if not isinstance(facts, dict):
        raise DataLoss("shard's identity file is damaged", path=str(path / IDENTITY_FILE))
    return facts


def _unreadable(path: Path, cause: OSError) -> Unavailable:
    return Unavailable("shard's identity file cannot be read", path=str(path), cause=str(cause))


def write_durably(path: Path, text: str) -> None:
    """Replace a file by one with that text: after a crash it is the old one or the new one, whole."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    # commit point: before it the file is as it was, after it whole and new.
    faultpoints.reach("file.before_replace")
    fresh.replace(path)
    faultpoints.reach("file.after_replace")
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Make a file, or the entries of a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
