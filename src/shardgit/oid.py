"""Ids: Git object ids, block ids and the hash kinds behind them. Raw bytes inside, hex at the edges."""

from __future__ import annotations

import enum
from typing import NewType

from shardgit.errors import InvalidArgument

ObjectId = NewType("ObjectId", bytes)
"""A Git object id: 20 bytes (SHA-1) or 32 bytes (SHA-256)."""

BlockId = NewType("BlockId", bytes)
"""A block id: the 32 bytes of BLAKE3-256 over the whole block."""

RepositoryId = NewType("RepositoryId", int)
"""A repository's number, apart from its name; never reused."""

PoolId = NewType("PoolId", bytes)
"""A pool's 16 random bytes; never reused."""


class HashKind(enum.IntEnum):
    """The hash of a repository's object ids. The value stands in every record."""

    SHA1 = 1
    SHA256 = 2

    @property
    def size(self) -> int:
        """Length of a raw id, in bytes."""
        return 20 if self is HashKind.SHA1 else 32

    @property
    def git_name(self) -> str:
        """The name Git gives it in ``object-format``."""
        return "sha1" if self is HashKind.SHA1 else "sha256"

    @property
    def null(self) -> ObjectId:
        """The id of all zeros: "no object"."""
        return ObjectId(bytes(self.size))

    @classmethod
    def from_git_name(cls, name: str) -> HashKind:
        """Return the kind that Git calls ``name``; InvalidArgument when there is none."""
        for kind in cls:
            if kind.git_name == name:
                return kind
        raise InvalidArgument("unknown object format", name=name)


def hex_of(oid: bytes) -> str:
    """Return an id as lower-case hex."""
    return oid.hex()


def oid_of(text: str | bytes, kind: HashKind) -> ObjectId:
    """Return the raw id that full-length hex ``text`` stands for; InvalidArgument otherwise."""
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    try:
        raw = bytes.fromhex(text) if len(text) == 2 * kind.size else b""
    except ValueError:
        raw = b""
    if not raw or not text.isalnum():
        raise InvalidArgument("not a full object id", text=text[:80], object_format=kind.git_name)
    return ObjectId(raw)
