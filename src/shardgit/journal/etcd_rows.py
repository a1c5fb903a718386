"""How a journal's rows lie in etcd: keys under a prefix, values with a tag and a checksum.

See docs/formats/journal.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from blake3 import blake3

from shardgit.errors import InvalidArgument, JournalCorrupt

INLINE, SPILLED = 1, 2
PREFIX_MAX_BYTES = 128
REFERENCE_BYTES = 60
SPILL_ABOVE_BYTES = 4_096  # of the ref log's values: most are some hundred bytes
_HEAD = struct.Struct("<B8s")
_SEED = struct.Struct("<HB")
_REFERENCE = struct.Struct("<16sQI32s")
_RECENTS, _LOG = SPILLED_TABLES = b"S", b"L"
LEASED = b"Ys"  # rows that hang on leases, sessions: they go without a commit, and the head does not tell of it


@dataclass(frozen=True, slots=True)
class Reference:
    """Where the bytes of a spilled value lie, and their BLAKE3."""

    bundle: bytes
    offset: int
    length: int
    digest: bytes


class EtcdKeys:
    """The keys of one journal: rows behind ``r``, the head at ``h``, slots behind ``s``.

    Every commit puts the head, so its mod_revision is the journal's revision, and one watch over ``h`` to ``s`` sees
    rows and head, not the slots.
    """

    def __init__(self, prefix: bytes) -> None:
        if not 1 <= len(prefix) <= PREFIX_MAX_BYTES or prefix.endswith(b"\xff"):
            raise InvalidArgument("prefix in etcd is empty or too long", bytes=len(prefix))
        self.head = prefix + b"h"
        self.rows = prefix + b"r"
        self.slots = prefix + b"s"
        self.watched = (self.head, self.slots)
        self._own = len(self.rows)

    def row(self, key: bytes) -> bytes:
        """Return where a row of the journal stands in etcd."""
        return self.rows + key

    def key(self, there: bytes) -> bytes:
        """Return the journal's key of a row in etcd."""
        return there[self._own :]

    def is_row(self, there: bytes) -> bool:
        """Say whether a key of etcd is that of a row."""
        return there.startswith(self.rows) and len(there) > self._own


def is_spilled(key: bytes, value: bytes) -> bool:
    """Say whether a row's value goes into a bundle: recents do, and large entries of the ref log."""
    return key[:1] == _RECENTS or (key[:1] == _LOG and len(value) > SPILL_ABOVE_BYTES)


def _checksum(key: bytes, tag: int, payload: bytes) -> bytes:
    return blake3(b"".join((_SEED.pack(len(key), tag), key, payload))).digest(length=8)


def encode_value(key: bytes, value: bytes) -> bytes:
    """Return what etcd keeps of a row whose value stands there itself."""
    return _HEAD.pack(INLINE, _checksum(key, INLINE, value)) + value


def encode_reference(key: bytes, reference: Reference) -> bytes:
    """Return what etcd keeps of a row whose value lies in a bundle."""
    payload = _REFERENCE.pack(
        reference.bundle, reference.offset, reference.length, reference.digest
    )
    return _HEAD.pack(SPILLED, _checksum(key, SPILLED, payload)) + payload


def is_whole(key: bytes, stored: bytes) -> bool:
    """Say whether a row is as it was written."""
    if len(stored) < _HEAD.size:
        return False
    tag, checksum = _HEAD.unpack_from(stored)
    return bool(checksum == _checksum(key, tag, stored[_HEAD.size :]))


def decode_value(key: bytes, stored: bytes) -> bytes | Reference:
    """Return a row's value, or where it lies; JournalCorrupt for what does not parse.

    The checksum is not looked at: ``is_whole`` does that once, when the row comes from etcd.
    """
    tag = stored[0] if len(stored) >= _HEAD.size else 0
    if tag == INLINE:
        return stored[_HEAD.size :]
    if tag == SPILLED and len(stored) == _HEAD.size + _REFERENCE.size:
        return Reference(*_REFERENCE.unpack_from(stored, _HEAD.size))
    raise JournalCorrupt("row in etcd is damaged", key=key.hex(), tag=tag, bytes=len(stored))
