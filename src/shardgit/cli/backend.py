"""What commands need of a store, whether it is opened here or reached through a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from shardgit.cli.when import When
    from shardgit.oid import HashKind, ObjectId
    from shardgit.refs.update import RefUpdate
    from shardgit.service.configuring import SettingsView
    from shardgit.service.explained import CloneExplained
    from shardgit.service.repositories import RepositoryInfo, RepositoryStats
    from shardgit.service.shards import ShardInfo


@dataclass(frozen=True, slots=True)
class RefRow:
    """A ref as it is shown; ``target`` is None while a symbolic one is unborn."""

    name: bytes
    target: ObjectId | None
    peeled: ObjectId | None
    symbolic: bytes | None


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """What became of a ref: None for what there was, or is, not."""

    name: bytes
    old: ObjectId | None
    new: ObjectId | None
    old_symbolic: bytes | None
    new_symbolic: bytes | None


@dataclass(frozen=True, slots=True)
class LogLine:
    """One change-set of the ref log, with some of its changes."""

    sequence: int
    time_ms: int
    actor: str
    message: str
    address: str
    changes: tuple[ChangeRow, ...]
    change_count: int


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """An object's id, type (numbered as in packs) and size in bytes."""

    id: ObjectId
    type: int
    size: int


class Backend(Protocol):
    """The verbs of the commands. Errors are those of shardgit.errors; iterators are lazy."""

    def create(self, name: str, kind: HashKind) -> RepositoryInfo:
        """Make an empty repository."""

    def repository(self, name: str) -> RepositoryInfo:
        """Return one repository."""

    def repositories(self, prefix: str) -> Iterator[RepositoryInfo]:
        """Return repositories by rising name."""

    def stats(self, name: str) -> RepositoryStats:
        """Return a repository's counts and sizes."""

    def explain_clone(self, name: str, depth: int, filters: Sequence[str]) -> CloneExplained:
        """Take a clone apart."""

    def delete(self, name: str) -> None:
        """Delete a repository."""

    def rename(self, name: str, new_name: str) -> RepositoryInfo:
        """Give a repository another name."""

    def fork(self, source: str, target: str) -> RepositoryInfo:
        """Make a repository with the refs of another."""

    def refs(self, name: str, prefix: bytes) -> Iterator[RefRow]:
        """Return refs by rising name, HEAD left out."""

    def ref(self, name: str, ref: bytes) -> RefRow:
        """Return one ref by its full name, or HEAD; RefMissing without."""

    def update_ref(self, name: str, update: RefUpdate, message: str) -> None:
        """Change one ref."""

    def ref_log(self, name: str, ref: bytes | None, limit: int | None) -> Iterator[LogLine]:
        """Return change-sets, newest first: those of one ref, or all."""

    def restore_ref(
        self, name: str, ref: bytes, when: When, message: str, *, override: bool = False
    ) -> ChangeRow:
        """Make a ref again what it was."""

    def open(self, name: str, revision: str) -> tuple[ObjectRow, Iterator[bytes]]:
        """Return an object and its bytes in pieces."""

    def objects(self, name: str) -> Iterator[ObjectRow]:
        """Return all objects that the refs reach."""

    def put(self, name: str, objects: Iterable[tuple[int, bytes]]) -> list[ObjectId]:
        """Store objects, (type, bytes) each, in one commit; returns their ids."""

    def settings(self, name: str) -> SettingsView:
        """Return a repository's settings."""

    def update_settings(self, name: str, changes: Mapping[str, Any]) -> SettingsView:
        """Set keys, or bring them back to their defaults with None; all or none."""

    def shards(self) -> list[ShardInfo]:
        """Return the shards by number."""
