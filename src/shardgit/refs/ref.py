"""A ref, and its bytes in a loose row and in a snapshot. See docs/formats/refs.md."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from shardgit.errors import JournalCorrupt
from shardgit.formats import check_row
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

    @property
    def stands(self) -> bool:
        """False for the mark of a deleted ref, which has neither target nor symbolic."""
        return self.target is not None or self.symbolic is not None


def encode_body(ref: Ref) -> bytes:
    """Return a ref's record without its name."""
    if ref.symbolic is not None:
        return bytes([Kind.SYMBOLIC]) + _U16.pack(len(ref.symbolic)) + ref.symbolic
    if ref.target is None:
        return bytes([Kind.DELETED])
    if ref.peeled is not None:
        return bytes([Kind.PEELED]) + ref.target + ref.peeled
    return bytes([Kind.DIRECT]) + ref.target


def decode_body(name: bytes, data: bytes, at: int, size: int) -> tuple[Ref, int]:
    """Return the ref at ``at`` and where it ends; ``size`` is the length of an id.

    Errors: JournalCorrupt.
    """
    kind = data[at] if at < len(data) else 0
    at += 1
    if kind == Kind.DIRECT:
        end = at + size
        ref = Ref(name, ObjectId(data[at:end]))
    elif kind == Kind.PEELED:
        end = at + 2 * size
        ref = Ref(name, ObjectId(data[at : at + size]), None, ObjectId(data[at + size : end]))
    elif kind == Kind.SYMBOLIC and at + 2 <= len(data):
        end = at + 2 + (data[at] | data[at + 1] << 8)
        ref = Ref(name, symbolic=data[at + 2 : end])
    elif kind == Kind.DELETED:
        return Ref(name), at
    else:
        raise JournalCorrupt("ref record does not parse", kind=kind)
    if end > len(data):
        raise JournalCorrupt("ref record is cut short", bytes=len(data))
    return ref, end


def encode_row(ref: Ref, kind: HashKind) -> bytes:
    """Return the value of a loose ref's row."""
    return bytes([VERSION, kind]) + encode_body(ref)


def decode_row(name: bytes, data: bytes) -> Ref:
    """Return the ref in a loose row's value; JournalCorrupt when it is off."""
    check_row("loose ref", data, VERSION)
    if len(data) < 3 or data[0] != VERSION or data[1] not in (1, 2):
        raise JournalCorrupt("loose ref is off", bytes=len(data))
    ref, end = decode_body(name, data, 2, HashKind(data[1]).size)
    if end != len(data):
        raise JournalCorrupt("loose ref has bytes behind it", bytes=len(data))
    return ref
