"""A ref, and its bytes in a loose row and in a snapshot. See docs/formats/refs.md."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from shardgit.errors import JournalCorrupt
from shardgit.oid import HashKind, ObjectId

VERSION = 1
_U16 = struct.Struct("<H")


class Kind(enum.IntEnum):
    """What a ref's record holds."""

    DIRECT = 1
    PEELED = 2  # direct, to a tag, with what the tag peels to
    SYMBOLIC = 3
    DELETED = 4  # a loose row that hides a ref of the snapshot


@dataclass(frozen=True, slots=True)
class Ref:
    """A ref: an object id (and what a tag peels to), or the name of another ref."""

    name: bytes
    target: ObjectId | None = None
    symbolic: bytes | None = None
    peeled: ObjectId | None = None


def encode_body(ref: Ref) -> bytes:
    """Return a ref's record without its name."""
    if ref.symbolic is not None:
        return bytes([Kind.SYMBOLIC]) + _U16.pack(len(ref.symbolic)) + ref.symbolic
    if ref.target is None:
        return bytes([Kind.DELETED])
    if ref.peeled is not None:
        return bytes([Kind.PEELED]) + ref.target + ref.peeled
    return bytes([Kind.DIRECT]) + ref.target


def decode_body(name: bytes, data: bytes | memoryview, kind: HashKind) -> tuple[Ref, int]:
    """Return the ref at the start of ``data`` and its length; a deleted one has neither target nor symbolic."""
    try:
        what = Kind(data[0])
        size = kind.size
        if what is Kind.SYMBOLIC:
            (length,) = _U16.unpack_from(data, 1)
            end = 3 + length
            ref = Ref(name, symbolic=bytes(data[3:end]))
        elif what is Kind.DELETED:
            end, ref = 1, Ref(name)
        else:
            peeled = ObjectId(bytes(data[1 + size : 1 + 2 * size])) if what is Kind.PEELED else None
            end = 1 + size * what
            ref = Ref(name, target=ObjectId(bytes(data[1 : 1 + size])), peeled=peeled)
    except (ValueError, IndexError, struct.error) as cause:
        raise JournalCorrupt("ref record does not parse", bytes=len(data)) from cause
    if end > len(data):
        raise JournalCorrupt("ref record is cut short", bytes=len(data))
    return ref, end


def encode_row(ref: Ref, kind: HashKind) -> bytes:
    """Return the value of a loose ref's row."""
    return bytes([VERSION, kind]) + encode_body(ref)


def decode_row(name: bytes, data: bytes) -> Ref:
    """Return the ref in a loose row's value; JournalCorrupt when it is off."""
    if len(data) < 3 or data[0] != VERSION or data[1] not in (1, 2):
        raise JournalCorrupt("loose ref is off", bytes=len(data))
    ref, end = decode_body(name, data[2:], HashKind(data[1]))
    if end != len(data) - 2:
        raise JournalCorrupt("loose ref has bytes behind it", bytes=len(data))
    return ref
