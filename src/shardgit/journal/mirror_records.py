"""Rows of the journal's table V: how the repositories that follow another are doing. See docs/formats/journal.md."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import msgspec

from shardgit.errors import JournalCorrupt
from shardgit.formats import check_row

if TYPE_CHECKING:
    from shardgit.oid import RepositoryId

VERSION = 1
MIRRORS = b"V"


class _Said(msgspec.Struct, frozen=True):
    due_ms: int = 0
    tried_ms: int = 0
    synced_ms: int = 0
    failures: int = 0
    error: str = ""
    asked: int = 0
    answered: int = 0


def mirror_key(repository: RepositoryId) -> bytes:
    """Return the key of a mirror's row."""
    return MIRRORS + repository.to_bytes(8, "big")


@dataclass(frozen=True, slots=True)
class MirrorRecord:
    """When a mirror is due, was tried and was last in step; failures since then, and the last one's words.

    ``asked`` counts how often somebody wanted it in step at once, ``answered`` how many of these there were when the
    last try began: no clocks, as those who ask and those who try may be of two machines.
    """

    due_ms: int = 0
    tried_ms: int = 0
    synced_ms: int = 0
    failures: int = 0
    error: str = ""
    asked: int = 0
    answered: int = 0

    def encode(self) -> bytes:
        """Return the row's value."""
        said = _Said(**{each.name: getattr(self, each.name) for each in fields(self)})
        return bytes([VERSION]) + msgspec.json.encode(said)

    @classmethod
    def decode(cls, data: bytes) -> MirrorRecord:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("mirror record", data, VERSION)
        try:
            if data[:1] != bytes([VERSION]):
                raise JournalCorrupt("mirror record is off", bytes=len(data))
            said = msgspec.json.decode(data[1:], type=_Said)
        except (msgspec.MsgspecError, RecursionError) as cause:
            raise JournalCorrupt("mirror record does not parse", bytes=len(data)) from cause
        return cls(**msgspec.structs.asdict(said))
