"""Rows of a journal in LMDB: revision, checksum and value, read so that damage is never an answer.

See docs/formats/journal.md.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import lmdb
from blake3 import blake3

from shardgit.errors import DataLoss, JournalCorrupt, ShardgitError, Unavailable
from shardgit.journal.interface import KEY_MAX_BYTES, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

_FRAME = struct.Struct("<Q8s")
_SEED = struct.Struct("<HQ")
ROWS_KNOWN, ROW_KNOWN_BYTES = 64, 4_096  # that a snapshot keeps


def checksum_of(key: bytes, revision: int, value: bytes) -> bytes:
    """Return what stands in a row's frame to tell whether the row is whole."""
    return blake3(b"".join((_SEED.pack(len(key), revision), key, value))).digest(length=8)


def frame_row(key: bytes, revision: int, value: bytes) -> bytes:
    """Return a row as LMDB has it."""
    return _FRAME.pack(revision, checksum_of(key, revision, value)) + value


def decode_row(key: bytes, framed: bytes | memoryview) -> Row:
    """Return the row that LMDB has as ``framed``; JournalCorrupt when it does not match its checksum."""
    if len(framed) < _FRAME.size:
        raise JournalCorrupt("journal row is too short", key=key.hex())
    revision, checksum = _FRAME.unpack_from(framed)
    value = bytes(framed[_FRAME.size :])
    if checksum_of(key, revision, value) != checksum:
        raise JournalCorrupt("journal row does not match its checksum", key=key.hex())
    return Row(key, value, revision)


def get_row(transaction: lmdb.Transaction, key: bytes) -> Row | None:
    """Return a row.

    A miss is believed only when the rows on both sides of it are whole and in order.
    """
    if not 1 <= len(key) <= KEY_MAX_BYTES:
        return None
    framed = transaction.get(key)
    if framed is not None:
        return decode_row(key, framed)
    with transaction.cursor() as cursor:
        behind = cursor.set_range(key)
        if behind:
            after = bytes(cursor.key())
            decode_row(after, cursor.value())
            if after <= key:
                raise JournalCorrupt("journal rows are out of order", key=after.hex())
        if cursor.prev() if behind else cursor.last():
            before = bytes(cursor.key())
            decode_row(before, cursor.value())
            if before >= key:
                raise JournalCorrupt("journal rows are out of order", key=before.hex())
    return None


def rows_between(transaction: lmdb.Transaction, low: bytes, high: bytes) -> Iterator[Row]:
    """Return the rows in low <= key < high by rising key, lazily."""
    low = low[: KEY_MAX_BYTES + 1] or b"\0"
    last: bytes | None = None
    start = low[:KEY_MAX_BYTES]
    with transaction.cursor() as cursor:
        found = cursor.set_range(start)
        if found and start < low and bytes(cursor.key()) == start:
            found = cursor.next()
        while found:
            key = bytes(cursor.key())
            row = decode_row(key, cursor.value())
            if key < low or (last is not None and key <= last):
                raise JournalCorrupt("journal rows are out of order", key=key.hex())
            if key >= high:
                return
            yield row
            last = key
            found = cursor.next()


def as_ours(error: lmdb.Error | DataLoss, path: str) -> ShardgitError:
    """Return LMDB's own errors as ours."""
    if isinstance(error, JournalCorrupt):
        return error
    if isinstance(error, DataLoss):
        return JournalCorrupt(error.message, **error.facts)
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError):
        return JournalCorrupt("journal is damaged", path=path, cause=str(error))
    if isinstance(error, lmdb.ReadersFullError):
        return Unavailable("journal has no free reader slot", path=path)
    return Unavailable("journal failed", path=path, cause=str(error))


@contextmanager
def typed(path: str) -> Iterator[None]:
    """Turn LMDB's own errors into ours."""
    try:
        yield
    except (lmdb.Error, DataLoss) as cause:
        error = as_ours(cause, path)
        if error is cause:
            raise
        raise error from cause


class LmdbSnapshot:
    """See JournalSnapshot."""

    def __init__(self, transaction: lmdb.Transaction, path: str) -> None:
        self._transaction: lmdb.Transaction | None = transaction
        self._path = path
        self.revision = int(transaction.id())
        self._known: dict[bytes, Row | None] = {}  # a request asks for some rows several times

    def _open(self) -> lmdb.Transaction:
        if self._transaction is None:
            raise Unavailable("journal snapshot has ended")
        return self._transaction

    def end(self) -> None:
        """Let go of the transaction: every later call is Unavailable."""
        self._transaction = None

    def get(self, key: bytes) -> Row | None:
        """See JournalSnapshot."""
        transaction = self._open()
        known = self._known
        if key in known:
            return known[key]
        try:
            row = get_row(transaction, key)
        except (lmdb.Error, DataLoss) as cause:
            error = as_ours(cause, self._path)
            if error is cause:
                raise
            raise error from cause
        if len(known) < ROWS_KNOWN and (row is None or len(row.value) <= ROW_KNOWN_BYTES):
            known[key] = row
        return row

    def range(self, low: bytes, high: bytes, *, limit: int | None = None) -> Iterator[Row]:
        """See JournalSnapshot."""
        return self._range(self._open(), low, high, limit)

    def _range(
        self, transaction: lmdb.Transaction, low: bytes, high: bytes, limit: int | None
    ) -> Iterator[Row]:
        if limit is not None and limit <= 0:
            return
        given = 0
        with typed(self._path):
            for row in rows_between(transaction, low, high):
                yield row
                given += 1
                if given == limit:
                    return
                self._open()
