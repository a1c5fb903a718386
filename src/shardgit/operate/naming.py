"""Which blocks the journal names, and for whom: every table, and every block that leads to others.

Works on rows and blocks however they were read, so that it tells what there should be also where a
part of it is gone.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardgit import _segment
from shardgit.blocks.block import BlockKind, parse_header
from shardgit.errors import DataLoss, ShardgitError
from shardgit.journal.lfs_records import LfsRecord
from shardgit.journal.records import (
    PoolRecord,
    RefsHead,
    RepositoryRecord,
    decode_deleted,
    serial_of,
)
from shardgit.journal.uploads import UploadRecord
from shardgit.oid import BlockId, HashKind, PoolId
from shardgit.pool.condemned import CONDEMNED, CONDEMNED_FLAG, CondemnedRecord
from shardgit.pool.manifest import ALONE, PAGE_FLAG, BlockRef, decode_manifest, embedded_block
from shardgit.pool.parts import decode_parts
from shardgit.refs.log import LOG_FLAG, named_blocks
from shardgit.refs.page import PAGE_FLAG as REFS_PAGE_FLAG
from shardgit.refs.snapshot import snapshot_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardgit.blocks.interface import BlockStore
    from shardgit.journal.interface import Row
    from shardgit.pool.manifest import Manifest

    Read = Callable[[BlockId], bytes | None]
    """Returns a block that matches its id, None where there is none whole."""

_POOL_BYTES = 16
_UPLOAD_FLAG = 1


@dataclass(frozen=True, slots=True)
class Named:
    """A block that must be there. ``length`` and ``flags`` are None where the row does not tell them.

    ``key`` is the row that leads to it, ``what`` says what it is there, ``manifest`` the block that names it
    for a pool.
    """

    block: BlockId
    kind: BlockKind
    key: bytes
    what: str
    pool: PoolId | None
    length: int | None = None
    flags: int | None = None


@dataclass(slots=True)
class Owners:
    """Which repositories there are, by pool and by number; deleted ones are marked."""

    names: dict[int, str] = field(default_factory=dict)
    pools: dict[int, PoolId] = field(default_factory=dict)

    def take(self, row: Row) -> None:
        """Take a row of tables I or D."""
        if row.key[:1] == b"I":
            record = RepositoryRecord.decode(row.value)
            self.names[record.id] = record.name
        elif row.key[:1] == b"D":
            record = RepositoryRecord.decode(decode_deleted(row.value)[1])
            self.names[record.id] = f"{record.name} (deleted)"
        else:
            return
        self.pools[record.id] = record.pool

    def of_pool(self, pool: PoolId | None) -> list[str]:
        """Return the names of a pool's repositories."""
        return sorted(self.names[number] for number, own in self.pools.items() if own == pool)

    def of(self, named: Named) -> list[str]:
        """Return the names of the repositories that miss a block when it is lost."""
        if named.key[:1] in (b"H", b"L", b"U"):
            number = int.from_bytes(named.key[1:9], "big")
            return [self.names.get(number, f"repository {number}")]
        return self.of_pool(named.pool)


def named_by(row: Row, read: Read) -> Iterator[Named]:
    """Return the blocks that a row names, and those that these lead to.

    A block comes before those that it leads to, and these are left out where it is not to be had. Errors:
    DataLoss when the row, or a block that matches its id, does not parse.
    """
    table = row.key[:1]
    try:
        if table == b"P":
            yield from _of_pool(row, read)
        elif table == b"S":
            yield from _of_recent(row, read)
        elif table == b"H":
            yield from _of_refs(row, read)
        elif table == b"L":
            yield from _of_log(row, read)
        elif table == b"U":
            yield from _of_uploads(row)
        elif table == CONDEMNED:
            for block in CondemnedRecord.decode(row.value).blocks:
                pool = PoolId(row.key[1:])
                what = "condemned set"
                yield Named(block, BlockKind.PART, row.key, what, pool, flags=CONDEMNED_FLAG)
        elif row.key[:2] == b"Fo":
            yield from _of_lfs(row, read)
    except ShardgitError as error:
        if isinstance(error, DataLoss):
            raise
        raise DataLoss("row leads to what cannot be read", cause=str(error)) from error
    except (struct.error, ValueError, IndexError) as error:
        raise DataLoss("row leads to what does not parse", cause=str(error)) from error


class Following:
    """Follows rows to the blocks of a store or a backup that has them all. Errors: DataLoss when one is missing.

    A ref snapshot that rows share, as forks do, is followed once.
    """

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self._snapshots: set[BlockId] = set()

    def of(self, row: Row) -> Iterator[BlockId]:
        """Return the blocks behind a row, perhaps one twice; a root stands before what it names."""
        for named in named_by(row, self._read):
            yield named.block

    def _read(self, block: BlockId) -> bytes | None:
        if block in self._snapshots:
            return None  # what it leads to was told
        (data,) = self._blocks.get_many_sync([block])
        if data is None:
            raise DataLoss("a block that the journal leads to is missing", block=block.hex())
        if parse_header(data).kind is BlockKind.REFS:
            self._snapshots.add(block)
        return data


