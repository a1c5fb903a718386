"""Rows of the journal's table K: the public keys that may log in over SSH."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shardgit.errors import JournalCorrupt

VERSION = 1
KEYS = b"K"
_KEY = struct.Struct("<BxHIQ")


def key_key(fingerprint: bytes) -> bytes:
    """Return the key of a public key's row: its SHA-256 of 32 bytes."""
    return KEYS + fingerprint


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A public key as SSH sends it, and the name of who holds the private one."""

    name: str
    blob: bytes
    created_ms: int

    def encode(self) -> bytes:
        """Return the row's value."""
        name = self.name.encode()
        return _KEY.pack(VERSION, len(name), len(self.blob), self.created_ms) + name + self.blob

    @classmethod
    def decode(cls, data: bytes) -> KeyRecord:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        try:
            version, name, blob, created = _KEY.unpack_from(data)
            if version != VERSION or len(data) != _KEY.size + name + blob:
                raise JournalCorrupt("key record is off", version=version, bytes=len(data))
            rest = data[_KEY.size :]
            return cls(rest[:name].decode(), rest[name:], created)
        except (struct.error, ValueError) as cause:
            raise JournalCorrupt("key record does not parse", bytes=len(data)) from cause
