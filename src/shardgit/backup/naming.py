"""Which blocks the rows of a journal lead to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit import _segment
from shardgit.errors import DataLoss
from shardgit.journal.lfs_records import LfsRecord
from shardgit.journal.records import PoolRecord, RefsHead
from shardgit.journal.uploads import UploadRecord
from shardgit.oid import BlockId, PoolId
from shardgit.pool.manifest import ALONE, BlockRef, decode_manifest, embedded_block
from shardgit.pool.parts import decode_parts
from shardgit.refs.log import named_blocks
from shardgit.refs.snapshot import RefSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.blocks.interface import BlockStore
    from shardgit.journal.interface import Row

UPLOAD_HEAD_KEY_BYTES = 9


class Naming:
    """Follows rows to blocks; reads the blocks that name others. Errors: DataLoss when one is missing.

    A root that rows share, as forks share ref snapshots, is followed once.
    """

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self._roots: set[BlockId] = set()

    def of(self, row: Row) -> Iterator[BlockId]:
        """Return the blocks behind a row, perhaps one twice; a root stands before what it names."""
        match row.key[:1]:
            case b"P":
                record = PoolRecord.decode(PoolId(row.key[1:]), row.value)
                if record.manifest is not None:
                    yield record.manifest
                    yield from self._manifest(self._read(record.manifest))
            case b"S":
                yield from self._manifest(row.value)
            case b"H":
                head = RefsHead.decode(row.value)
                if head.snapshot is not None:
                    yield from self._snapshot(head.snapshot)
            case b"L":
                made, named = named_blocks(row.value)
                if made is not None:
                    yield from self._snapshot(made)
                yield from named
            case b"U":
                if len(row.key) > UPLOAD_HEAD_KEY_BYTES:
                    yield from UploadRecord.decode(row.value).blocks
            case b"F":
                if row.key[1:2] == b"o":
                    yield from self._lfs(LfsRecord.decode(row.value))

    def _read(self, block: BlockId) -> bytes:
        (data,) = self._blocks.get_many_sync([block])
        if data is None:
            raise DataLoss("a block that the journal leads to is missing", block=block.hex())
        return data

    def _manifest(self, root: bytes) -> Iterator[BlockId]:
        pages: list[BlockId] = []

        def read(ref: BlockRef) -> bytes:
            pages.append(ref.id)
            return self._read(ref.id)

        manifest = decode_manifest(root, read=read)
        yield from pages
        for segment in manifest.segments:
            if segment.flags & ALONE:
                ref = segment.ref
                data = embedded_block(root, ref) if ref.inline else self._read(ref.id)
                _segment.check(data, manifest.hash_kind.size)
                for part in _segment.part_ids(data, manifest.hash_kind.size):
                    yield BlockId(part)
        for ref in manifest.blocks():
            if not ref.inline:
                yield ref.id

    def _snapshot(self, root: BlockId) -> Iterator[BlockId]:
        if root in self._roots:
            return
        self._roots.add(root)
        yield root
        for page in RefSnapshot.open(self._blocks, root).pages:
            yield page.id

    def _lfs(self, record: LfsRecord) -> Iterator[BlockId]:
        if record.root is None:
            return
        yield record.root
        if record.parts > 1:
            yield from decode_parts(self._read(record.root)).parts
