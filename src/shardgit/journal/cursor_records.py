"""The journal's rows of hook cursors: how far a post-receive hook was told. See docs/formats/journal.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from blake3 import blake3

from shardgit.errors import JournalCorrupt
from shardgit.formats import check_row
from shardgit.oid import RepositoryId

VERSION = 1
CURSORS = b"E"
_CURSOR = struct.Struct("<B3xIQQ")
_ID_BYTES = 16


def hook_id(kind: str, target: str) -> bytes:
    """Return the id of a hook: the same as long as kind and target are."""
    return blake3(f"{kind}\0{target}".encode()).digest()[:_ID_BYTES]


def cursor_key(repository: RepositoryId, hook: bytes) -> bytes:
    """Return the key of a hook's cursor."""
    return CURSORS + repository.to_bytes(8, "big") + hook


def split_cursor_key(key: bytes) -> tuple[RepositoryId, bytes]:
    """Return repository and hook of a cursor's key."""
    return RepositoryId(int.from_bytes(key[1:9], "big")), key[9:]


@dataclass(frozen=True, slots=True)
class HookCursor:
    """The last entry of the ref log that a hook was told of, and how the next one goes.

    ``tries`` counts failures of the next entry; ``next_ms`` is when it may be tried again.
    """

    sequence: int
    tries: int = 0
    next_ms: int = 0

    def encode(self) -> bytes:
        """Return the row's value."""
        return _CURSOR.pack(VERSION, self.tries, self.sequence, self.next_ms)

    @classmethod
    def decode(cls, data: bytes) -> HookCursor:
        """Return the cursor in a row's value; JournalCorrupt when it is off."""
        check_row("hook cursor", data, VERSION)
        if len(data) != _CURSOR.size or data[0] != VERSION:
            raise JournalCorrupt("hook cursor is off", bytes=len(data))
        _, tries, sequence, next_ms = _CURSOR.unpack(data)
        return cls(sequence, tries, next_ms)
