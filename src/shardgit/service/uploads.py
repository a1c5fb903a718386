"""Uploads: objects that a repository was given by id, and which no ref names yet.

They count as the repository's own for a grace period: it may read them, point refs to them, and
build on them. Nothing else that they lead to becomes visible with them. See docs/formats/uploads.md.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.blocks.block import HEADER_SIZE, BlockKind, named, new_header, parse_header
from shardgit.errors import BlockCorrupt, DataLoss
from shardgit.graph.closure import bit
from shardgit.journal.interface import Compare, Delete, Put
from shardgit.journal.uploads import (
    UploadRecord,
    UploadsHead,
    upload_key,
    uploads_head_key,
    uploads_range,
)
from shardgit.oid import ObjectId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.blocks.interface import BlockStore
    from shardgit.journal.interface import Condition, JournalSnapshot, Operation, Row
    from shardgit.journal.records import RepositoryRecord
    from shardgit.limits import Limits
    from shardgit.oid import BlockId, HashKind, PoolId, RepositoryId
    from shardgit.pool.view import PoolView

UPLOAD_FLAG = 1  # of a block of kind PART
INLINE_IDS = 2_048  # more stand in blocks
DAY_MS = 86_400_000
DAY_ROWS = 16  # uploads of one day before they are folded into one
CACHED = 256


@dataclass(frozen=True, slots=True)
class Upload:
    """A row of uploads and its key."""

    key: bytes
    record: UploadRecord


class Uploaded:
    """What a repository's uploads are in one view: a bitset over positions, found at the first use."""

    def __init__(self, rows: Sequence[Upload], view: PoolView | None, source: Uploads) -> None:
        self.rows = tuple(rows)
        self._view = view
        self._source = source
        self._bits: bytes | None = None if rows and view is not None else b""

    def __bool__(self) -> bool:
        """Whether there may be any."""
        return bool(self.rows)

    def bits(self) -> bytes:
        """Return the bitset; b"" for none."""
        if self._bits is None:
            assert self._view is not None
            self._bits = self._source.bits_in(self._view, self.rows)
        return self._bits

    def has(self, position: int) -> bool:
        """Return whether the object at a position was uploaded."""
        return bool(self.rows) and bit(self.bits(), position)


class Uploads:
    """Reads and plans the uploads of a store's repositories. Methods run in the calling thread."""

    def __init__(self, blocks: BlockStore, limits: Limits) -> None:
        self._blocks = blocks
        self._limits = limits
        self.none = Uploaded((), None, self)
        self._lock = Lock()
        self._cached: OrderedDict[tuple[RepositoryId, int, int, bytes], Uploaded] = OrderedDict()

    def of(
        self, snapshot: JournalSnapshot, record: RepositoryRecord, view: PoolView | None
    ) -> Uploaded:
        """Return what counts as uploaded at a snapshot, whose view is ``view``."""
        head = snapshot.get(uploads_head_key(record.id))
        if head is None or view is None:
            return self.none
        # Rows expire as time goes by: a cached answer is good for a minute.
        key = (record.id, head.revision, clock.now_ms() // 60_000, view.id)
        with self._lock:
            found = self._cached.get(key)
        if found is None:
            made = Uploaded(self.fresh(snapshot, record.id), view, self)
            with self._lock:
                found = self._cached.setdefault(key, made)
                while len(self._cached) > CACHED:
                    self._cached.popitem(last=False)
        return found

    def _rows(self, snapshot: JournalSnapshot, repository: RepositoryId) -> list[Upload]:
        rows = snapshot.range(*uploads_range(repository))
        return [Upload(row.key, UploadRecord.decode(row.value)) for row in rows]

    def fresh(self, snapshot: JournalSnapshot, repository: RepositoryId) -> list[Upload]:
        """Return the uploads that count still."""
        since = _now_ms() - self._grace_ms
        return [one for one in self._rows(snapshot, repository) if one.record.time_ms >= since]

    def fresh_ids(self, snapshot: JournalSnapshot, repository: RepositoryId) -> set[ObjectId]:
        """Return the ids that a repository was given and whose time is not over. Errors: DataLoss."""
        return {oid for one in self.fresh(snapshot, repository) for oid in self.ids(one.record)}

    @property
    def _grace_ms(self) -> int:
        return int(self._limits.upload_grace_s * 1_000)

    def bits_in(self, view: PoolView, rows: Sequence[Upload]) -> bytes:
        """Return the bitset of all ids of rows."""
        out = bytearray(-(-view.objects // 8))
        for row in rows:
            for at in view.positions(self.ids(row.record)):
                if at >= 0:
                    out[at >> 3] |= 1 << (at & 7)
        return bytes(out)

    def ids(self, record: UploadRecord) -> list[ObjectId]:
        """Return the ids of one upload. Errors: DataLoss when a block is missing."""
        flat = record.ids
        for name in record.blocks:
            (data,) = self._blocks.get_many_sync([name])
            if data is None:
                raise DataLoss("block of an upload is missing", block=name.hex())
            if parse_header(data, kind=BlockKind.PART).flags != UPLOAD_FLAG:
                raise BlockCorrupt("block is none of an upload", block=name.hex())
            flat += data[HEADER_SIZE:]
        size = record.hash_kind.size
        return [ObjectId(flat[at : at + size]) for at in range(0, len(flat), size)]

    def plan(
        self,
        snapshot: JournalSnapshot,
        record: RepositoryRecord,
        ids: Sequence[ObjectId],
    ) -> tuple[list[Condition], list[Operation]]:
        """Return the steps that note an upload, to go into the commit of its objects.

        Blocks that the row needs are put at once. What has expired goes; the rows of one day are
        folded before they are many.
        """
        head_key = uploads_head_key(record.id)
        row: Row | None = snapshot.get(head_key)
        sequence = UploadsHead.decode(row.value).sequence + 1 if row else 1
        now_ms = _now_ms()
        rows = self._rows(snapshot, record.id)
        gone = [one for one in rows if one.record.time_ms < now_ms - self._grace_ms][:32]
        today = [
            one
            for one in rows
            if one.record.time_ms // DAY_MS == now_ms // DAY_MS
            and one.record.time_ms >= now_ms - self._grace_ms
        ]
        all_ids = set(ids)
        if len(today) >= DAY_ROWS:
            gone += today
            for one in today:
                all_ids.update(self.ids(one.record))
        new = self._record(record.pool, record.hash_kind, sorted(all_ids), now_ms)
        return (
            [Compare(head_key, row.revision if row else 0)],
            [
                Put(head_key, UploadsHead(sequence).encode()),
                Put(upload_key(record.id, sequence), new.encode()),
                *(Delete(one.key) for one in gone),
            ],
        )

    def _record(
        self, pool: PoolId, kind: HashKind, ids: Sequence[ObjectId], now_ms: int
    ) -> UploadRecord:
        flat = b"".join(ids)
        if len(ids) <= INLINE_IDS:
            return UploadRecord(kind, now_ms, ids=flat)
        room = (self._limits.block_target_bytes - HEADER_SIZE) // kind.size * kind.size
        blocks: list[tuple[BlockId, bytes]] = []
        for at in range(0, len(flat), room):
            some = flat[at : at + room]
            header = new_header(
                BlockKind.PART, kind, pool, HEADER_SIZE + len(some), flags=UPLOAD_FLAG
            )
            blocks.append(named(header + some))
        self._blocks.put_many_sync(blocks)
        return UploadRecord(kind, now_ms, blocks=tuple(name for name, _ in blocks))


def _now_ms() -> int:
    return clock.now_ms()
