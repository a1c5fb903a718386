"""Rows of table ``Y``: sessions of processes, and owners of turns. See docs/formats/journal.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shardgit.errors import JournalCorrupt, StoreFormatUnknown
from shardgit.journal.etcd_rows import LEASED

VERSION = 1
SESSION_BYTES = 16
NOTE_MAX_BYTES = 64 << 10
SESSIONS, _OWNERS = LEASED, b"Yo"
_SESSION = struct.Struct("<BBHIQ")
_OWNER = struct.Struct("<B3xI16s")


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A process of a node: the node's number, the process's id there, when it began (ms since 1970)."""

    node: int
    pid: int
    began_ms: int

    def encode(self) -> bytes:
        """Return the row's value."""
        return _SESSION.pack(VERSION, 0, self.node, self.pid, self.began_ms)

    @classmethod
    def decode(cls, value: bytes) -> SessionRecord:
        """Return what a row holds. Errors: JournalCorrupt, StoreFormatUnknown."""
        _check(value, _SESSION.size, "session")
        if len(value) != _SESSION.size:
            raise JournalCorrupt("session has another length", bytes=len(value))
        _, _, node, pid, began_ms = _SESSION.unpack(value)
        return cls(node, pid, began_ms)


@dataclass(frozen=True, slots=True)
class OwnerRecord:
    """Whose turn it is: a session, and what it noted."""

    session: bytes
    note: bytes = b""

    def encode(self) -> bytes:
        """Return the row's value."""
        return _OWNER.pack(VERSION, len(self.note), self.session) + self.note

    @classmethod
    def decode(cls, value: bytes) -> OwnerRecord:
        """Return what a row holds. Errors: JournalCorrupt, StoreFormatUnknown."""
        _check(value, _OWNER.size, "owner")
        _, length, session = _OWNER.unpack_from(value)
        note = value[_OWNER.size :]
        if len(note) != length:
            raise JournalCorrupt("owner's note has another length", bytes=len(note))
        return cls(session, note)


def session_key(session: bytes) -> bytes:
    """Return the key of a session."""
    return SESSIONS + session


def owner_key(name: str) -> bytes:
    """Return the key of a turn's owner."""
    return _OWNERS + name.encode()


def _check(value: bytes, size: int, what: str) -> None:
    if len(value) < size:
        raise JournalCorrupt(f"{what} is too short", bytes=len(value))
    if value[0] != VERSION:
        raise StoreFormatUnknown(f"{what} is of another version", version=value[0], known=VERSION)
