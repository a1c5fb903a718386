"""Rows of the journal's table T: tokens, of which only a hash is kept, and the secret that signs tickets."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import msgspec

from shardgit.errors import JournalCorrupt
from shardgit.formats import check_row

VERSION = 1
TOKENS = b"T"
TOKEN_ID_BYTES = 8
HASH_BYTES = 32
TICKET_SECRET_KEY = TOKENS + b"\0"  # no token's: it is shorter
_HEAD = struct.Struct("<BxxxQQ32s")


class _Said(msgspec.Struct, frozen=True):
    name: str
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    admin: bool = False
    by: str = ""


def token_key(token: bytes) -> bytes:
    """Return the key of a token's row: its id of 8 bytes."""
    return TOKENS + token


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token: SHA-256 of its secret, when it was made and ends (0: never), whom it stands for, what it allows."""

    digest: bytes
    created_ms: int
    expires_ms: int
    name: str
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    admin: bool = False
    by: str = ""

    def encode(self) -> bytes:
        """Return the row's value."""
        said = _Said(self.name, self.read, self.write, self.admin, self.by)
        head = _HEAD.pack(VERSION, self.created_ms, self.expires_ms, self.digest)
        return head + msgspec.json.encode(said)

    @classmethod
    def decode(cls, data: bytes) -> TokenRecord:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("token record", data, VERSION)
        try:
            version, created, expires, digest = _HEAD.unpack_from(data)
            if version != VERSION:
                raise JournalCorrupt("token record is off", version=version, bytes=len(data))
            said = msgspec.json.decode(data[_HEAD.size :], type=_Said)
        except (struct.error, msgspec.MsgspecError) as cause:
            raise JournalCorrupt("token record does not parse", bytes=len(data)) from cause
        return cls(digest, created, expires, said.name, said.read, said.write, said.admin, said.by)
