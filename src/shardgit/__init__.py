"""shardgit: the storage tier of a Git host.

``shardgit.connect(target)`` opens a client, ``shardgit.aio.connect(target)`` an asynchronous one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardgit.calling import Calling
    from shardgit.client import Client

__all__ = ["connect"]


def connect(target: str, token: str | None = None, *, calling: Calling | None = None) -> Client:
    """Return a client for the gRPC address ``target``, grpcs://HOST:PORT for TLS; a context manager.

    ``calling`` says what TLS needs beyond the system's authorities; see shardgit.calling.
    """
    from shardgit import client

    return client.connect(target, token, calling=calling)