def _of_pool(row: Row, read: Read) -> Iterator[Named]:
    pool = PoolId(row.key[1:])
    record = PoolRecord.decode(pool, row.value)
    if record.manifest is None:
        return
    yield Named(record.manifest, BlockKind.MANIFEST, row.key, "manifest", pool, flags=0)
    root = read(record.manifest)
    if root is not None:
        yield from _of_manifest(root, row, pool, record.hash_kind, read)


def _of_recent(row: Row, read: Read) -> Iterator[Named]:
    pool = PoolId(row.key[1 : 1 + _POOL_BYTES])
    header = parse_header(row.value, kind=BlockKind.MANIFEST)
    what = f"recent {serial_of(row.key)}"
    for named in _of_manifest(row.value, row, pool, header.hash_kind, read):
        yield Named(named.block, named.kind, row.key, f"{named.what} of {what}", pool, named.length)


def _of_manifest(
    root: bytes, row: Row, pool: PoolId, hash_kind: HashKind, read: Read
) -> Iterator[Named]:
    pages: list[BlockRef] = []

    def page(ref: BlockRef) -> bytes:
        pages.append(ref)
        data = read(ref.id)
        if data is None:
            raise _Gone
        return data

    try:
        manifest = decode_manifest(root, read=page)
    except _Gone:
        manifest = None
    for ref in pages:
        yield _named(ref, BlockKind.MANIFEST, row.key, "page of the manifest", pool, PAGE_FLAG)
    if manifest is not None:
        yield from _of_runs(manifest, root, row, pool, hash_kind, read)


class _Gone(Exception):
    pass


def _of_runs(
    manifest: Manifest, root: bytes, row: Row, pool: PoolId, hash_kind: HashKind, read: Read
) -> Iterator[Named]:
    for run in manifest.runs:
        for _, ref in run.index:
            if not ref.inline:
                yield _named(ref, BlockKind.INDEX, row.key, "index", pool)
        for ref in run.graph:
            if not ref.inline:
                yield _named(ref, BlockKind.GRAPH, row.key, "graph", pool)
    for ref in manifest.bitmaps:
        if not ref.inline:
            yield _named(ref, BlockKind.BITMAP, row.key, "bitmap", pool)
    for entry in manifest.segments:
        ref = entry.ref
        if not ref.inline:
            yield _named(ref, BlockKind.SEGMENT, row.key, f"segment {entry.serial}", pool)
        if entry.flags & ALONE:
            data = embedded_block(root, ref) if ref.inline else read(ref.id)
            for part in _segment.part_ids(data, hash_kind.size) if data is not None else ():
                what = f"part of segment {entry.serial}"
                yield Named(BlockId(part), BlockKind.PART, row.key, what, pool)


def _named(
    ref: BlockRef, kind: BlockKind, key: bytes, what: str, pool: PoolId, flags: int | None = None
) -> Named:
    return Named(ref.id, kind, key, what, pool, ref.length, flags)


def _of_refs(row: Row, read: Read) -> Iterator[Named]:
    head = RefsHead.decode(row.value)
    if head.snapshot is not None:
        yield from _of_snapshot(head.snapshot, row.key, "refs", read)


def _of_snapshot(root: BlockId, key: bytes, what: str, read: Read) -> Iterator[Named]:
    yield Named(root, BlockKind.REFS, key, f"{what}: snapshot", None, flags=0)
    data = read(root)
    if data is not None:
        for page in snapshot_pages(root, data):
            yield Named(page.id, BlockKind.REFS, key, f"{what}: page", None, flags=REFS_PAGE_FLAG)


def _of_log(row: Row, read: Read) -> Iterator[Named]:
    made, blocks = named_blocks(row.value)
    for block in blocks:
        yield Named(block, BlockKind.REFS, row.key, "ref log", None, flags=LOG_FLAG)
    if made is not None:
        yield from _of_snapshot(made, row.key, "ref log", read)


def _of_uploads(row: Row) -> Iterator[Named]:
    if len(row.key) != 17:  # the head of a repository's uploads
        return
    for block in UploadRecord.decode(row.value).blocks:
        yield Named(block, BlockKind.PART, row.key, "uploads", None, flags=_UPLOAD_FLAG)


def _of_lfs(row: Row, read: Read) -> Iterator[Named]:
    pool = PoolId(row.key[2 : 2 + _POOL_BYTES])
    record = LfsRecord.decode(row.value)
    if record.root is None:
        return
    several = record.parts > 1
    what = f"LFS object {row.key[2 + _POOL_BYTES :].hex()}"
    yield Named(record.root, BlockKind.PART, row.key, what, pool, flags=1 if several else 0)
    data = read(record.root) if several else None
    if data is not None:
        for part in decode_parts(data).parts:
            yield Named(part, BlockKind.PART, row.key, f"part of {what}", pool, flags=0)
