"""Rows of the journal's table K: the public keys that may log in over SSH."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import msgspec

from shardgit.errors import JournalCorrupt
from shardgit.formats import check_row

VERSION = 2
KEYS = b"K"
_KEY = struct.Struct("<BxHIQ")


def key_key(fingerprint: bytes) -> bytes:
    """Return the key of a public key's row: its SHA-256 of 32 bytes."""
    return KEYS + fingerprint


class Scope(msgspec.Struct, frozen=True):
    """What a key's holder may read and write, by globs over names of repositories; ``admin``: everything."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    admin: bool = False


ALL = Scope(read=("**",), write=("**",))


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A public key as SSH sends it, the name of who holds the private one, and what that one may do."""

    name: str
    blob: bytes
    created_ms: int
    scope: Scope = ALL

    def encode(self) -> bytes:
        """Return the row's value."""
        name = self.name.encode()
        head = _KEY.pack(VERSION, len(name), len(self.blob), self.created_ms)
        return head + name + self.blob + msgspec.json.encode(self.scope)

    @classmethod
    def decode(cls, data: bytes) -> KeyRecord:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("key record", data, VERSION)
        try:
            version, name, blob, created = _KEY.unpack_from(data)
            rest = data[_KEY.size :]
            said = rest[name + blob :]
            if version not in (1, VERSION) or len(rest) < name + blob or (version == 1 and said):
                raise JournalCorrupt("key record is off", version=version, bytes=len(data))
            scope = ALL if version == 1 else msgspec.json.decode(said, type=Scope)
            return cls(rest[:name].decode(), rest[name : name + blob], created, scope)
        except (struct.error, ValueError, msgspec.MsgspecError) as cause:
            raise JournalCorrupt("key record does not parse", bytes=len(data)) from cause
