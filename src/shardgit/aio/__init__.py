"""The asynchronous Python client: ``async with shardgit.aio.connect("127.0.0.1:7420") as store``."""

from __future__ import annotations

from shardgit.aio.client import MESSAGE_MAX_BYTES, Client
from shardgit.aio.failure import error_of
from shardgit.aio.repo import Repo
from shardgit.aio.values import (
    Commit,
    File,
    NewCommit,
    Object,
    ObjectFacts,
    Person,
    Ref,
    RefChange,
    RefLogEntry,
    RefResult,
    StoredPack,
    TreeRow,
)
from shardgit.calling import Calling
from shardgit.refs.update import ANY, Old, RefUpdate
from shardgit.service.configuring import SettingsView
from shardgit.service.repositories import RepositoryInfo, RepositoryStats
from shardgit.service.shards import ShardInfo

__all__ = [
    "ANY",
    "MESSAGE_MAX_BYTES",
    "Calling",
    "Client",
    "Commit",
    "File",
    "NewCommit",
    "Object",
    "ObjectFacts",
    "Old",
    "Person",
    "Ref",
    "RefChange",
    "RefLogEntry",
    "RefResult",
    "RefUpdate",
    "Repo",
    "RepositoryInfo",
    "RepositoryStats",
    "SettingsView",
    "ShardInfo",
    "StoredPack",
    "TreeRow",
    "connect",
    "error_of",
]


def connect(target: str, token: str | None = None, *, calling: Calling | None = None) -> Client:
    """Return a client for the gRPC address ``target``, grpcs://HOST:PORT for TLS; an async context manager.

    ``calling`` says what TLS needs beyond the system's authorities.
    """
    return Client(target, token, calling=calling or Calling())
