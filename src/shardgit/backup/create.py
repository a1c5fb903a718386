"""Taking a backup: a consistent cut of the whole store while it serves.

A pin, one snapshot of the journal, its rows into a scratch file; then, without any snapshot, the blocks that those rows
lead to, as far as the target lacks them. The backup's own manifest comes last. Killed at any moment, a backup leaves
packs that the next one uses.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from blake3 import blake3

from shardgit import clock, metrics
from shardgit.backup.cut import Cut, CutFacts, RowsBlob, cut_name, encode_cut, new_cut_id
from shardgit.backup.last import KIND, LastBackup, note_backup
from shardgit.backup.lease import writing
from shardgit.backup.pack import BlobKind
from shardgit.backup.rows import decode_rows, encode_rows
from shardgit.backup.sending import Sender
from shardgit.backup.target import Target
from shardgit.errors import Conflict, DataLoss, JournalCorrupt, ShardgitError, StorageFull
from shardgit.faultpoints import reach
from shardgit.journal.interface import END
from shardgit.journal.mode import MODE_KEY
from shardgit.journal.operations import OPERATIONS
from shardgit.journal.pins import PINS, Pin
from shardgit.journal.records import NODES, REPOSITORY_NAMES, STORE_KEY, StoreRecord
from shardgit.journal.token_records import TICKET_SECRET_KEY
from shardgit.lmdbenv import NO_SPACE
from shardgit.operate.naming import Following
from shardgit.operate.operation import running
from shardgit.pool.condemned import CONDEMNED
from shardgit.progress import Progress
from shardgit.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardgit.journal.interface import Row
    from shardgit.oid import BlockId
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

BATCH = 32  # blocks read at once
ROUNDS = 4_096  # rows between two looks at the clock


@dataclass(frozen=True, slots=True)
class BackupMade:
    """What a backup took and what it sent."""

    backup: str
    target: str
    taken_ms: int
    repositories: int
    rows: int
    row_bytes: int
    blocks: int
    block_bytes: int
    sent_blobs: int
    sent_bytes: int
    seconds: float


def create_backup(store: Store, target: str, *, control: Control) -> BackupMade:
    """Back the store up to a folder or URL; all that was acknowledged before the call is in it.

    Errors: Refused while another backup of the store runs, StoreBusy while the target is written to, DataLoss when the
    store lacks a block that its journal leads to, Stopped, Unavailable, StorageFull.
    """
    begun = time.monotonic()
    with running(store, KIND):
        opened = Target.open(target, make=True)
        with writing(opened.bucket) as renew:
            opened.load()
            # The pin tells other nodes, by their clocks; the lease holds by this process's session.
            lease = store.lease()
            pin = Pin(store.journal, f"backup to {opened.bucket.where}"[:200], _now_ms())
            try:
                facts = _Backup(store, opened, control, pin, renew).run()
            finally:
                lease.end()
                with suppress(ShardgitError):
                    pin.drop()
    return BackupMade(
        facts.id,
        opened.bucket.where,
        facts.taken_ms,
        facts.repositories,
        facts.rows,
        facts.row_bytes,
        facts.blocks,
        facts.block_bytes,
        facts.sent_blobs,
        facts.sent_bytes,
        time.monotonic() - begun,
    )


def _now_ms() -> int:
    return clock.now_ms()


@dataclass(frozen=True, slots=True)
class _Held:
    """A blob of rows in the scratch file."""

    blob: RowsBlob
    start: int
    length: int


class _Backup:
    """One backup under way."""

    def __init__(
        self,
        store: Store,
        target: Target,
        control: Control,
        pin: Pin,
        renew: Callable[[], None],
    ) -> None:
        self.store = store
        self.target = target
        self.control = control
        self._pin = pin
        self._renew = renew
        self._chunks: list[_Held] = []
        self._rows = self._row_bytes = self._repositories = 0
        self._revision = 0
        self._store_id = ""

    def run(self) -> CutFacts:
        """Do all of it."""
        with tempfile.TemporaryFile(dir=self.store.scratch) as file:
            # Before the snapshot: what was acknowledged up to this moment is in it.
            taken_ms = _now_ms()
            try:
                self._dump(file)
            except OSError as cause:
                if cause.errno not in NO_SPACE:
                    raise
                raise StorageFull("no room for the journal's rows", rows=self._rows) from cause
            reach("backup.after_snapshot")
            blocks = self._named(file)
            with Sender(self.target) as sender:
                self._send_blocks(sender, blocks)
                for held in self._chunks:
                    sender.add(held.blob.id, _read(file, held), BlobKind.ROWS)
                    self._beat()
                sender.write_index()
        ids = b"".join(sorted(blocks))
        facts = CutFacts(
            id=new_cut_id(taken_ms),
            store=self._store_id,
            taken_ms=taken_ms,
            finished_ms=_now_ms(),
            revision=self._revision,
            rows=self._rows,
            row_bytes=self._row_bytes,
            repositories=self._repositories,
            blocks=len(blocks),
            block_bytes=sum(self.target.length(block) for block in blocks),
            sent_blobs=sender.sent_blobs,
            sent_bytes=sender.sent_bytes,
            version=VERSION,
            host=socket.gethostname(),
        )
        self._renew()
        data = encode_cut(Cut(facts, tuple(held.blob for held in self._chunks), ids))
        reach("backup.before_manifest")
        # commit point: before it there are packs that the next backup uses, after it the backup is whole.
        if not self.target.bucket.create(cut_name(facts.id), data):
            raise Conflict("a backup of that id is there already", backup=facts.id)
        reach("backup.after_manifest")
        # commit point: the backup is whole before it; after it the store knows when it was taken.
        reach("backup.before_note")
        self.store.journal.commit_sync(
            [],
            [
                note_backup(
                    LastBackup(
                        self.target.bucket.where,
                        facts.id,
                        facts.taken_ms,
                        facts.finished_ms,
                        facts.sent_bytes,
                    )
                )
            ],
        )
        metrics.BACKUP_TAKEN.set(facts.taken_ms / 1_000)
        reach("backup.after_note")
        return facts

    def _dump(self, file: BinaryIO) -> None:
        """Write the rows of one snapshot, which ends before anything slow begins."""
        with self.store.journal.snapshot() as snapshot:
            self._revision = snapshot.revision
            own = snapshot.get(STORE_KEY)
            if own is None:
                raise JournalCorrupt("journal has no store id")
            self._store_id = str(uuid.UUID(bytes=StoreRecord.decode(own.value).id))
            start = 0
            for first, rows, data in encode_rows(self._counted(snapshot.range(b"\0", END))):
                file.write(data)
                name = blake3(data).digest()
                self._chunks.append(_Held(RowsBlob(name, rows, first), start, len(data)))
                start += len(data)
                self._row_bytes += len(data)
        file.flush()  # what reads it goes round the buffer

    def _counted(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            if (
                row.key[:1] in {PINS, OPERATIONS, CONDEMNED, NODES, MODE_KEY}
                or row.key == TICKET_SECRET_KEY
            ):
                continue  # good for nothing in a restored store, or nobody else's business
            self._rows += 1
            if row.key[:1] == REPOSITORY_NAMES:
                self._repositories += 1
            if not self._rows % ROUNDS:
                self.control.check()
            yield row

    def _named(self, file: BinaryIO) -> dict[BlockId, None]:
        """Return the blocks that the rows lead to, each once; those of a pool are neighbours."""
        naming = Following(self.store.blocks)
        found: dict[BlockId, None] = {}
        done = 0
        for held in self._chunks:
            for row in decode_rows(_read(file, held)):
                done += 1
                for block in naming.of(row):
                    found[block] = None
                if not done % 64:
                    self.control.report(Progress("following rows", done, self._rows, "objects"))
                    self._beat()
        return found

    def _send_blocks(self, sender: Sender, blocks: dict[BlockId, None]) -> None:
        missing = [block for block in blocks if block not in self.target]
        for at in range(0, len(missing), BATCH):
            ids = missing[at : at + BATCH]
            size = 0
            for block, data in zip(ids, self.store.blocks.get_many_sync(ids), strict=True):
                if data is None:
                    raise DataLoss(
                        "a block that the journal leads to is missing", block=block.hex()
                    )
                sender.add(block, data, BlobKind.BLOCK)
                size += len(data)
            self.control.report(Progress("sending blocks", at + len(ids), len(missing), "blocks"))
            self.control.pace(size)
            self._beat()

    def _beat(self) -> None:
        """Say that we live, to the store's gc and to other writers of the target."""
        if not self._pin.renew(_now_ms()):
            raise Conflict("backup was silent for too long; begin it again")
        self._renew()


def _read(file: BinaryIO, held: _Held) -> bytes:
    return os.pread(file.fileno(), held.length, held.start)
