"""Rows of the journal's table B: where the histories of shallow repositories end. See docs/formats/journal.md."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING

from shardgit.errors import JournalCorrupt
from shardgit.formats import check_row
from shardgit.oid import HashKind, ObjectId

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardgit.oid import RepositoryId

VERSION = 1
_HEAD = struct.Struct("<BBHI")


def grafts_key(repository: RepositoryId) -> bytes:
    """Return the key of a repository's grafts; a repository that is whole has no such row."""
    return b"B" + repository.to_bytes(8, "big")


def encode_grafts(ids: Iterable[ObjectId], kind: HashKind) -> bytes:
    """Return the value of a row of grafts, at least one."""
    ordered = sorted(set(ids))
    assert ordered
    return _HEAD.pack(VERSION, kind, 0, len(ordered)) + b"".join(ordered)


def decode_grafts(data: bytes, kind: HashKind) -> frozenset[ObjectId]:
    """Return the ids in a row's value; JournalCorrupt when it is off, or of another hash kind."""
    check_row("row of grafts", data, VERSION)
    size = kind.size
    if len(data) < _HEAD.size:
        raise JournalCorrupt("row of grafts is off", bytes=len(data))
    version, hashed, _, count = _HEAD.unpack_from(data)
    if version != VERSION or hashed != kind or not count:
        raise JournalCorrupt("row of grafts is off", version=version, bytes=len(data))
    if len(data) != _HEAD.size + count * size:
        raise JournalCorrupt("row of grafts has another length", bytes=len(data), count=count)
    ids = [ObjectId(data[at : at + size]) for at in range(_HEAD.size, len(data), size)]
    if any(one >= other for one, other in pairwise(ids)):
        raise JournalCorrupt("row of grafts is out of order", count=count)
    return frozenset(ids)
