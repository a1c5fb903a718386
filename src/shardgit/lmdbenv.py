"""Opening an LMDB environment the one right way; shards and journal share it.

The map is reserved once, 1 TiB of address space: growing a live map crashed every reader that held a view, and a
sparse reservation costs nothing. The file is never written through the map. Before opening, the file's size is checked
against the last page that LMDB's meta pages name: reading past the end of a mapped file kills the process.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import lmdb

from shardgit.errors import DataLoss, Internal, StorageFull

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAP_BYTES = 1 << 40
READERS_MAX = 2_048
PAGE_BYTES = 4_096
META_MAGIC = 0xBEEFC0DE
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_size(file: Path) -> None:
    """Raise DataLoss when the file is shorter than its newer meta page says."""
    if not file.exists() or file.stat().st_size == 0:
        return
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(2 * PAGE_BYTES)
    last = -1
    newest = -1
    for at in (0, PAGE_BYTES):
        # Page header of 16 bytes, then MDB_meta: magic, version, address, mapsize, two databases of 48 bytes
        # (the first holds the page size in its pad), last page, transaction id.
        meta = head[at + 16 : at + 16 + 136]
        if len(meta) < 136:
            continue
        magic, _, _, _, page_bytes = struct.unpack_from("<IIQQI", meta)
        last_page, transaction = struct.unpack_from("<QQ", meta, 24 + 96)
        if magic == META_MAGIC and page_bytes == PAGE_BYTES and transaction > newest:
            newest, last = transaction, last_page
    if last < 0:
        raise DataLoss("database file has no valid meta page", path=str(file))
    if size < (last + 1) * PAGE_BYTES and newest > 0:
        raise DataLoss("database file is truncated", path=str(file), bytes=size, needed=(last + 1) * PAGE_BYTES)


class Environment:
    """One LMDB environment with one unnamed table. Never used across a fork."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "data.mdb"
        check_size(self.file)
        try:
            self._environment = lmdb.open(
                str(folder),
                map_size=MAP_BYTES,
                max_readers=READERS_MAX,
                max_dbs=0,
                create=create,
                subdir=True,
                writemap=False,
                metasync=True,
                sync=True,
                readahead=True,
                meminit=False,
            )
        except lmdb.Error as cause:
            raise DataLoss("database does not open", path=str(folder), cause=str(cause)) from cause
        self._pid = os.getpid()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise Internal("an LMDB environment was used across a fork", path=str(self.folder))

    @contextmanager
    def read(self) -> Iterator[lmdb.Transaction]:
        """Open a read transaction whose values are views that die with it."""
        self._check()
        with self._environment.begin(buffers=True) as transaction:
            yield transaction

    @contextmanager
    def write(self) -> Iterator[lmdb.Transaction]:
        """Open a write transaction, durable when the block is left; StorageFull when it does not fit."""
        self._check()
        try:
            with self._environment.begin(write=True, buffers=True) as transaction:
                yield transaction
        except (lmdb.MapFullError, lmdb.DiskError) as cause:
            raise StorageFull("no space left in the database", path=str(self.folder)) from cause
        except lmdb.Error as cause:
            if any(os.strerror(number) in str(cause) for number in NO_SPACE):
                raise StorageFull("no space left on the disk", path=str(self.folder)) from cause
            raise

    def last_transaction(self) -> int:
        """Return the number of the last committed transaction."""
        self._check()
        return int(self._environment.info()["last_txnid"])

    def pages_used(self) -> tuple[int, int]:
        """Return (pages of live data, pages of the file)."""
        stat = self._environment.stat()
        live = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return int(live), int(self._environment.info()["last_pgno"]) + 1

    def entries(self) -> int:
        """Return the number of rows."""
        return int(self._environment.stat()["entries"])

    def reader_check(self) -> int:
        """Free the reader slots of dead processes; returns how many there were."""
        return int(self._environment.reader_check())

    def close(self) -> None:
        """Close the environment; no transaction may be open."""
        self._environment.close()
