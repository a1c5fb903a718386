"""The row of table A: whether the store takes changes. Every commit that would make one compares it.

A commit that has lost against the row is ReadOnly, not Conflict: trying again does not help.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from shardgit.errors import Conflict, JournalCorrupt, ReadOnly, ShardgitError
from shardgit.formats import check_row
from shardgit.journal.interface import Compare, DeleteRange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardgit.journal.interface import Condition, Journal, JournalSnapshot, Operation

VERSION = 1
MODE_KEY = b"A"
UNSAID = "nobody said why"
# Tables that say nothing of what repositories hold: the mode itself, cursors of hooks, settings, public keys,
# operations, quotas, tokens, the state of mirrors, pins, the nodes of a cluster. What makes, renames or deletes a
# repository writes other tables besides.
OPEN_TABLES = b"AEIKOQTVXY"


class _Said(msgspec.Struct, frozen=True):
    why: str = ""
    by: str = ""
    since_ms: int = 0


@dataclass(frozen=True, slots=True)
class ModeRecord:
    """That the store is read-only: why, who said so, since when."""

    why: str
    by: str
    since_ms: int

    def encode(self) -> bytes:
        """Return the row's value."""
        return bytes([VERSION]) + msgspec.json.encode(_Said(self.why, self.by, self.since_ms))

    def refusal(self) -> ReadOnly:
        """Return the error for who would change something."""
        return ReadOnly("store is read-only", why=self.why or UNSAID)

    @classmethod
    def decode(cls, data: bytes) -> ModeRecord:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("mode record", data, VERSION)
        try:
            if data[:1] != bytes([VERSION]):
                raise JournalCorrupt("mode record is off", bytes=len(data))
            said = msgspec.json.decode(data[1:], type=_Said)
        except (msgspec.MsgspecError, RecursionError) as cause:
            raise JournalCorrupt("mode record does not parse", bytes=len(data)) from cause
        return cls(said.why, said.by, said.since_ms)


def mode_of(snapshot: JournalSnapshot) -> ModeRecord | None:
    """Return why the store is read-only; None when it is not."""
    row = snapshot.get(MODE_KEY)
    return ModeRecord.decode(row.value) if row is not None else None


def check_mode(snapshot: JournalSnapshot) -> None:
    """Raise ReadOnly when the store takes no changes."""
    mode = mode_of(snapshot)
    if mode is not None:
        raise mode.refusal()


def check_writable(journal: Journal) -> None:
    """Raise ReadOnly when a journal's store takes no changes: for what writes or deletes blocks before it commits."""
    with journal.snapshot() as snapshot:
        check_mode(snapshot)


def fences_of(operations: Sequence[Operation]) -> tuple[Compare, ...]:
    """Return the condition that the store takes what a commit would change."""
    keys = (each.low if isinstance(each, DeleteRange) else each.key for each in operations)
    return () if all(key[:1] in OPEN_TABLES for key in keys) else (Compare(MODE_KEY, 0),)


def fenced(
    journal: Journal,
    conditions: Sequence[Condition],
    operations: Sequence[Operation],
    answer: Callable[[int | BaseException], None],
) -> tuple[Sequence[Condition], Callable[[int | BaseException], None]]:
    """Return the conditions and the answer of a commit that keeps to the mode."""
    fences = fences_of(operations)
    if not fences:
        return conditions, answer

    def told(outcome: int | BaseException) -> None:
        answer(refused(journal, outcome) if isinstance(outcome, Conflict) else outcome)

    return (*fences, *conditions), told


def refused(journal: Journal, outcome: Conflict) -> ShardgitError:
    """Return why a commit lost: against the mode, or against another writer."""
    try:
        with journal.snapshot() as snapshot:
            check_mode(snapshot)
    except ShardgitError as error:
        return error if isinstance(error, ReadOnly) else outcome
    return outcome
