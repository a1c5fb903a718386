"""Opening an LMDB environment the one right way; shards and journal share it.

The map is reserved once, 1 TiB of address space: growing a live map crashed every reader that held
a view, and a sparse reservation costs nothing. The file is never written through the map. Before
opening, the file's size is checked against the last page that LMDB's meta pages name: reading past
the end of a mapped file kills the process. Pages at the end that are on LMDB's free list may be
missing: a page that one transaction takes and gives back is never written (3% of random commits
leave such a file).
"""

from __future__ import annotations

import errno
import os
import resource
import struct
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import lmdb

from shardgit import metrics
from shardgit.errors import DataLoss, Internal, Refused, StorageFull, StoreBusy, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAP_BYTES = 1 << 40
READERS_MAX = 2_048
LOCK_FILE_BYTES = READERS_MAX * 64 + 4_096  # 64 bytes a reader slot, and room for the mutexes
PAGE_BYTES = 4_096
FREE_TAIL_MAX = 1 << 20  # pages; a longer missing tail is not looked up in the free list
PROBE_BYTES = 64 << 20  # less room than this explains a failed write
META_MAGIC = 0xBEEFC0DE
# What a process or the machine may lack for a while; the file is as it was.
SHORT_OF = tuple(
    os.strerror(number)
    for number in (
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR),
        *(errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ETIMEDOUT),
    )
)
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


# Page header of 16 bytes, then MDB_meta: magic, version, address, map size; the free list's table,
# of 48 bytes, with the page size in its first field and its root in its last; the main table; last
# page, transaction id.
_META = struct.Struct("<16xIIQQI36xQ48xQQ")
_PAGE = struct.Struct(
    "<QHHHH"
)  # number, pad, flags, lower, upper (or, in one u32, the pages of an overflow page)
_NODE = struct.Struct("<HHHH")  # size low, size high, flags, key size
_BRANCH, _LEAF, _OVERFLOW, _BIG = 1, 2, 4, 1
_NO_PAGE = (1 << 64) - 1


def check_size(file: Path) -> None:
    """Raise DataLoss when the file lacks a page in use, going by its newer meta page."""
    if not file.exists() or file.stat().st_size == 0:
        return
    facts: dict[str, int] | None = None
    with file.open("rb") as opened:
        for _ in range(3):  # another process may commit while we look
            facts = _truncation(opened)
            if facts is None:
                return
    raise DataLoss("database file is truncated", path=str(file), **(facts or {}))


def raise_transaction(file: Path, transaction: int) -> None:
    """Make ``transaction``, or the number behind it, that of a closed environment's last commit.

    The number stands in the newer of the two meta pages, and its last bit says which page that is; the older one gets
    the number before, as if the two had followed. Nobody may have the environment open. Errors: DataLoss without a
    valid meta page, Internal when the number would fall.
    """
    with file.open("r+b") as opened:
        found: list[tuple[int, int]] = []
        for number in (0, 1):
            opened.seek(number * PAGE_BYTES)
            meta = opened.read(_META.size)
            if len(meta) == _META.size and _META.unpack(meta)[0] == META_MAGIC:
                found.append((int(_META.unpack(meta)[-1]), number))
        if not found:
            raise DataLoss("database file has no valid meta page", path=str(file))
        last, number = max(found)
        if transaction < last or last & 1 != number:
            raise Internal("transaction number would fall", last=last, wanted=transaction)
        raised = transaction + ((transaction ^ last) & 1)
        for _, page in found:
            opened.seek(page * PAGE_BYTES + _META.size - 8)
            opened.write(struct.pack("<Q", raised if page == number else raised - 1))
        opened.flush()
        os.fsync(opened.fileno())


def _truncation(opened: BinaryIO) -> dict[str, int] | None:
    newest = last = root = -1
    for at in (0, PAGE_BYTES):
        opened.seek(at)
        meta = opened.read(_META.size)
        if len(meta) < _META.size:
            continue
        magic, _, _, _, page_bytes, free_root, last_page, transaction = _META.unpack(meta)
        if magic == META_MAGIC and page_bytes == PAGE_BYTES and transaction > newest:
            newest, last, root = transaction, last_page, free_root
    # After the meta pages: a writer extends the file before it writes them.
    size = os.fstat(opened.fileno()).st_size
    if last < 0:
        raise DataLoss("database file has no valid meta page", path=opened.name)
    present = size // PAGE_BYTES
    if newest == 0 or last < present:
        return None
    missing = last + 1 - present
    if missing <= FREE_TAIL_MAX and _free_pages(opened, root, present).issuperset(
        range(present, last + 1)
    ):
        return None
    return {"bytes": size, "needed": (last + 1) * PAGE_BYTES}


