"""One repository of a client."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from shardgit.aio.answers import (
    settings_of,
)
from shardgit.aio.commit_calls import CommitCalls
from shardgit.aio.object_calls import ObjectCalls
from shardgit.aio.ref_calls import RefCalls
from shardgit.v1 import (
    repository_pb2,
    repository_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardgit.aio.client import Client
    from shardgit.service.configuring import SettingsView


class Repo(ObjectCalls, CommitCalls, RefCalls):
    """One repository of a client."""

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.name = name

    async def settings(self) -> SettingsView:
        """Return every setting with its value."""
        request = repository_pb2.GetSettingsRequest(name=self.name)
        answer = await self.client.call(
            repository_pb2_grpc.RepositoryServiceStub, "GetSettings", request
        )
        return settings_of(answer)

    async def update_settings(
        self, changes: Mapping[str, Any], *, expected: int = 0
    ) -> SettingsView:
        """Set keys to plain data, or back to their defaults (None): all of them or none.

        With ``expected``, a revision, only when nobody changed the repository since: else Conflict.
        """
        values = {key: json.dumps(value) for key, value in changes.items() if value is not None}
        request = repository_pb2.UpdateSettingsRequest(
            name=self.name,
            values=values,
            unset=[key for key in changes if key not in values],
            expected_revision=expected,
        )
        answer = await self.client.call(
            repository_pb2_grpc.RepositoryServiceStub, "UpdateSettings", request
        )
        return settings_of(answer)
