"""Rows of a journal in blobs: cut where the keys say, so that what did not change is one blob in many backups.

See docs/formats/backup.md.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from shardgit.errors import BackupCorrupt
from shardgit.journal.interface import KEY_MAX_BYTES, VALUE_MAX_BYTES, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAGIC = b"SGBJ"
VERSION = 1
_HEAD = struct.Struct("<4sHHI4x")
_ROW = struct.Struct("<HxxIQ")
LEAST_BYTES = 128 << 10
MOST_BYTES = 4 << 20
# One key in 256 ends a blob once it has LEAST_BYTES: cuts fall on the same keys again in the next backup.
CUT_MASK = 0xFF


def encode_rows(rows: Iterable[Row]) -> Iterator[tuple[bytes, int, bytes]]:
    """Return (first key, count of rows, blob) for all rows, which come by rising key."""
    waiting: list[bytes] = []
    count = size = 0
    first = b""
    for row in rows:
        data = _ROW.pack(len(row.key), len(row.value), row.revision)
        length = len(data) + len(row.key) + len(row.value)
        if waiting and size + length > MOST_BYTES:
            yield first, count, _blob(count, waiting)
            waiting, count, size = [], 0, 0
        if not waiting:
            first = row.key
        waiting += (data, row.key, row.value)
        count += 1
        size += length
        if size >= LEAST_BYTES and not zlib.crc32(row.key) & CUT_MASK:
            yield first, count, _blob(count, waiting)
            waiting, count, size = [], 0, 0
    if waiting:
        yield first, count, _blob(count, waiting)


def _blob(count: int, parts: list[bytes]) -> bytes:
    return _HEAD.pack(MAGIC, VERSION, 0, count) + b"".join(parts)


def decode_rows(data: bytes) -> list[Row]:
    """Return the rows in a blob; BackupCorrupt when it is off."""
    if len(data) < _HEAD.size:
        raise BackupCorrupt("rows of a backup are cut short", bytes=len(data))
    magic, version, _, count = _HEAD.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise BackupCorrupt("rows of a backup have an unknown magic or version", version=version)
    found: list[Row] = []
    at, last = _HEAD.size, b""
    for _ in range(count):
        if at + _ROW.size > len(data):
            raise BackupCorrupt("rows of a backup are cut short", bytes=len(data))
        key_bytes, value_bytes, revision = _ROW.unpack_from(data, at)
        at += _ROW.size
        end = at + key_bytes + value_bytes
        if end > len(data) or not 1 <= key_bytes <= KEY_MAX_BYTES or value_bytes > VALUE_MAX_BYTES:
            raise BackupCorrupt("row of a backup is off", bytes=len(data))
        key = data[at : at + key_bytes]
        if key <= last:
            raise BackupCorrupt("rows of a backup are out of order", key=key.hex())
        found.append(Row(key, data[at + key_bytes : end], revision))
        at, last = end, key
    if at != len(data):
        raise BackupCorrupt("rows of a backup have bytes behind their end", bytes=len(data))
    return found
