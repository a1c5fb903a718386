"""Who asks for a change over gRPC, for the ref log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.refs.log import LogNote

if TYPE_CHECKING:
    import grpc

    from shardgit.service.access import Principal


def note_of(principal: Principal, context: grpc.aio.ServicerContext, message: str) -> LogNote:
    """Return the note of a change that ``principal`` asks for in a call."""
    peer = str(context.peer() or "")
    # "ipv4:127.0.0.1:4711", "unix:/path"
    return LogNote(principal.name, message, peer.partition(":")[2] or peer)
