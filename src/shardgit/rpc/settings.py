"""Settings of a repository over gRPC: a part of RepositoryService."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from shardgit.errors import InvalidArgument
from shardgit.rpc.status import unary
from shardgit.service.access import Action, may
from shardgit.service.configuring import Configuring, view_of
from shardgit.service.setting_keys import shown
from shardgit.v1 import repository_pb2

if TYPE_CHECKING:
    import grpc

    from shardgit.service.configuring import SettingsState
    from shardgit.service.store import Store


class SettingsMethods:
    """GetSettings and UpdateSettings."""

    store: Store

    @unary
    async def GetSettings(
        self, request: repository_pb2.GetSettingsRequest, _: grpc.aio.ServicerContext
    ) -> repository_pb2.GetSettingsResponse:
        may(Action.ADMIN, request.name)
        state = await self.store.workers.run(Configuring(self.store).get, request.name)
        return repository_pb2.GetSettingsResponse(settings=_wire(state), revision=state.revision)

    @unary
    async def UpdateSettings(
        self, request: repository_pb2.UpdateSettingsRequest, _: grpc.aio.ServicerContext
    ) -> repository_pb2.UpdateSettingsResponse:
        may(Action.ADMIN, request.name)
        changes: dict[str, Any] = {key: _plain(key, text) for key, text in request.values.items()}
        for key in request.unset:
            if key in changes:
                raise InvalidArgument("setting is both set and unset", key=key[:200])
            changes[key] = None
        state = await self.store.workers.run(
            Configuring(self.store).update,
            request.name,
            changes,
            expected=request.expected_revision,
        )
        return repository_pb2.UpdateSettingsResponse(settings=_wire(state), revision=state.revision)


def _wire(state: SettingsState) -> list[repository_pb2.Setting]:
    view = view_of(state)
    return [
        repository_pb2.Setting(
            key=key,
            value=msgspec.json.encode(value).decode(),
            is_default=key not in view.changed,
        )
        for key, value in view.values.items()
    ]


def _plain(key: str, text: str) -> Any:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as cause:
        raise InvalidArgument(
            "setting's value is not JSON", key=key[:200], value=shown(key, text), cause=str(cause)
        ) from cause
    if value is None:
        raise InvalidArgument("setting's value is null; unset the key", key=key[:200])
    return value
