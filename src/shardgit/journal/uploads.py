"""Rows of uploads: objects written by id that no ref names yet. See docs/formats/uploads.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shardgit.errors import JournalCorrupt
from shardgit.formats import check_row
from shardgit.oid import BlockId, HashKind, RepositoryId

VERSION = 1
TABLE = b"U"
_HEAD = struct.Struct("<B7xQ")
_ROW = struct.Struct("<BBHIQ")
_BLOCK_BYTES = 32


def uploads_head_key(repository: RepositoryId) -> bytes:
    """Return the key of the row that every upload into a repository compares and puts."""
    return TABLE + repository.to_bytes(8, "big")


def upload_key(repository: RepositoryId, sequence: int) -> bytes:
    """Return the key of one upload."""
    return uploads_head_key(repository) + sequence.to_bytes(8, "big")


def uploads_range(repository: RepositoryId) -> tuple[bytes, bytes]:
    """Return the key range of a repository's uploads, their head left out."""
    head = uploads_head_key(repository)
    return head + bytes(8), head + b"\xff" * 9


@dataclass(frozen=True, slots=True)
class UploadsHead:
    """The number of a repository's last upload, from 1 on."""

    sequence: int

    def encode(self) -> bytes:
        """Return the row's value."""
        return _HEAD.pack(VERSION, self.sequence)

    @classmethod
    def decode(cls, data: bytes) -> UploadsHead:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("head of uploads", data, VERSION)
        if len(data) != _HEAD.size or data[0] != VERSION:
            raise JournalCorrupt("head of uploads is off", bytes=len(data))
        return cls(int(_HEAD.unpack(data)[1]))


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """Some uploaded objects: their ids, or the blocks that hold them."""

    hash_kind: HashKind
    time_ms: int
    ids: bytes = b""  # raw ids, one after another
    blocks: tuple[BlockId, ...] = ()

    def encode(self) -> bytes:
        """Return the row's value."""
        head = _ROW.pack(VERSION, self.hash_kind, 0, len(self.blocks), self.time_ms)
        return head + b"".join(self.blocks) + self.ids

    @classmethod
    def decode(cls, data: bytes) -> UploadRecord:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("upload", data, VERSION)
        if len(data) < _ROW.size or data[0] != VERSION or data[1] not in (1, 2):
            raise JournalCorrupt("upload is off", bytes=len(data))
        _, kind, _, blocks, time_ms = _ROW.unpack_from(data)
        end = _ROW.size + blocks * _BLOCK_BYTES
        size = HashKind(kind).size
        if end > len(data) or (len(data) - end) % size:
            raise JournalCorrupt("upload is cut short", bytes=len(data))
        names = range(_ROW.size, end, _BLOCK_BYTES)
        return cls(
            HashKind(kind),
            time_ms,
            data[end:],
            tuple(BlockId(data[at : at + _BLOCK_BYTES]) for at in names),
        )
