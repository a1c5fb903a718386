"""The journal's rows of Git LFS: objects, who sees them, locks. See docs/formats/lfs.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from blake3 import blake3

from shardgit.errors import JournalCorrupt
from shardgit.formats import check_row
from shardgit.oid import BlockId, HashKind, PoolId, RepositoryId

VERSION = 1
LFS_SOURCES = b"Fs"  # of forks
_OBJECT = struct.Struct("<BBHIQQ32s")
_OWNED = struct.Struct("<BBHIQQ")
_SOURCES = struct.Struct("<BBHI")
_SOURCE = struct.Struct("<QQ")
_LOCK = struct.Struct("<B3xHHQ")
_LOCK_NAME = struct.Struct("<B7x16s")
_NONE = bytes(32)


def lfs_object_key(pool: PoolId, oid: bytes) -> bytes:
    """Return the key of an object in a pool."""
    return b"Fo" + pool + oid


def lfs_owned_key(repository: RepositoryId, oid: bytes = b"") -> bytes:
    """Return the key of what says that an object was uploaded to a repository; the start of all without an id."""
    return b"Fr" + repository.to_bytes(8, "big") + oid


def lfs_sources_key(repository: RepositoryId) -> bytes:
    """Return the key of a fork's sources."""
    return LFS_SOURCES + repository.to_bytes(8, "big")


def lock_key(repository: RepositoryId, lock: bytes = b"") -> bytes:
    """Return the key of a lock; the start of all without an id."""
    return b"W" + repository.to_bytes(8, "big") + b"i" + lock


def lock_path_key(repository: RepositoryId, path: str) -> bytes:
    """Return the key of a locked path."""
    return b"W" + repository.to_bytes(8, "big") + b"p" + blake3(path.encode()).digest()


@dataclass(frozen=True, slots=True)
class LfsRecord:
    """An LFS object of a pool: its size, and where its parts are named.

    ``root`` is the list of two parts or more, the part itself when there is one, None for none.
    """

    size: int
    parts: int
    root: BlockId | None
    created_ms: int

    def encode(self) -> bytes:
        """Return the row's value."""
        return _OBJECT.pack(
            VERSION,
            HashKind.SHA256,
            0,
            self.parts,
            self.size,
            self.created_ms,
            self.root or _NONE,
        )

    @classmethod
    def decode(cls, data: bytes) -> LfsRecord:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("lfs object record", data, VERSION)
        if len(data) != _OBJECT.size or data[0] != VERSION or data[1] != HashKind.SHA256:
            raise JournalCorrupt("lfs object record is off", bytes=len(data))
        _, _, _, parts, size, created, root = _OBJECT.unpack(data)
        if (root == _NONE) != (parts == 0) or (parts == 0) != (size == 0) or parts > size:
            raise JournalCorrupt("lfs object record is off", parts=parts, size=size)
        return cls(size, parts, BlockId(root) if parts else None, created)


@dataclass(frozen=True, slots=True)
class LfsOwned:
    """That an object was uploaded to a repository, and when."""

    size: int
    added_ms: int

    def encode(self) -> bytes:
        """Return the row's value."""
        return _OWNED.pack(VERSION, HashKind.SHA256, 0, 0, self.size, self.added_ms)

    @classmethod
    def decode(cls, data: bytes) -> LfsOwned:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("lfs ownership record", data, VERSION)
        if len(data) != _OWNED.size or data[0] != VERSION or data[1] != HashKind.SHA256:
            raise JournalCorrupt("lfs ownership record is off", bytes=len(data))
        _, _, _, _, size, added = _OWNED.unpack(data)
        return cls(size, added)


@dataclass(frozen=True, slots=True)
class LfsSource:
    """A repository whose objects a fork sees, as far as they were there at a revision of the journal."""

    repository: RepositoryId
    revision: int


def encode_sources(sources: tuple[LfsSource, ...]) -> bytes:
    """Return the value of a fork's row of sources."""
    rows = b"".join(_SOURCE.pack(source.repository, source.revision) for source in sources)
    return _SOURCES.pack(VERSION, 0, len(sources), 0) + rows


def decode_sources(data: bytes) -> tuple[LfsSource, ...]:
    """Return the sources in a row's value; JournalCorrupt when it is off."""
    check_row("lfs sources", data, VERSION)
    if len(data) < _SOURCES.size or data[0] != VERSION:
        raise JournalCorrupt("lfs sources are off", bytes=len(data))
    _, _, count, _ = _SOURCES.unpack_from(data)
    if len(data) != _SOURCES.size + count * _SOURCE.size:
        raise JournalCorrupt("lfs sources are off", bytes=len(data), count=count)
    rows = _SOURCE.iter_unpack(data[_SOURCES.size :])
    return tuple(LfsSource(RepositoryId(number), revision) for number, revision in rows)


@dataclass(frozen=True, slots=True)
class LockRecord:
    """A lock on a path: who holds it, since when."""

    id: bytes
    path: str
    owner: str
    locked_ms: int

    def encode(self) -> bytes:
        """Return the row's value."""
        owner, path = self.owner.encode(), self.path.encode()
        return _LOCK.pack(VERSION, len(owner), len(path), self.locked_ms) + owner + path

    @classmethod
    def decode(cls, lock: bytes, data: bytes) -> LockRecord:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("lock record", data, VERSION)
        try:
            version, owner, path, locked = _LOCK.unpack_from(data)
            start = _LOCK.size
            if version != VERSION or len(data) != start + owner + path:
                raise JournalCorrupt("lock record is off", version=version, bytes=len(data))
            return cls(
                lock,
                data[start + owner :].decode(),
                data[start : start + owner].decode(),
                locked,
            )
        except (struct.error, ValueError) as cause:
            raise JournalCorrupt("lock record does not parse", bytes=len(data)) from cause


def encode_lock_name(lock: bytes) -> bytes:
    """Return the value of a locked path's row."""
    return _LOCK_NAME.pack(VERSION, lock)


def decode_lock_name(data: bytes) -> bytes:
    """Return the lock's id in a locked path's row; JournalCorrupt when it is off."""
    check_row("lock name", data, VERSION)
    if len(data) != _LOCK_NAME.size or data[0] != VERSION:
        raise JournalCorrupt("lock name is off", bytes=len(data))
    return bytes(_LOCK_NAME.unpack(data)[1])
