"""Rows of the journal's table Q: what owners may have, what repositories take. See docs/formats/journal.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shardgit.errors import JournalCorrupt
from shardgit.formats import check_row
from shardgit.oid import RepositoryId

VERSION = 1
QUOTAS = b"Qo"
USAGES = b"Qu"
_QUOTA = struct.Struct("<B7xQQQ")
_USAGE = struct.Struct("<B7xQQQQ")
_ID_BYTES = 8


def quota_key(owner: str) -> bytes:
    """Return the key of an owner's quota."""
    return QUOTAS + owner.encode()


def usage_key(owner: str, repository: RepositoryId) -> bytes:
    """Return the key of what a repository of an owner takes."""
    return usages_prefix(owner) + repository.to_bytes(_ID_BYTES, "big")


def usages_prefix(owner: str) -> bytes:
    """Return how the keys of all of an owner's usages begin."""
    return USAGES + owner.encode() + b"\0"


def split_usage_key(key: bytes) -> tuple[str, RepositoryId]:
    """Return the owner and the repository in a usage's key."""
    owner = key[len(USAGES) : -_ID_BYTES - 1]
    return owner.decode(), RepositoryId(int.from_bytes(key[-_ID_BYTES:], "big"))


@dataclass(frozen=True, slots=True)
class QuotaRecord:
    """What an owner may have in all of its repositories, 0 for no bound, and how many of them."""

    bytes_max: int = 0
    objects_max: int = 0
    repositories_max: int = 0

    def encode(self) -> bytes:
        """Return the row's value."""
        return _QUOTA.pack(VERSION, self.bytes_max, self.objects_max, self.repositories_max)

    @classmethod
    def decode(cls, data: bytes) -> QuotaRecord:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("quota record", data, VERSION)
        if len(data) != _QUOTA.size or data[0] != VERSION:
            raise JournalCorrupt("quota record is off", bytes=len(data))
        return cls(*_QUOTA.unpack(data)[1:])


@dataclass(frozen=True, slots=True)
class Usage:
    """What a repository takes: Git objects and their stored bytes, Git LFS objects and theirs."""

    git_objects: int = 0
    git_bytes: int = 0
    lfs_objects: int = 0
    lfs_bytes: int = 0

    @property
    def all_objects(self) -> int:
        """All objects."""
        return self.git_objects + self.lfs_objects

    @property
    def all_bytes(self) -> int:
        """All bytes."""
        return self.git_bytes + self.lfs_bytes

    def plus(self, more: Usage) -> Usage:
        """Return both together."""
        return Usage(
            self.git_objects + more.git_objects,
            self.git_bytes + more.git_bytes,
            self.lfs_objects + more.lfs_objects,
            self.lfs_bytes + more.lfs_bytes,
        )

    def encode(self) -> bytes:
        """Return the row's value."""
        return _USAGE.pack(
            VERSION, self.git_objects, self.git_bytes, self.lfs_objects, self.lfs_bytes
        )

    @classmethod
    def decode(cls, data: bytes) -> Usage:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("usage record", data, VERSION)
        if len(data) != _USAGE.size or data[0] != VERSION:
            raise JournalCorrupt("usage record is off", bytes=len(data))
        return cls(*_USAGE.unpack(data)[1:])
