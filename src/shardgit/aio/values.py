"""What the clients return and take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardgit import errors
    from shardgit.oid import ObjectId


@dataclass(frozen=True, slots=True)
class Object:
    """An object with its bytes; type 1 commit, 2 tree, 3 blob, 4 tag."""

    id: ObjectId
    type: int
    size: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """An object without its bytes."""

    id: ObjectId
    type: int
    size: int


@dataclass(frozen=True, slots=True)
class Ref:
    """A ref; ``target`` is None while a symbolic one is unborn."""

    name: bytes
    target: ObjectId | None
    peeled: ObjectId | None
    symbolic: bytes | None


@dataclass(frozen=True, slots=True)
class Person:
    """Who did something and when (seconds since 1970, and the zone as written)."""

    name: bytes
    email: bytes
    seconds: int
    zone: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit."""

    id: ObjectId
    tree: ObjectId
    parents: tuple[ObjectId, ...]
    author: Person
    committer: Person
    message: bytes


@dataclass(frozen=True, slots=True)
class TreeRow:
    """One entry of a tree; ``path`` counts from the tree that was asked for."""

    mode: int
    path: bytes
    id: ObjectId


@dataclass(frozen=True, slots=True)
class RefChange:
    """What became of a ref: None for an id that there was, or is, not."""

    name: bytes
    old: ObjectId | None
    new: ObjectId | None
    old_symbolic: bytes | None = None
    new_symbolic: bytes | None = None
    new_peeled: ObjectId | None = None


@dataclass(frozen=True, slots=True)
class RefLogEntry:
    """One committed change-set, with some of its changes; ``sequence`` counts from 1 without gaps.

    A watch gives large ones in parts: ``more`` follow. ``resume_token`` is what watch_refs takes as
    ``after``: the last entry that was given whole.
    """

    sequence: int
    time_ms: int
    actor: str
    message: str
    address: str
    changes: tuple[RefChange, ...]
    change_count: int
    certificate: bytes = b""
    more: bool = False
    resume_token: int = 0


@dataclass(frozen=True, slots=True)
class RefResult:
    """How one update ended: ``error`` is None when it was made."""

    name: bytes
    error: errors.ShardgitError | None


@dataclass(frozen=True, slots=True)
class File:
    """What becomes of a path in ``Repo.commit``, where bytes alone do not say it.

    ``data`` are new bytes, ``id`` names a blob that is there already. ``mode`` 0 keeps that of the file, or is 100644.
    """

    data: bytes = b""
    id: bytes | None = None
    mode: int = 0


@dataclass(frozen=True, slots=True)
class NewCommit:
    """A commit that was made; ``old`` is what the branch was before, None for a new one."""

    id: ObjectId
    tree: ObjectId
    old: ObjectId | None


@dataclass(frozen=True, slots=True)
class StoredPack:
    """How many objects a stored pack had, and how many the store did not have."""

    objects: int
    new_objects: int
