"""Blocks of a backup born anew in another pool: fresh ids, and all names inside them put right.

A repository that comes back into a store that lives gets a pool of its own. Its blocks get new headers, hence new ids:
a block is never born twice, so a late delete of gc hits none of them, and their age tells that they are young.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shardgit import _segment
from shardgit.backup.restore import read_ahead
from shardgit.blocks.block import HEADER_SIZE, named, new_header, parse_header
from shardgit.errors import BackupCorrupt
from shardgit.oid import BlockId, ObjectId
from shardgit.pool.manifest import (
    ALONE,
    BlockRef,
    Manifest,
    decode_manifest,
    embedded_block,
    encode_manifest,
)
from shardgit.pool.parts import decode_parts
from shardgit.pool.view import SEGMENT_TRAILER_BYTES
from shardgit.pool.writer import index_blocks
from shardgit.progress import Progress
from shardgit.refs.snapshot import RefSnapshot, new_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from shardgit.backup.source import BackupBlocks
    from shardgit.backup.target import Target
    from shardgit.journal.lfs_records import LfsRecord
    from shardgit.limits import Limits
    from shardgit.oid import HashKind, PoolId
    from shardgit.operate.operation import Control
    from shardgit.pool.append import BlockBatch
    from shardgit.pool.manifest import RunRecord, SegmentEntry
    from shardgit.refs.ref import Ref
    from shardgit.refs.snapshot import NewSnapshot

ID = 32


class Rebirth:
    """Brings blocks of a backup into a pool; ``batch`` puts them."""

    def __init__(
        self,
        target: Target,
        source: BackupBlocks,
        batch: BlockBatch,
        pool: PoolId,
        *,
        limits: Limits,
        control: Control,
        beat: Callable[[], None],
    ) -> None:
        self.blocks = self.bytes = 0
        self._target = target
        self._source = source
        self._batch = batch
        self._pool = pool
        self._limits = limits
        self._control = control
        self._beat = beat
        self._renamed: dict[BlockId, BlockId] = {}
        self._snapshots: dict[BlockId, NewSnapshot] = {}

    # ---- blocks ----

    def _born(self, data: bytes, payload: bytes | None = None) -> tuple[BlockId, bytes]:
        header = parse_header(data)
        body = data[HEADER_SIZE:] if payload is None else payload
        length = HEADER_SIZE + len(body)
        head = new_header(header.kind, header.hash_kind, self._pool, length, flags=header.flags)
        return named(head + body)

    def _put(self, data: bytes, payload: bytes | None = None) -> BlockId:
        name, made = self._born(data, payload)
        self._batch.take(name, made)
        self.blocks += 1
        self.bytes += len(made)
        return name

    def read(self, block: BlockId) -> bytes:
        """Return a block of the backup. Errors: BackupCorrupt."""
        (data,) = self._source.get_many_sync([block])
        if data is None:
            raise BackupCorrupt("backup lacks a block", block=block.hex())
        return data

    def one(self, block: BlockId) -> BlockId:
        """Bring a block that names no other."""
        if block not in self._renamed:
            self._renamed[block] = self._put(self.read(block))
        return self._renamed[block]

    def many(self, blocks: Iterable[BlockId], stage: str) -> None:
        """Bring blocks that name no other, read side by side."""
        ids = [block for block in dict.fromkeys(blocks) if block not in self._renamed]
        total = sum(self._target.length(block) for block in ids)
        done = 0
        for some in read_ahead(self._target, ids):
            size = 0
            for block, data in some:
                self._renamed[BlockId(block)] = self._put(data)
                size += len(data)
            done += size
            self._control.report(Progress(stage, done, total, "bytes"))
            self._control.pace(size)
            self._beat()

    # ---- a pool ----

    def manifest(
        self, root: BlockId | None, recents: Sequence[bytes], hash_kind: HashKind
    ) -> BlockId | None:
        """Bring a pool: the manifest and the recents behind it become one manifest. None when it is empty."""
        roots = ([self.read(root)] if root is not None else []) + list(recents)
        if not roots:
            return None
        parts = [_Part(data, self) for data in roots]
        alone = {ref.id: self.read(ref.id) for part in parts for ref in part.alone}
        leaves: list[BlockId] = []
        for part in parts:
            leaves += part.leaves
        for data in alone.values():
            leaves += [BlockId(one) for one in _segment.part_ids(data, hash_kind.size)]
        self.many(leaves, "restoring blocks")
        for block, data in alone.items():
            self._renamed[block] = self._put(data, self._with_parts(data, hash_kind))
        inline = sum(ref.length for part in parts for ref in part.inline)
        embed = inline < self._limits.block_target_bytes // 2
        embedded: dict[BlockId, bytes] = {}
        for part in parts:
            for ref in part.inline:
                whole = embedded_block(part.root, ref)
                payload = None
                if ref in part.inline_alone:
                    self.many(
                        [BlockId(one) for one in _segment.part_ids(whole, hash_kind.size)],
                        "restoring blocks",
                    )
                    payload = self._with_parts(whole, hash_kind)
                if embed:
                    name, made = self._born(whole, payload)
                    embedded[name] = made
                    self._renamed[ref.id] = name
                else:
                    self._renamed[ref.id] = self._put(whole, payload)
        joined = self._joined(parts, hash_kind)
        name, blocks = encode_manifest(joined, pool=self._pool, embedded=embedded)
        self._batch.put(blocks)
        return name

    def _with_parts(self, data: bytes, hash_kind: HashKind) -> bytes:
        """Return the payload of a segment of one large object with the new ids of its parts."""
        old = _segment.part_ids(data, hash_kind.size)
        new = b"".join(self._renamed[BlockId(one)] for one in old)
        end = len(data) - SEGMENT_TRAILER_BYTES
        return data[HEADER_SIZE : end - ID * len(old)] + new + data[end:]

    def _joined(self, parts: Sequence[_Part], hash_kind: HashKind) -> Manifest:
        serial = 0
        runs: list[RunRecord] = []
        segments: list[SegmentEntry] = []
        bitmaps: list[BlockRef] = []
        for number, part in enumerate(parts):
            manifest = part.manifest
            if manifest.hash_kind is not hash_kind:
                raise BackupCorrupt("manifest has another hash kind than its pool")
            fresh = []
            # Runs of a manifest keep their order and their serials' order; positions stay what they were.
            base = min((run.first_serial for run in manifest.runs), default=0)
            shift = serial - base
            for run in manifest.runs:
                index = tuple((key, self._ref(ref)) for key, ref in run.index)
                if not index and run.objects:
                    index = self._index(part, run)
                runs.append(
                    replace(
                        run,
                        first_serial=run.first_serial + shift,
                        index=index,
                        graph=tuple(self._ref(ref) for ref in run.graph),
                    )
                )
            for entry in manifest.segments:
                fresh.append(replace(entry, ref=self._ref(entry.ref), serial=entry.serial + shift))
            if number == 0:
                bitmaps = [self._ref(ref) for ref in manifest.bitmaps]
            serial = shift + max(manifest.next_serial, base)
            segments = [*fresh, *segments]  # what is newest goes first, as a settle leaves it
        return Manifest(hash_kind, 1, serial, tuple(runs), tuple(segments), tuple(bitmaps))

    def _ref(self, ref: BlockRef) -> BlockRef:
        # encode_manifest puts the places of those that it embeds in.
        return BlockRef(self._renamed[ref.id], ref.length)

    def _index(self, part: _Part, run: RunRecord) -> tuple[tuple[bytes, BlockRef], ...]:
        """Write index pieces for a recent that has none."""
        size = part.manifest.hash_kind.size
        serials = range(run.first_serial, run.first_serial + run.segments)
        by_serial = {entry.serial: entry for entry in part.manifest.segments}
        ids: list[ObjectId] = []
        for serial in serials:
            ref = by_serial[serial].ref
            data = embedded_block(part.root, ref) if ref.inline else self.read(ref.id)
            flat = _segment.ids_of(data, size)
            ids += [ObjectId(flat[at : at + size]) for at in range(0, len(flat), size)]
        made = []
        for key, block in index_blocks(ids, self._pool, part.manifest.hash_kind, self._limits):
            self._batch.take(block.id, block.data)
            made.append((key, block.ref))
        return tuple(made)

    # ---- refs, LFS ----

    def snapshot(self, root: BlockId) -> BlockId:
        """Bring a ref snapshot."""
        if root not in self._snapshots:
            opened = RefSnapshot.open(self._source, root)
            self._snapshots[root] = self.refs(opened.range(b"", b"\xff"), opened.hash_kind)
        made = self._snapshots[root].root
        if made is None:
            raise BackupCorrupt("ref snapshot has no ref", block=root.hex())
        return made

    def refs(self, refs: Iterable[Ref], hash_kind: HashKind) -> NewSnapshot:
        """Write a snapshot of refs that come by rising name."""
        made = new_snapshot(refs, pool=self._pool, hash_kind=hash_kind)
        for name, data in made.blocks:
            self._batch.take(name, data)
        return made

    def lfs(self, records: Sequence[LfsRecord]) -> list[LfsRecord]:
        """Bring Git LFS objects; returns their records in the new pool."""
        lists = {
            one.root: decode_parts(self.read(one.root))
            for one in records
            if one.root is not None and one.parts > 1
        }
        leaves = [one.root for one in records if one.root is not None and one.parts == 1]
        for found in lists.values():
            leaves += found.parts
        self.many(leaves, "restoring LFS objects")
        out = []
        for one in records:
            if one.root is None:
                out.append(one)
                continue
            if one.root in lists:
                old = lists[one.root]
                parts = tuple(self._renamed[part] for part in old.parts)
                block = replace(old, parts=parts).encode(self._pool)
                name, block = named(block)
                self._batch.take(name, block)
                out.append(replace(one, root=name))
            else:
                out.append(replace(one, root=self._renamed[one.root]))
        return out


class _Part:
    """A manifest root, or that of a recent, and where its blocks lie."""

    def __init__(self, root: bytes, rebirth: Rebirth) -> None:
        self.root = root
        self.manifest = decode_manifest(root, read=lambda ref: rebirth.read(ref.id))
        self.alone: list[BlockRef] = []
        self.inline_alone: set[BlockRef] = set()
        self.inline: list[BlockRef] = []
        self.leaves: list[BlockId] = []
        alone = {entry.ref.id for entry in self.manifest.segments if entry.flags & ALONE}
        for ref in self.manifest.blocks():
            if ref.inline:
                self.inline.append(ref)
                if ref.id in alone:
                    self.inline_alone.add(ref)
            elif ref.id in alone:
                self.alone.append(ref)
            else:
                self.leaves.append(ref.id)
