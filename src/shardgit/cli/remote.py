"""A store that is reached through a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardgit.cli.backend import ObjectRow, RefRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shardgit.client import Client
    from shardgit.oid import HashKind
    from shardgit.service.configuring import SettingsView
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

    def open(self, name: str, revision: str) -> tuple[ObjectRow, Iterator[bytes]]:
        """See Backend."""
        facts, pieces = self._client.repo(name).open(revision)
        return ObjectRow(facts.id, facts.type, facts.size), pieces

    def objects(self, name: str) -> Iterator[ObjectRow]:
        """See Backend."""
        for facts in self._client.repo(name).list_objects():
            yield ObjectRow(facts.id, facts.type, facts.size)

    def settings(self, name: str) -> SettingsView:
        """See Backend."""
        return self._client.repo(name).settings()

    def update_settings(self, name: str, changes: Mapping[str, Any]) -> SettingsView:
        """See Backend."""
        return self._client.repo(name).update_settings(changes)

    def shards(self) -> list[ShardInfo]:
        """See Backend."""
        return self._client.shards()
