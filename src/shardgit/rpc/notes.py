"""Who asks for a change over gRPC, for the ref log."""

from __future__ import annotations

from shardgit.refs.log import LogNote
from shardgit.service.access import caller


def note_of(message: str) -> LogNote:
    """Return the note of a change that the caller of this task asks for."""
    principal = caller()
    return LogNote(principal.name, message, principal.address)