def _free_pages(opened: BinaryIO, root: int, present: int) -> set[int]:
    """Read LMDB's free list without mapping the file; what does not parse frees no page."""
    free: set[int] = set()
    waiting = [root] if root != _NO_PAGE else []
    seen: set[int] = set()
    while waiting:
        number = waiting.pop()
        if number in seen or not 2 <= number < present:
            return set()
        seen.add(number)
        opened.seek(number * PAGE_BYTES)
        page = opened.read(PAGE_BYTES)
        _, _, flags, lower, _ = _PAGE.unpack_from(page)
        if not flags & (_BRANCH | _LEAF) or not _PAGE.size <= lower <= PAGE_BYTES:
            return set()
        try:
            for node in struct.unpack_from(f"<{(lower - _PAGE.size) // 2}H", page, _PAGE.size):
                low, high, node_flags, key_bytes = _NODE.unpack_from(page, node)
                if flags & _BRANCH:
                    waiting.append(low | high << 16 | node_flags << 32)
                    continue
                at = node + _NODE.size + key_bytes
                data = page[at : at + (low | high << 16)]
                if node_flags & _BIG:
                    opened.seek(struct.unpack("<Q", data[:8])[0] * PAGE_BYTES + _PAGE.size)
                    data = opened.read(low | high << 16)
                (count,) = struct.unpack_from("<Q", data)
                free.update(struct.unpack_from(f"<{min(count, len(data) // 8)}Q", data, 8))
        except (struct.error, OSError):
            return set()
    return free


def _reserve_lock_file(folder: Path) -> None:
    """Make the lock file with its blocks on the disk, unless there is one.

    LMDB makes it sparse and maps it: on a full disk the first reader to touch a hole is killed by
    SIGBUS. A file that is there is left alone: closing any handle of it would drop this process's
    locks. Errors: StorageFull.
    """
    target = folder / "lock.mdb"
    if target.exists():
        return
    handle, name = tempfile.mkstemp(dir=folder, prefix="lock-")
    try:
        os.posix_fallocate(handle, 0, LOCK_FILE_BYTES)
        os.fchmod(handle, 0o644)
        with suppress(FileExistsError):  # another process was faster
            target.hardlink_to(name)
    except OSError as cause:
        if cause.errno in NO_SPACE:
            raise StorageFull("no space left for the lock file", path=str(folder)) from cause
        raise Unavailable("lock file was not made", path=str(target), cause=str(cause)) from cause
    finally:
        os.close(handle)
        Path(name).unlink()


