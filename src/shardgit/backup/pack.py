"""Packs: many blobs in one object, with a footer that names them. See docs/formats/backup.md."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit.errors import BackupCorrupt

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC = b"SGBP"
INDEX_MAGIC = b"SGBI"
VERSION = 1
BLOB_MAX_BYTES = 8 << 20
_HEAD = struct.Struct("<4sHHQ")
_ENTRY = struct.Struct("<32sII")
_TRAILER = struct.Struct("<II32s8s")
_END = b"SGBPEND1"
_INDEX = struct.Struct("<4sHHI4x")
_PACK = struct.Struct("<32sII")
TRAILER_BYTES = _TRAILER.size
ID_BYTES = 32


class BlobKind(enum.IntEnum):
    """What a blob of a pack is."""

    BLOCK = 1
    ROWS = 2  # of the journal


@dataclass(frozen=True, slots=True)
class PackEntry:
    """A blob of a pack: its BLAKE3, length and kind. Blobs stand in the order of the entries."""

    id: bytes
    length: int
    kind: BlobKind


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack by its footer; ``id`` is the BLAKE3 of the entries."""

    id: bytes
    entries: tuple[PackEntry, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole object."""
        return self.blobs_end + len(self.entries) * _ENTRY.size + _TRAILER.size

    @property
    def blobs_end(self) -> int:
        """Where the footer begins."""
        return _HEAD.size + sum(entry.length for entry in self.entries)

    @property
    def name(self) -> str:
        """The object's name."""
        return pack_name(self.id)

    def offsets(self) -> list[int]:
        """Return where each blob starts."""
        out, at = [], _HEAD.size
        for entry in self.entries:
            out.append(at)
            at += entry.length
        return out


def pack_name(pack: bytes) -> str:
    """Return the name of a pack's object."""
    return f"packs/{pack[:1].hex()}/{pack.hex()}"


def encode_pack(blobs: Sequence[tuple[PackEntry, bytes]]) -> tuple[Pack, bytes]:
    """Return a pack and the bytes of its object; the blobs are checked already."""
    rows = b"".join(_row(entry) for entry, _ in blobs)
    made = Pack(blake3(rows).digest(), tuple(entry for entry, _ in blobs))
    head = _HEAD.pack(MAGIC, VERSION, 0, 0)
    trailer = _TRAILER.pack(len(blobs), 0, made.id, _END)
    return made, b"".join((head, *(data for _, data in blobs), rows, trailer))


def _row(entry: PackEntry) -> bytes:
    return _ENTRY.pack(entry.id, entry.length, entry.kind)


def _entries(rows: bytes) -> tuple[PackEntry, ...]:
    found = []
    for blob, length, kind in _ENTRY.iter_unpack(rows):
        if not 0 < length <= BLOB_MAX_BYTES or kind not in (1, 2):
            raise BackupCorrupt("pack names an impossible blob", bytes=length, kind=kind)
        found.append(PackEntry(blob, length, BlobKind(kind)))
    return tuple(found)


def footer_bytes(trailer: bytes) -> int:
    """Return how long the footer is, trailer included, by a pack's last TRAILER_BYTES."""
    if len(trailer) != _TRAILER.size:
        raise BackupCorrupt("pack is shorter than its trailer", bytes=len(trailer))
    count, reserved, _, end = _TRAILER.unpack(trailer)
    if end != _END or reserved:
        raise BackupCorrupt("pack does not end as one")
    return int(count) * _ENTRY.size + _TRAILER.size


def decode_footer(data: bytes) -> Pack:
    """Return the pack that a footer, trailer included, describes; BackupCorrupt when it is off."""
    if len(data) < _TRAILER.size or len(data) != footer_bytes(data[-_TRAILER.size :]):
        raise BackupCorrupt("footer of a pack is cut short", bytes=len(data))
    _, _, name, _ = _TRAILER.unpack(data[-_TRAILER.size :])
    rows = data[: -_TRAILER.size]
    if blake3(rows).digest() != name:
        raise BackupCorrupt("footer of a pack does not match its name", pack=name.hex())
    return Pack(name, _entries(rows))


def check_pack(pack: Pack, data: bytes) -> list[bytes]:
    """Return the ids of the blobs in a pack's object that do not match; BackupCorrupt when its frame is off."""
    if len(data) != pack.size or data[: _HEAD.size] != _HEAD.pack(MAGIC, VERSION, 0, 0):
        raise BackupCorrupt("pack has another frame", pack=pack.id.hex(), bytes=len(data))
    if decode_footer(data[pack.blobs_end :]) != pack:
        raise BackupCorrupt("pack has another footer than its index says", pack=pack.id.hex())
    view = memoryview(data)
    return [
        entry.id
        for entry, at in zip(pack.entries, pack.offsets(), strict=True)
        if blake3(view[at : at + entry.length]).digest() != entry.id
    ]


# ---- indexes ----


def encode_index(packs: Sequence[Pack]) -> tuple[str, bytes]:
    """Return name and bytes of an index: the footers of some packs in one object."""
    out = [_INDEX.pack(INDEX_MAGIC, VERSION, 0, len(packs))]
    for pack in packs:
        out.append(_PACK.pack(pack.id, len(pack.entries), 0))
        out += [_row(entry) for entry in pack.entries]
    body = b"".join(out)
    digest = blake3(body).digest()
    return f"indexes/{digest.hex()}", body + digest


def decode_index(data: bytes) -> list[Pack]:
    """Return the packs in an index; BackupCorrupt when it is off."""
    body, digest = data[:-ID_BYTES], data[-ID_BYTES:]
    if len(body) < _INDEX.size or blake3(body).digest() != digest:
        raise BackupCorrupt("index of a backup does not match its checksum", bytes=len(data))
    magic, version, _, count = _INDEX.unpack_from(body)
    if magic != INDEX_MAGIC or version != VERSION:
        raise BackupCorrupt("index of a backup has an unknown magic or version", version=version)
    packs, at = [], _INDEX.size
    for _ in range(count):
        if at + _PACK.size > len(body):
            raise BackupCorrupt("index of a backup is cut short", bytes=len(data))
        name, entries, _ = _PACK.unpack_from(body, at)
        at += _PACK.size
        rows = body[at : at + entries * _ENTRY.size]
        if len(rows) != entries * _ENTRY.size or blake3(rows).digest() != name:
            raise BackupCorrupt("index of a backup names a pack wrongly", pack=name.hex())
        at += len(rows)
        packs.append(Pack(name, _entries(rows)))
    if at != len(body):
        raise BackupCorrupt("index of a backup has bytes behind its end", bytes=len(data))
    return packs
