"""What a worker tells the console of its store: asked for over a socket in the folder of the metrics."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

SOCKET_PATH_MAX = 100  # bytes that a path of a socket may have, less some


class Shard(msgspec.Struct, frozen=True):
    """A shard of the store, or a node of the cluster; what is not known of it is None.

    ``partitions`` count all replicas, ``others`` those of the ring's other table while blocks move.
    """

    id: int
    name: str
    zone: str
    weight: float
    state: str
    partitions: int
    others: int = 0
    blocks: int | None = None
    bytes: int | None = None
    file_bytes: int | None = None
    free_bytes: int | None = None
    processes: int | None = None
    is_here: bool = True


class Operation(msgspec.Struct, frozen=True):
    """An operation under way; ``total`` is None while nobody knows, ``process`` "" for one that nobody goes on with."""

    kind: str
    stage: str
    done: int
    total: int | None
    unit: str
    started_ms: int
    told_ms: int
    process: int


class Ended(msgspec.Struct, frozen=True):
    """The last operation of a kind: when it ended, and what came of it; ``is_well`` False where it found trouble."""

    kind: str
    ended_ms: int
    words: str
    is_well: bool = True


class Survey(msgspec.Struct, frozen=True):
    """A store at one moment. ``phase`` is that of the ring: settled, copying or moved.

    ``moving`` counts the partitions that change their shard meanwhile.
    """

    time_ms: int
    clustered: bool
    epoch: int
    replicas: int
    phase: str
    shards: list[Shard]
    operations: list[Operation]
    ended: list[Ended]
    journal_bytes: dict[str, int] = {}  # "live" and "file"
    moving: int = 0


class RepositoryRow(msgspec.Struct, frozen=True):
    """A repository in a list."""

    name: str
    head: str
    created_ms: int
    hash: str
    is_fork: bool


class RepositoryPage(msgspec.Struct, frozen=True):
    """Some repositories by rising name. ``after`` is behind which name to go on, "" when these were all."""

    rows: list[RepositoryRow]
    after: str = ""


class RepositorySize(msgspec.Struct, frozen=True):
    """Counts of a repository; bytes and objects are those of its pool, so of its forks, too."""

    name: str
    refs: int
    objects: int
    stored_bytes: int
    waiting_bytes: int


class Asking(msgspec.Struct, frozen=True):
    """What a visitor of the admin port shows; ``again``: it was let in before."""

    address: str = ""
    authorization: str | None = None
    certificate: str = ""
    actor: str = ""
    for_address: str = ""
    again: bool = False


class Answer(msgspec.Struct, frozen=True):
    """Who a visitor is; with a ``code`` it is not let in."""

    name: str = ""
    code: str = ""
    message: str = ""
    retry_after_s: int = 0


def socket_path(folder: Path, number: int, *, opened: int) -> str:
    """Return where the worker of a number listens; ``opened`` is a descriptor of the folder, whose path may be long."""
    path = folder / f"desk-{number}"
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        return str(path)
    return f"/proc/self/fd/{opened}/{path.name}"
