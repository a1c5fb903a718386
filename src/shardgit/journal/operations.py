"""Rows of the journal's table O: where long operations stand. See docs/formats/journal.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from shardgit.errors import JournalCorrupt
from shardgit.formats import check_row
from shardgit.journal.interface import Compare, Put, end_of

if TYPE_CHECKING:
    from shardgit.journal.interface import JournalSnapshot

VERSION = 1
OPERATIONS = b"O"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Saved(Generic[T]):
    """A record as it was read, and the revision of its row for compare-and-set; None and 0 without."""

    key: bytes
    record: T | None
    revision: int

    def unchanged(self) -> Compare:
        """Return the condition that nobody has written the row since."""
        return Compare(self.key, self.revision)


def operation_key(kind: str, piece: str = "") -> bytes:
    """Return the key of an operation's row, or of one of its pieces."""
    name = f"{kind}:{piece}" if piece else kind
    return OPERATIONS + name.encode("ascii")


def pieces_range(kind: str) -> tuple[bytes, bytes]:
    """Return the key range of an operation's pieces."""
    prefix = OPERATIONS + f"{kind}:".encode("ascii")
    return prefix, end_of(prefix)


def read_operation(
    snapshot: JournalSnapshot, kind: str, shape: type[T], piece: str = ""
) -> Saved[T]:
    """Return an operation's record; ``shape`` is its class, a frozen dataclass or struct.

    Errors: JournalCorrupt, StoreFormatUnknown for a record of another version.
    """
    key = operation_key(kind, piece)
    row = snapshot.get(key)
    if row is None:
        return Saved(key, None, 0)
    return Saved(key, decode_operation(row.value, shape), row.revision)


def put_operation(kind: str, record: object, piece: str = "") -> Put:
    """Return the operation that writes a record."""
    return Put(operation_key(kind, piece), encode_operation(record))


def encode_operation(record: object) -> bytes:
    """Return the value of a record's row."""
    return bytes([VERSION]) + msgspec.json.encode(record)


def decode_operation(data: bytes, shape: type[T]) -> T:
    """Return the record in a row's value."""
    if not data:
        raise JournalCorrupt("operation record is empty")
    check_row("operation record", data, VERSION)
    if data[0] != VERSION:
        raise JournalCorrupt("operation record is of no known version", version=data[0])
    try:
        return msgspec.json.decode(data[1:], type=shape)
    except (msgspec.DecodeError, RecursionError) as cause:
        raise JournalCorrupt("operation record does not parse", cause=str(cause)) from cause
