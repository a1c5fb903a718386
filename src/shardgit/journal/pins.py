"""Rows of the journal's table X: pins, by which a backup keeps the blocks of its cut from gc.

Whoever deletes blocks looks for pins in a snapshot that is newer than the commit after which
nothing named those blocks, and deletes none while a fresh pin stands. A pin is committed before the
snapshot that it protects is opened: either that snapshot is older than the other commit, then the
pin is seen; or it is newer, then it does not name the blocks. See docs/formats/journal.md.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import faultpoints
from shardgit.errors import Conflict, JournalCorrupt
from shardgit.formats import check_row
from shardgit.journal.interface import Compare, Delete, Put, end_of

if TYPE_CHECKING:
    from shardgit.journal.interface import Journal, JournalSnapshot

VERSION = 1
PINS = b"X"
LEASE_MS = 15 * 60_000  # a pin that was not renewed for so long holds nothing: its holder is dead
RENEW_MS = 60_000
_PIN = struct.Struct("<BxHIQQ")


@dataclass(frozen=True, slots=True)
class PinRecord:
    """A pin: when it was made and last renewed, and who holds it, in words."""

    since_ms: int
    renewed_ms: int
    holder: str

    def encode(self) -> bytes:
        """Return the row's value."""
        holder = self.holder.encode("utf-8", "replace")[:1_024]
        return _PIN.pack(VERSION, len(holder), 0, self.since_ms, self.renewed_ms) + holder

    @classmethod
    def decode(cls, data: bytes) -> PinRecord:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("pin", data, VERSION)
        if len(data) < _PIN.size or data[0] != VERSION:
            raise JournalCorrupt("pin is off", bytes=len(data))
        _, length, _, since, renewed = _PIN.unpack_from(data)
        if len(data) != _PIN.size + length:
            raise JournalCorrupt("pin is cut short", bytes=len(data))
        return cls(since, renewed, data[_PIN.size :].decode("utf-8", "replace"))


def fresh_pins(snapshot: JournalSnapshot, now_ms: int) -> list[PinRecord]:
    """Return the pins whose holders live; while there is one, no block is deleted."""
    rows = snapshot.range(PINS, end_of(PINS))
    pins = [PinRecord.decode(row.value) for row in rows]
    return [pin for pin in pins if now_ms - pin.renewed_ms < LEASE_MS]


class Pin:
    """A pin that this process holds. Use by one thread at a time."""

    def __init__(self, journal: Journal, holder: str, now_ms: int) -> None:
        self._journal = journal
        self._key = PINS + os.urandom(16)
        self._record = PinRecord(now_ms, now_ms, holder)
        with journal.snapshot() as snapshot:
            stale = [
                Delete(row.key)
                for row in snapshot.range(PINS, end_of(PINS), limit=64)
                if now_ms - PinRecord.decode(row.value).renewed_ms >= LEASE_MS
            ]
        # commit point: before it gc may delete what nothing names, after it nothing at all.
        faultpoints.reach("pin.before_commit")
        self._revision = journal.commit_sync(
            [Compare(self._key, 0)], [Put(self._key, self._record.encode()), *stale]
        )
        faultpoints.reach("pin.after_commit")

    def renew(self, now_ms: int) -> bool:
        """Say that we live, once RENEW_MS have gone by; False when the pin was taken from us."""
        if now_ms - self._record.renewed_ms < RENEW_MS:
            return True
        record = PinRecord(self._record.since_ms, now_ms, self._record.holder)
        try:
            self._revision = self._journal.commit_sync(
                [Compare(self._key, self._revision)], [Put(self._key, record.encode())]
            )
        except Conflict:
            return False
        kept = now_ms - self._record.renewed_ms < LEASE_MS
        self._record = record
        return kept

    def drop(self) -> None:
        """Let go."""
        self._journal.commit_sync([], [Delete(self._key)])
