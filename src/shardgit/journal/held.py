"""The row of table A that tells which shards take no blocks. See docs/formats/journal.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from shardgit.errors import JournalCorrupt, ReadOnly
from shardgit.formats import check_row
from shardgit.journal.mode import UNSAID

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from shardgit.journal.interface import Journal, JournalSnapshot

VERSION = 1
HELD_KEY = b"As"


class HeldShard(msgspec.Struct, frozen=True):
    """A shard that takes no blocks: why, who said so, since when.

    Until it is ``closed`` new blocks keep off it, and what was born before may still be put there.
    """

    id: int
    why: str = ""
    by: str = ""
    since_ms: int = 0
    closed: bool = False

    def refusal(self) -> ReadOnly:
        """Return the error for who would write to it."""
        return ReadOnly("shard is read-only", shard=self.id, why=self.why or UNSAID)


def encode_held(shards: Sequence[HeldShard]) -> bytes:
    """Return the row's value."""
    return bytes([VERSION]) + msgspec.json.encode(sorted(shards, key=lambda one: one.id))


def decode_held(data: bytes) -> tuple[HeldShard, ...]:
    """Return the shards of the row's value, by rising number; JournalCorrupt when it is off."""
    check_row("held shards", data, VERSION)
    try:
        if data[:1] != bytes([VERSION]):
            raise JournalCorrupt("row of held shards is off", bytes=len(data))
        return msgspec.json.decode(data[1:], type=tuple[HeldShard, ...])
    except (msgspec.MsgspecError, RecursionError) as cause:
        raise JournalCorrupt("row of held shards does not parse", bytes=len(data)) from cause


def check_open(journal: Journal, numbers: Collection[int] = ()) -> None:
    """Raise ReadOnly when one of these shards, or any of all, is read-only: for what writes to shards by number."""
    with journal.snapshot() as snapshot:
        for one in held_shards(snapshot):
            if not numbers or one.id in numbers:
                raise one.refusal()


def held_shards(snapshot: JournalSnapshot) -> tuple[HeldShard, ...]:
    """Return the shards that take no blocks, by rising number."""
    row = snapshot.get(HELD_KEY)
    return decode_held(row.value) if row is not None else ()
