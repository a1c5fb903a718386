"""What a failed call of etcd means: above all whether it may have been done."""

from __future__ import annotations

import grpc

from shardgit.errors import (
    HistoryGone,
    Internal,
    InvalidArgument,
    LimitExceeded,
    OutcomeUnknown,
    PermissionRefused,
    ShardgitError,
    StorageFull,
    Unavailable,
)

_Code = grpc.StatusCode
_NO_SPACE = "database space exceeded"
_STALE_TOKEN = ("invalid auth token", "revision of auth store is old", "auth revision")
_PASSING = {
    _Code.UNAVAILABLE,
    _Code.DEADLINE_EXCEEDED,
    _Code.CANCELLED,
    _Code.UNKNOWN,
    _Code.INTERNAL,
}


def is_stale_token(error: grpc.RpcError) -> bool:
    """Say whether a call was refused, and not done, because its token has run out."""
    if error.code() == _Code.UNAUTHENTICATED:
        return True
    details = error.details() or ""
    return error.code() == _Code.INVALID_ARGUMENT and any(one in details for one in _STALE_TOKEN)


def passes(error: grpc.RpcError) -> bool:
    """Say whether the same call may go through at another member, or later."""
    details = error.details() or ""
    return error.code() in _PASSING or "too many requests" in details


def failure_of(error: grpc.RpcError, what: str, target: str) -> ShardgitError:
    """Return a failed call's error.

    OutcomeUnknown: it may have been done, or be done later. StorageFull: likewise of a transaction, but not later: etcd
    says so too of the one that filled it. All others: it was not done, and never will be.
    """
    code, details = error.code(), error.details() or ""
    facts = {"call": what, "member": target, "cause": details}
    if is_stale_token(error):
        return Unavailable("etcd wants a new token", **facts)
    match code:
        case _Code.RESOURCE_EXHAUSTED if _NO_SPACE in details:
            return StorageFull("etcd has no space left", **facts)
        case _Code.RESOURCE_EXHAUSTED if "too many requests" in details:
            return Unavailable("etcd has too much to do", **facts)
        case _Code.OUT_OF_RANGE if "compacted" in details:
            return HistoryGone("etcd has dropped that revision", **facts)
        case _Code.RESOURCE_EXHAUSTED | _Code.INVALID_ARGUMENT if _is_too_much(details):
            return LimitExceeded("etcd does not take so much", **facts)
        case _Code.INVALID_ARGUMENT | _Code.PERMISSION_DENIED if _is_refused(details):
            return PermissionRefused("etcd does not let us", **facts)
        case _Code.INVALID_ARGUMENT if _is_etcds(details):
            return InvalidArgument("etcd refused the call", **facts)
        case _ if code not in _PASSING and _is_etcds(details):
            return Internal("etcd answered in an unknown way", **facts, code=code.name)
        case _:  # also what a proxy says, or gRPC of a stream that was reset: neither knows whether etcd did it
            return OutcomeUnknown("etcd gave no answer", **facts, code=code.name)


def _is_etcds(details: str) -> bool:
    return details.startswith(("etcdserver:", "auth:"))


def _is_too_much(details: str) -> bool:
    return "too large" in details or "too many" in details or "larger than max" in details


def _is_refused(details: str) -> bool:
    return "permission denied" in details or "authentication failed" in details
