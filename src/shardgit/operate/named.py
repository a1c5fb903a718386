"""Which blocks the journal names, at one revision: all others are orphans."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardgit import _segment, clock
from shardgit.errors import DataLoss
from shardgit.journal.interface import end_of
from shardgit.journal.lfs_records import LfsRecord
from shardgit.journal.pins import fresh_pins
from shardgit.journal.records import PoolRecord, RefsHead, RepositoryRecord, decode_deleted
from shardgit.journal.uploads import UploadRecord
from shardgit.oid import BlockId, HashKind, PoolId, RepositoryId
from shardgit.pool.condemned import CONDEMNED, CondemnedRecord
from shardgit.pool.manifest import ALONE, BlockRef, decode_manifest, embedded_block
from shardgit.pool.parts import decode_parts
from shardgit.refs.snapshot import RefSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

KEY_BYTES = 9  # of a table's letter and a repository's id


@dataclass(slots=True)
class Named:
    """What the journal names at ``revision``. Of ``damaged`` pools not all can be told.

    Blocks that roots have inside are ``embedded``. A settle, compaction or gc puts them out as they are, hence as old
    as they are, before its commit names them; it loses unless the roots are still those that were looked at here.
    """

    revision: int
    pins: list[str] = field(default_factory=list)  # who wants that no block is deleted
    blocks: set[BlockId] = field(default_factory=set)
    embedded: set[BlockId] = field(default_factory=set)
    damaged: dict[PoolId, str] = field(default_factory=dict)

    def has(self, block: BlockId) -> bool:
        """Say whether a block is named, or in one that is."""
        return block in self.blocks or block in self.embedded


def named_blocks(store: Store, *, control: Control) -> Named:
    """Return what the journal names now. Whoever deletes what is not in there holds no lease meanwhile."""
    return _Naming(store, control).run()


class _Naming:
    """One look. What rows lead to is read behind the journal's snapshot, where it is much."""

    def __init__(self, store: Store, control: Control) -> None:
        self.store = store
        self.control = control
        self._manifests: list[PoolRecord] = []
        self._snapshots: dict[BlockId, set[RepositoryId]] = {}
        self._lists: list[tuple[PoolId, BlockId]] = []
        self._pools: dict[RepositoryId, PoolId] = {}

    def run(self) -> Named:
        with self.store.journal.snapshot() as snapshot:
            # It keeps what the rows lead to, once the snapshot that shows them is closed.
            lease = self.store.leases.take(snapshot.revision)
            self.found = Named(snapshot.revision)
            pins = fresh_pins(snapshot, clock.now_ms())
            self.found.pins = [pin.holder for pin in pins]
            self._pool_rows(snapshot)
            self._repository_rows(snapshot)
        with lease:
            self._resolve()
        return self.found

    # ---- rows ----

    def _pool_rows(self, snapshot: JournalSnapshot) -> None:
        blocks = self.found.blocks
        for row in snapshot.range(b"P", b"Q"):
            pool = PoolRecord.decode(PoolId(row.key[1:]), row.value)
            if pool.manifest is not None:
                self._manifests.append(pool)
        for row in snapshot.range(CONDEMNED, end_of(CONDEMNED)):
            blocks.update(CondemnedRecord.decode(row.value).blocks)
        for row in snapshot.range(b"S", b"T"):
            self._manifest(PoolId(row.key[1:17]), row.value)
        low = b"Fo"
        for row in snapshot.range(low, end_of(low)):
            record = LfsRecord.decode(row.value)
            if record.root is not None:
                blocks.add(record.root)
                if record.parts > 1:
                    self._lists.append((PoolId(row.key[2:18]), record.root))

    def _repository_rows(self, snapshot: JournalSnapshot) -> None:
        for table in (b"I", b"D"):
            for row in snapshot.range(table, end_of(table)):
                value = row.value if table == b"I" else decode_deleted(row.value)[1]
                self._pools[_repository(row.key)] = RepositoryRecord.decode(value).pool
        for row in snapshot.range(b"H", b"I"):
            root = RefsHead.decode(row.value).snapshot
            if root is not None:
                self._snapshots.setdefault(root, set()).add(_repository(row.key))
        for row in snapshot.range(b"L", b"M"):
            changes = self.store.refs.entry(row).changes
            self.found.blocks.update(changes.blocks)
            if changes.made is not None:
                self._snapshots.setdefault(changes.made.root, set()).add(_repository(row.key))
        for row in snapshot.range(b"U", b"V"):
            if len(row.key) > KEY_BYTES:
                self.found.blocks.update(UploadRecord.decode(row.value).blocks)

    # ---- what rows lead to ----

    def _resolve(self) -> None:
        for pool in self._manifests:
            assert pool.manifest is not None
            self.control.pace(0)
            self.found.blocks.add(pool.manifest)
            try:
                root = self._read(pool.manifest)
            except DataLoss as error:
                self._damage(pool.id, error)
                continue
            self._manifest(pool.id, root)
        for snapshot, repositories in self._snapshots.items():
            self.found.blocks.add(snapshot)
            try:
                pages = RefSnapshot.open(self.store.blocks, snapshot).pages
            except DataLoss as error:
                for repository in repositories:
                    if repository in self._pools:
                        self._damage(self._pools[repository], error)
                continue
            self.found.blocks.update(page.id for page in pages)
        for owner, parts in self._lists:
            try:
                self.found.blocks.update(decode_parts(self._read(parts)).parts)
            except DataLoss as error:
                self._damage(owner, error)

    def _damage(self, pool: PoolId, error: DataLoss) -> None:
        self.found.damaged.setdefault(pool, str(error))

    def _read(self, block: BlockId) -> bytes:
        (data,) = self.store.blocks.get_many_sync([block])
        if data is None:
            raise DataLoss("block is missing", block=block.hex())
        return data

    def _manifest(self, pool: PoolId, root: bytes) -> None:
        """Take in what a manifest's root, or a recent's, names."""
        blocks = self.found.blocks

        def page(ref: BlockRef) -> bytes:
            blocks.add(ref.id)
            return self._read(ref.id)

        try:
            manifest = decode_manifest(root, read=page)
            for ref in manifest.blocks():
                (self.found.embedded if ref.inline else blocks).add(ref.id)
            for segment in manifest.segments:
                if segment.flags & ALONE:
                    blocks.update(self._parts(root, segment.ref, manifest.hash_kind))
        except DataLoss as error:
            self._damage(pool, error)

    def _parts(self, root: bytes, ref: BlockRef, kind: HashKind) -> Iterator[BlockId]:
        data = embedded_block(root, ref) if ref.inline else self._read(ref.id)
        for name in _segment.part_ids(data, kind.size):
            yield BlockId(name)


def _repository(key: bytes) -> RepositoryId:
    return RepositoryId(int.from_bytes(key[1:KEY_BYTES], "big"))
