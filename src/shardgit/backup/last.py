"""The store's own note of its last backup, for who watches it: a backup of long ago is an alarm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.journal.operations import put_operation, read_operation

if TYPE_CHECKING:
    from shardgit.journal.interface import JournalSnapshot, Put

KIND = "backup"


@dataclass(frozen=True, slots=True)
class LastBackup:
    """The last backup that was made whole: where it is, its id, the moment that it shows, when it was done."""

    target: str
    backup: str
    taken_ms: int
    finished_ms: int
    sent_bytes: int


def last_backup(snapshot: JournalSnapshot) -> LastBackup | None:
    """Return the note, None before the first backup."""
    return read_operation(snapshot, KIND, LastBackup).record


def note_backup(made: LastBackup) -> Put:
    """Return the operation that writes the note."""
    return put_operation(KIND, made)
