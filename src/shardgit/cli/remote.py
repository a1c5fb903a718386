"""A store that is reached through a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardgit.cli.backend import ChangeRow, LogLine, ObjectRow, RefRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from shardgit.aio import RefChange
    from shardgit.cli.when import When
    from shardgit.client import Client
    from shardgit.oid import HashKind, ObjectId
    from shardgit.refs.update import RefUpdate
    from shardgit.service.configuring import SettingsView
    from shardgit.service.explained import CloneExplained
    from shardgit.service.repositories import RepositoryInfo, RepositoryStats
    from shardgit.service.shards import ShardInfo


class RemoteBackend:
    """See Backend."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, name: str, kind: HashKind) -> RepositoryInfo:
        """See Backend."""
        return self._client.create(name, object_format=kind.git_name)

    def repository(self, name: str) -> RepositoryInfo:
        """See Backend."""
        return self._client.repository(name)

    def repositories(self, prefix: str) -> Iterator[RepositoryInfo]:
        """See Backend."""
        return self._client.repositories(prefix)

    def stats(self, name: str) -> RepositoryStats:
        """See Backend."""
        return self._client.repo(name).stats()

    def explain_clone(self, name: str, depth: int, filters: Sequence[str]) -> CloneExplained:
        """See Backend."""
        return self._client.repo(name).explain_clone(depth=depth, filters=filters)

    def delete(self, name: str) -> None:
        """See Backend."""
        self._client.delete(name)

    def rename(self, name: str, new_name: str) -> RepositoryInfo:
        """See Backend."""
        return self._client.rename(name, new_name)

    def fork(self, source: str, target: str) -> RepositoryInfo:
        """See Backend."""
        return self._client.fork(source, target)

    def refs(self, name: str, prefix: bytes) -> Iterator[RefRow]:
        """See Backend."""
        for ref in self._client.repo(name).refs(prefix):
            if ref.name != b"HEAD":
                yield RefRow(ref.name, ref.target, ref.peeled, ref.symbolic)

    def ref(self, name: str, ref: bytes) -> RefRow:
        """See Backend."""
        found = self._client.repo(name).ref(ref)
        return RefRow(found.name, found.target, found.peeled, found.symbolic)

    def update_ref(self, name: str, update: RefUpdate, message: str) -> None:
        """See Backend."""
        self._client.repo(name).update_refs([update], message=message)

    def ref_log(self, name: str, ref: bytes | None, limit: int | None) -> Iterator[LogLine]:
        """See Backend."""
        for entry in self._client.repo(name).ref_log(ref, limit=limit):
            yield LogLine(
                entry.sequence,
                entry.time_ms,
                entry.actor,
                entry.message,
                entry.address,
                tuple(map(_change, entry.changes)),
                entry.change_count,
            )

    def restore_ref(
        self, name: str, ref: bytes, when: When, message: str, *, override: bool = False
    ) -> ChangeRow:
        """See Backend."""
        repo = self._client.repo(name)
        return _change(
            repo.restore_ref(
                ref, time_ms=when.time_ms, back=when.back, message=message, override=override
            )
        )

    def open(self, name: str, revision: str) -> tuple[ObjectRow, Iterator[bytes]]:
        """See Backend."""
        facts, pieces = self._client.repo(name).open(revision)
        return ObjectRow(facts.id, facts.type, facts.size), pieces

    def objects(self, name: str) -> Iterator[ObjectRow]:
        """See Backend."""
        for facts in self._client.repo(name).list_objects():
            yield ObjectRow(facts.id, facts.type, facts.size)

    def put(self, name: str, objects: Iterable[tuple[int, bytes]]) -> list[ObjectId]:
        """See Backend."""
        return self._client.repo(name).put_objects(objects)

    def settings(self, name: str) -> SettingsView:
        """See Backend."""
        return self._client.repo(name).settings()

    def update_settings(self, name: str, changes: Mapping[str, Any]) -> SettingsView:
        """See Backend."""
        return self._client.repo(name).update_settings(changes)

    def shards(self) -> list[ShardInfo]:
        """See Backend."""
        return self._client.shards()


def _change(change: RefChange) -> ChangeRow:
    return ChangeRow(change.name, change.old, change.new, change.old_symbolic, change.new_symbolic)
