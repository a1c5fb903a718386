"""What an answer means for who wants to know whether a change was made."""

from __future__ import annotations

import enum

import grpc

from shardgit.errors import Conflict, ShardgitError, Unavailable

MOVED = ("ref is not at the expected object",)
NEVER_SENT = "no server answers there"
DETAILS = "grpc-status-details-bin"


class Told(enum.Enum):
    """How a change ended."""

    DONE = "done"
    CONFLICT = "conflict"  # what it expected did not hold
    NEVER = "never"  # it was not made and will not be, and nothing is told of the refs
    UNKNOWN = "unknown"


def told(error: ShardgitError | TimeoutError) -> Told:
    """Return what an error of the client says; one that no fault explains is raised again.

    A conflict says that the ref was elsewhere only in these words: one that lost too often, or whose
    commit was called off, says no more than that nothing was changed.
    """
    if isinstance(error, TimeoutError):
        return Told.UNKNOWN
    if isinstance(error, Conflict):
        return Told.CONFLICT if error.message in MOVED else Told.NEVER
    if isinstance(error, Unavailable):
        # gRPC says so only of calls that no connection took.
        return Told.NEVER if error.message == NEVER_SENT else Told.UNKNOWN
    if _of_transport(error):
        return Told.UNKNOWN
    raise error


def _of_transport(error: ShardgitError) -> bool:
    """Tell whether gRPC made the status, not a server of ours: ours come with details."""
    call = error.__cause__
    if not isinstance(call, grpc.aio.AioRpcError):
        return False
    return all(key != DETAILS for key, _ in call.trailing_metadata() or ())


def told_by_git(code: int, text: str) -> Told:
    """Return what ``git push --porcelain --atomic --force-with-lease`` says.

    What the server refused is unknown: curl sends a request again when a connection that was used
    before dies without an answer, so a refusal may be of a push that had been made.
    """
    if code == 0:
        return Told.DONE
    if "(stale info)" in text:
        return Told.CONFLICT  # git saw another value in the advertisement, and sent nothing
    return Told.UNKNOWN
