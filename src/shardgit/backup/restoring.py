"""The row that stands in the journal of a store that is not restored to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import Refused
from shardgit.journal.operations import operation_key, read_operation

if TYPE_CHECKING:
    from shardgit.journal.interface import JournalSnapshot

KIND = "restore"
KEY = operation_key(KIND)
BLOCKS, REWIND = "blocks", "rewind"


@dataclass(frozen=True, slots=True)
class RestoreState:
    """What a store is restored from, to which moment (0: the backup's own), and how far it is."""

    target: str
    backup: str
    at_ms: int = 0
    phase: str = BLOCKS


def restore_state(snapshot: JournalSnapshot) -> RestoreState | None:
    """Return where a restore stands, None in a store that is whole."""
    return read_operation(snapshot, KIND, RestoreState).record


def check_same(found: RestoreState, backup: str | None, at_ms: int | None) -> None:
    """Refuse to go on with a restore of another backup than was begun."""
    if found.backup != (backup or found.backup) or (at_ms or found.at_ms) != found.at_ms:
        raise Refused(
            "another backup is being restored there; without --backup and --at it goes on",
            backup=found.backup,
            at_ms=found.at_ms,
        )


def check_restored(snapshot: JournalSnapshot) -> None:
    """Refuse a store that is not restored to its end."""
    state = restore_state(snapshot)
    if state is not None:
        raise Refused(
            "store is not restored to its end; run the same backup restore again",
            target=state.target,
            backup=state.backup,
        )
