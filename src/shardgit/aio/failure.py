"""What a server's status says, as errors of shardgit.errors."""

from __future__ import annotations

import json
import re

import grpc
from google.rpc import error_details_pb2, status_pb2

from shardgit import errors

_ADDRESS = re.compile(r"\bipv[46]:(\S+?):? ")


def error_of(call: grpc.RpcError) -> errors.ShardgitError:
    """Return the typed error that a server raised, from the status of its answer."""
    told = isinstance(call, grpc.Call | grpc.aio.AioRpcError)  # of a channel of either kind
    code = call.code().name if told else "INTERNAL"
    text = str(call.details() if told else call)
    for key, value in (call.trailing_metadata() or ()) if told else ():
        if key != "grpc-status-details-bin":
            continue
        status = status_pb2.Status.FromString(
            value if isinstance(value, bytes) else value.encode("latin-1")
        )
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == "shardgit":
                return _named(info, text)
    if code == "UNAVAILABLE" and text.startswith("failed to connect"):
        where = _ADDRESS.search(text)
        facts = {"server": where[1]} if where else {}
        return errors.Unavailable(
            "no server answers there", **facts, cause=text.rpartition(": ")[2]
        )
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.ShardgitError) and kind.code == code:
            return kind(text)
    return (
        errors.Unavailable(text)
        if code in ("CANCELLED", "DEADLINE_EXCEEDED")
        else errors.Internal(text)
    )


def _named(info: error_details_pb2.ErrorInfo, text: str) -> errors.ShardgitError:
    facts = {key: json.loads(value) for key, value in sorted(info.metadata.items())}
    # The server's text holds the facts already; they come back as facts.
    return errors.of_reason(info.reason, text.partition(" (")[0] if facts else text, **facts)
