"""Rows of table ``Y``: sessions of processes, what these answer, owners of turns. See docs/formats/journal.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import JournalCorrupt
from shardgit.formats import check_row
from shardgit.journal.etcd_rows import LEASED
from shardgit.journal.interface import end_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.journal.interface import JournalSnapshot

VERSION = 1
SESSION_BYTES = 16
NOTE_MAX_BYTES = 64 << 10
SESSIONS, _OWNERS = LEASED, b"Yo"
_ANSWER_SUFFIX = b"a"  # behind the session's key
_SESSION = struct.Struct("<BBHIQ")
_ANSWER = struct.Struct("<B7xQQQQ")
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
class AnswerRecord:
    """What a process says to a question of gc's, by the revision of its row.

    ``revision`` is the oldest that is looked at, ``since_ms`` the time of the oldest lease, ``now_ms`` that of the
    answer; both by the process's own clock, in ms since 1970.
    """

    question: int
    revision: int
    since_ms: int
    now_ms: int

    @property
    def before_ms(self) -> int:
        """What is created from then on may be about to be named, by the clock of the process."""
        return min(self.since_ms, self.now_ms)

    def encode(self) -> bytes:
        """Return the row's value."""
        return _ANSWER.pack(VERSION, self.question, self.revision, self.since_ms, self.now_ms)

    @classmethod
    def decode(cls, value: bytes) -> AnswerRecord:
        """Return what a row holds. Errors: JournalCorrupt, StoreFormatUnknown."""
        _check(value, _ANSWER.size, "answer")
        if len(value) != _ANSWER.size:
            raise JournalCorrupt("answer has another length", bytes=len(value))
        return cls(*_ANSWER.unpack(value)[1:])


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


def answer_key(session: bytes) -> bytes:
    """Return the key of what a session's process answers, which goes with it."""
    return session_key(session) + _ANSWER_SUFFIX


def sessions_of(snapshot: JournalSnapshot) -> Iterator[tuple[bytes, SessionRecord]]:
    """Return all sessions, by id."""
    for row in snapshot.range(SESSIONS, end_of(SESSIONS)):
        session = row.key[len(SESSIONS) :]
        if len(session) == SESSION_BYTES:
            yield session, SessionRecord.decode(row.value)


def owner_key(name: str) -> bytes:
    """Return the key of a turn's owner."""
    return _OWNERS + name.encode()


def _check(value: bytes, size: int, what: str) -> None:
    if len(value) < size:
        raise JournalCorrupt(f"{what} is too short", bytes=len(value))
    check_row(what, value, VERSION)
    if value[0] != VERSION:
        raise JournalCorrupt(f"{what} is of no known version", version=value[0])
