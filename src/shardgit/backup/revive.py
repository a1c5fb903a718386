"""One repository of a backup, brought into a store that lives, with all that belongs to it.

Blocks come first, then rows in as many commits as they take, under the record of a *deleted* repository with a name
that none can have; one last commit makes it a repository. Stopped before that, what is there is a deleted repository,
which gc takes away like any other.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.backup.reborn import Rebirth
from shardgit.backup.rewind import check_targets, refs_then
from shardgit.backup.source import BackupBlocks
from shardgit.errors import (
    BackupCorrupt,
    Conflict,
    RepositoryExists,
    ShardgitError,
)
from shardgit.faultpoints import reach
from shardgit.graph.shallow import with_lacking
from shardgit.journal.cursor_records import HookCursor, cursor_key
from shardgit.journal.graft_records import decode_grafts, encode_grafts, grafts_key
from shardgit.journal.interface import Compare, Delete, Put, end_of
from shardgit.journal.lfs_records import (
    LfsRecord,
    LfsSource,
    decode_sources,
    lfs_object_key,
    lfs_owned_key,
    lfs_sources_key,
)
from shardgit.journal.pins import Pin
from shardgit.journal.records import (
    NO_REPOSITORY,
    NameRecord,
    PoolRecord,
    RefsHead,
    RepositoryRecord,
    allocate_repository,
    deleted_key,
    encode_counter,
    log_range,
    name_key,
    pool_key,
    recents_range,
    ref_key,
    refs_head_key,
    repository_key,
)
from shardgit.journal.uploads import UploadRecord, uploads_head_key, uploads_range
from shardgit.oid import PoolId
from shardgit.pool.append import BlockBatch
from shardgit.pool.grafts import NO_GRAFTS, Grafts
from shardgit.pool.view import PoolView
from shardgit.refs.change import HEAD
from shardgit.refs.log import LogChange, LogNote, encode_entry, named_blocks, with_blocks
from shardgit.refs.ref import Ref, encode_row
from shardgit.refs.table import RefTable
from shardgit.service.settings import unmirrored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.backup.cut import Cut
    from shardgit.backup.rewind import RefsThen
    from shardgit.backup.source import CutSnapshot
    from shardgit.backup.target import Target
    from shardgit.oid import RepositoryId
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

STEPS_MAX = 100
STEPS_BYTES = 1 << 20
ROUNDS_MAX = 64


@dataclass(frozen=True, slots=True)
class OwnRow:
    """A row of a repository whose number is not known yet: it stands between ``table`` and ``rest`` in the key."""

    table: bytes
    rest: bytes
    value: bytes

    def of(self, repository: RepositoryId) -> Put:
        """Return the operation that writes it."""
        return Put(self.table + repository.to_bytes(8, "big") + self.rest, self.value)


@dataclass(frozen=True, slots=True)
class Revived:
    """The repository as it is now, and what came with it."""

    record: RepositoryRecord
    refs: int
    blocks: int
    bytes: int


class Revival:
    """One repository of one backup on its way into a store."""

    def __init__(
        self,
        store: Store,
        target: Target,
        cut: Cut,
        snapshot: CutSnapshot,
        record: RepositoryRecord,
        *,
        control: Control,
    ) -> None:
        self.store = store
        self.cut = cut
        self.snapshot = snapshot
        self.old = record
        self.source = BackupBlocks(target, store.workers)
        self.table = RefTable(self.source)
        self.pool = PoolId(os.urandom(16))
        self.batch = BlockBatch(store.blocks, embed=False)
        self._pin = Pin(store.journal, f"restore of {record.name}"[:200], clock.now_ms())
        self.rebirth = Rebirth(
            target,
            self.source,
            self.batch,
            self.pool,
            limits=store.limits,
            control=control,
            beat=self._beat,
        )

    def _beat(self) -> None:
        if not self._pin.renew(clock.now_ms()):
            raise Conflict("restore was silent for too long; begin it again")

    def run(self, name: str, at_ms: int | None, message: str) -> Revived:
        """Bring it. Errors: BackupCorrupt, RepositoryMissing, LogPositionUnknown, RepositoryExists, StorageFull."""
        try:
            with (
                self.store.lease()
            ):  # on the blocks that are put before the rows, however long that takes
                return self._run(name, at_ms, message)
        finally:
            with suppress(ShardgitError):
                self._pin.drop()

    def _run(self, name: str, at_ms: int | None, message: str) -> Revived:
        then = refs_then(self.table, self.snapshot, self.old, at_ms)
        head = then.head(self.table, self.snapshot, self.old)
        pool = self._pool()
        made = self.rebirth.refs(then.refs(self.table, self.snapshot, self.old), self.old.hash_kind)
        before = self.table.head(self.snapshot, self.old)
        kind = self.old.hash_kind if made.root else None
        refs_head = RefsHead(made.root, made.count, 0, kind, before.sequence + 1)
        entry = self._entry(then, message)
        # Blocks before any row that names them.
        lfs, objects = self._lfs()
        rows = [
            *self._logs(),
            OwnRow(b"L", (before.sequence + 1).to_bytes(8, "big"), entry),
            *self._uploads(),
            *self._locks(),
            *self._cursors(before.sequence + 1),
        ]
        self.batch.put([])
        reach("revive.after_blocks")
        grafts = self._check(pool, then)
        if grafts:
            rows.append(OwnRow(b"B", b"", encode_grafts(grafts.ids, self.old.hash_kind)))
        record, revision = self._staged(name, pool, refs_head, head)
        # What says that the repository sees LFS objects before these: a gc in between leaves what is seen.
        owned = [row.of(record.id) for row in lfs]
        self._commit_rows([*owned, *objects, *(row.of(record.id) for row in rows)])
        reach("revive.before_commit")
        # commit point: before it there is a deleted repository that gc takes away, after it the repository is whole.
        if not self.store.try_commit(
            [Compare(name_key(name), 0), Compare(deleted_key(record.id), revision)],
            [
                Delete(deleted_key(record.id)),
                Put(name_key(name), NameRecord(record.id).encode()),
                Put(repository_key(record.id), record.encode()),
            ],
        ):
            with self.store.journal.snapshot() as now:
                if now.get(name_key(name)) is not None:
                    raise RepositoryExists("repository exists already", repository=name)
            raise Conflict("restore took longer than the grace period of gc; begin it again")
        reach("revive.after_commit")
        return Revived(record, made.count, self.rebirth.blocks, self.rebirth.bytes)

    # ---- blocks ----

    def _pool(self) -> PoolRecord:
        row = self.snapshot.get(pool_key(self.old.pool))
        if row is None:
            raise BackupCorrupt("backup lacks the pool of a repository", repository=self.old.name)
        old = PoolRecord.decode(self.old.pool, row.value)
        recents = [one.value for one in self.snapshot.range(*recents_range(self.old.pool))]
        root = self.rebirth.manifest(old.manifest, recents, old.hash_kind)
        return PoolRecord(self.pool, old.hash_kind, root, 1 if root else 0, clock.now_ms())

    def _check(self, pool: PoolRecord, then: RefsThen) -> Grafts:
        """Read back: all that the refs reach is there; returns where history ends."""
        row = self.snapshot.get(grafts_key(self.old.id))
        grafts = Grafts.of(decode_grafts(row.value, self.old.hash_kind)) if row else NO_GRAFTS
        view = PoolView(
            self.store.blocks, pool.hash_kind, pool.manifest, limits=self.store.limits
        ).with_grafts(grafts)
        refs = list(then.refs(self.table, self.snapshot, self.old))
        check_targets(view, refs, self.old.name)
        tips = sorted({ref.target for ref in refs if ref.target is not None})
        if tips:
            view = view.with_grafts(with_lacking(view, view.positions(tips)))
            self.store.closure_of(view, view.positions(tips))
        return view.grafts

    def _entry(self, then: RefsThen, message: str) -> bytes:
        """Return the log row that says what the restore did to the refs of the backup."""
        changes = []
        for name in sorted(then.undone, key=lambda one: (one != HEAD, one)):
            now = self.table.get(self.snapshot, self.old, name)
            if now != then.undone[name]:
                changes.append(LogChange(name, now, then.undone[name]))
        return encode_entry(
            changes,
            LogNote("", message, time_ms=clock.now_ms()),
            pool=self.pool,
            hash_kind=self.old.hash_kind,
            put=self.batch.put,
        )

    # ---- rows, by the number that the repository will have ----

    def _logs(self) -> Iterator[OwnRow]:
        for row in self.snapshot.range(*log_range(self.old.id)):
            made, blocks = named_blocks(row.value)
            renamed = {block: self.rebirth.one(block) for block in blocks}
            if made is not None:
                renamed[made] = self.rebirth.snapshot(made)
            yield OwnRow(b"L", row.key[9:], with_blocks(row.value, renamed.__getitem__))

    def _lfs(self) -> tuple[list[OwnRow], list[Put]]:
        """Bring the LFS objects that the repository saw; they are its own now. Beside its rows those of the pool."""
        row = self.snapshot.get(lfs_sources_key(self.old.id))
        sources = [
            LfsSource(self.old.id, self.snapshot.revision),
            *(decode_sources(row.value) if row else ()),
        ]
        owned: dict[bytes, bytes] = {}
        for source in sources:
            low = lfs_owned_key(source.repository)
            for one in self.snapshot.range(low, end_of(low)):
                if one.revision <= source.revision:
                    owned.setdefault(one.key[len(low) :], one.value)
        records = []
        for oid in owned:
            found = self.snapshot.get(lfs_object_key(self.old.pool, oid))
            if found is None:
                raise BackupCorrupt("lfs object has no record in its pool", oid=oid.hex())
            records.append(LfsRecord.decode(found.value))
        made = self.rebirth.lfs(records)
        objects = [
            Put(lfs_object_key(self.pool, oid), record.encode())
            for oid, record in zip(owned, made, strict=True)
        ]
        return [OwnRow(b"Fr", oid, value) for oid, value in owned.items()], objects

    def _uploads(self) -> Iterator[OwnRow]:
        head = self.snapshot.get(uploads_head_key(self.old.id))
        if head is not None:
            yield OwnRow(b"U", b"", head.value)
        for row in self.snapshot.range(*uploads_range(self.old.id)):
            old = UploadRecord.decode(row.value)
            new = replace(old, blocks=tuple(self.rebirth.one(block) for block in old.blocks))
            yield OwnRow(b"U", row.key[9:], new.encode())

    def _locks(self) -> Iterator[OwnRow]:
        low = b"W" + self.old.id.to_bytes(8, "big")
        for row in self.snapshot.range(low, end_of(low)):
            yield OwnRow(b"W", row.key[9:], row.value)

    def _cursors(self, sequence: int) -> Iterator[OwnRow]:
        """Hooks are told of what comes after the restore."""
        low = cursor_key(self.old.id, b"")
        for row in self.snapshot.range(low, end_of(low)):
            yield OwnRow(b"E", row.key[9:], HookCursor(sequence).encode())

    # ---- commits ----

    def _staged(
        self, name: str, pool: PoolRecord, refs_head: RefsHead, head: Ref | None
    ) -> tuple[RepositoryRecord, int]:
        """Take a number and put the rows that hold the blocks; returns the record and its row's revision."""
        shown = head or Ref(HEAD, symbolic=b"refs/heads/main")
        for _ in range(ROUNDS_MAX):
            with self.store.journal.snapshot() as now:
                if now.get(name_key(name)) is not None:
                    raise RepositoryExists("repository exists already", repository=name)
                number = allocate_repository(now)
                parent = now.get(repository_key(self.old.parent))
            known = parent is not None and self._same_parent(parent.value)
            record = replace(
                self.old,
                id=number.id,
                name=name,
                pool=self.pool,
                settings=unmirrored(self.old.settings),
                parent=self.old.parent if known else NO_REPOSITORY,
            )
            # No name has a NUL: nobody finds it by this one.
            hidden = replace(record, name=f"\0restoring/{name}")
            gone = encode_counter(clock.now_ms()) + hidden.encode()
            try:
                # commit point: before it blocks that nothing names, after it a deleted repository that is not whole.
                reach("revive.before_stage")
                revision = self.store.journal.commit_sync(
                    [number.condition],
                    [
                        number.operation,
                        Put(deleted_key(number.id), gone),
                        Put(pool_key(self.pool), pool.encode()),
                        Put(refs_head_key(number.id), refs_head.encode()),
                        Put(ref_key(number.id, HEAD), encode_row(shown, record.hash_kind)),
                    ],
                )
            except Conflict:
                continue
            reach("revive.after_stage")
            return record, revision
        raise Conflict("repositories are made too fast", repository=name)

    def _same_parent(self, value: bytes) -> bool:
        """Say whether the store's repository of the parent's number is the one of the backup."""
        row = self.snapshot.get(repository_key(self.old.parent))
        if row is None:
            return False
        then, now = RepositoryRecord.decode(row.value), RepositoryRecord.decode(value)
        return (then.pool, then.created_ms) == (now.pool, now.created_ms)

    def _commit_rows(self, steps: list[Put]) -> None:
        """Put rows, in as many commits as they take. Nobody reads them yet."""
        waiting: list[Put] = []
        size = 0
        for step in steps:
            length = len(step.key) + len(step.value)
            if waiting and (len(waiting) == STEPS_MAX or size + length > STEPS_BYTES):
                self.store.journal.commit_sync([], waiting)
                reach("revive.between_rows")
                self._beat()
                waiting, size = [], 0
            waiting.append(step)
            size += length
        if waiting:
            self.store.journal.commit_sync([], waiting)