class Environment:
    """One LMDB environment with one unnamed table. Never used across a fork.

    Without ``durable`` a commit outlives the process, but not the machine: after a crash of that, what was not
    ``sync``ed may be damaged, its trees too. Commits of a ``part`` with a name are measured.
    """

    def __init__(
        self,
        folder: Path,
        *,
        create: bool = False,
        map_bytes: int = MAP_BYTES,
        durable: bool = True,
        part: str = "",
    ) -> None:
        self._fsync = metrics.fsync_of(part) if part and durable else None
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "data.mdb"
        if not create and (not self.file.exists() or self.file.stat().st_size == 0):
            # LMDB would quietly begin a new, empty database in an empty file.
            raise DataLoss("database file is missing or empty", path=str(self.file))
        check_size(self.file)
        _reserve_lock_file(folder)
        try:
            self._environment = lmdb.open(
                str(folder),
                map_size=map_bytes,
                max_readers=READERS_MAX,
                max_dbs=0,
                create=create,
                subdir=True,
                writemap=False,
                metasync=durable,
                sync=durable,
                readahead=True,
                meminit=False,
            )
        except lmdb.Error as cause:
            if "already open" in str(cause):
                raise StoreBusy(
                    "database is open already in this process", path=str(folder)
                ) from cause
            if str(cause).endswith((os.strerror(errno.EROFS), os.strerror(errno.EACCES))):
                raise Refused(
                    "database cannot be written to",
                    path=str(folder),
                    cause=str(cause).rpartition(": ")[2],
                ) from cause
            if str(cause).endswith(SHORT_OF):
                raise Unavailable(
                    "database cannot be opened now", path=str(folder), cause=str(cause)
                ) from cause
            raise DataLoss("database does not open", path=str(folder), cause=str(cause)) from cause
        self._pid = os.getpid()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise Internal("an LMDB environment was used across a fork", path=str(self.folder))

    @contextmanager
    def read(self) -> Iterator[lmdb.Transaction]:
        """Open a read transaction whose values are views that die with it."""
        with self.begin() as transaction:
            yield transaction

    def begin(self) -> lmdb.Transaction:
        """Return a read transaction as ``read`` opens one, to be entered and left at once."""
        self._check()
        return self._environment.begin(buffers=True)

    @contextmanager
    def pin(self) -> Iterator[int | None]:
        """Keep the pages of this moment from being written over; gives its transaction's number.

        None, and nothing is kept, when LMDB begins no transaction on the file as it is.
        """
        self._check()
        try:
            transaction = self._environment.begin()
        except lmdb.Error:
            yield None
            return
        try:
            yield int(transaction.id())
        finally:
            transaction.abort()

    @contextmanager
    def write(self) -> Iterator[lmdb.Transaction]:
        """Open a write transaction, durable when the block is left; StorageFull when it does not
        fit.
        """
        self._check()
        try:
            ended = 0.0
            with self._environment.begin(write=True, buffers=True) as transaction:
                yield transaction
                ended = time.perf_counter()
            if self._fsync is not None:
                self._fsync.observe(time.perf_counter() - ended)
        except (lmdb.MapFullError, lmdb.DiskError) as cause:
            raise StorageFull("no space left in the database", path=str(self.folder)) from cause
        except (lmdb.BadValsizeError, lmdb.InvalidParameterError):
            raise
        except OSError as cause:  # of a fault point
            if cause.errno not in NO_SPACE:
                raise
            raise StorageFull("no space left on the disk", path=str(self.folder)) from cause
        except lmdb.Error as cause:
            # LMDB answers a short write, which is how a full disk often shows first, with EIO.
            if any(os.strerror(number) in str(cause) for number in NO_SPACE) or self._out_of_room():
                raise StorageFull("no space left on the disk", path=str(self.folder)) from cause
            if isinstance(cause, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError):
                raise DataLoss(
                    "database is damaged", path=str(self.folder), cause=str(cause)
                ) from cause
            raise Unavailable(
                "database was not written", path=str(self.folder), cause=str(cause)
            ) from cause

    def _out_of_room(self) -> bool:
        """Say whether disk, quota or file size limit leaves less than PROBE_BYTES."""
        most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if most != resource.RLIM_INFINITY and self.file.stat().st_size + PROBE_BYTES > most:
            return True
        try:
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                os.posix_fallocate(probe.fileno(), 0, PROBE_BYTES)
        except OSError as error:
            return error.errno in NO_SPACE
        return False

    def trim(self, check: Callable[[], None] | None = None) -> None:
        """Give back to the disk what a commit that failed has appended past the last page; ``check`` may refuse it."""
        with self.write():  # the lock keeps other writers out
            if check is not None:
                check()
            end = (int(self._environment.info()["last_pgno"]) + 1) * PAGE_BYTES
            if self.file.stat().st_size > end:
                os.truncate(self.file, end)

    def sync(self) -> None:
        """Make all commits durable. Errors: StorageFull, Unavailable."""
        self._check()
        try:
            self._environment.sync(True)
        except lmdb.Error as cause:
            raise Unavailable(
                "database was not written", path=str(self.folder), cause=str(cause)
            ) from cause

    def last_transaction(self) -> int:
        """Return the number of the last committed transaction."""
        self._check()
        return int(self._environment.info()["last_txnid"])

    def oldest_reader(self) -> int:
        """Return the transaction that the oldest open snapshot of any process shows; the last one without any."""
        self._check()
        self._environment.reader_check()
        last = self.last_transaction()
        rows = [line.split() for line in self._environment.readers().splitlines()[1:]]
        return min((int(row[2]) for row in rows if row[2] != "-"), default=last)

    def has_readers(self) -> bool:
        """Say whether any process has a snapshot open."""
        self._check()
        self._environment.reader_check()
        rows = [line.split() for line in self._environment.readers().splitlines()[1:]]
        return any(row[2] != "-" for row in rows)

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
