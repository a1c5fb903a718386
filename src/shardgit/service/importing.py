"""Import: a Git repository becomes a run of its pool, in one journal commit.

Stages: scan the source's packs; resolve families and compute every id; leave out what the pool has and what no ref
reaches; lay out segments; put all blocks; commit manifest pointer and refs together. Nothing is visible before the
commit, so an import that was stopped leaves only blocks that no manifest names, and is simply repeated.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit._fastpack import tree_children
from shardgit._graph import PoolGraph, Walk
from shardgit.errors import (
    Conflict,
    MalformedInput,
    MalformedPack,
    ObjectCollision,
    Refused,
    RepositoryExists,
    RepositoryMissing,
    ShardgitError,
)
from shardgit.oid import BlockId, HashKind, ObjectId, hex_of
from shardgit.pool.manifest import Manifest, encode_manifest
from shardgit.pool.writer import RunWriter
from shardgit.progress import Progress, Report, silent
from shardgit.refs.log import LogNote
from shardgit.refs.name import check_ref_name
from shardgit.refs.ref import Ref
from shardgit.service.repositories import Repositories
from shardgit.service.resolving import new_ingest, resolve
from shardgit.service.source import opened

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shardgit._fastpack import Ingest
    from shardgit.journal.records import RepositoryRecord
    from shardgit.pool.view import PoolView
    from shardgit.pool.writer import NewBlock
    from shardgit.service.source import GitSource, SourcePack, SourceRef
    from shardgit.service.store import Store

BATCH_BYTES = 64 << 20  # blocks put with one fsync a shard
TAG, TREE = 4, 2


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import did. ``objects`` are those that were new to the pool."""

    repository: str
    created: bool
    objects: int
    objects_in_source: int
    objects_unreachable: int
    refs: int
    stored_bytes: int
    seconds: float


def import_repository(
    store: Store, name: str, source: str, *, progress: Report = silent, use_index: bool = True
) -> ImportResult:
    """Import ``source`` (a path or a URL) into repository ``name``, which is made when it is missing.

    With ``use_index`` the entry starts in a pack's .idx spare a pass over the pack; every entry is checked against
    them. Returns when all is durable and readable. The repository's refs are those of the source afterwards.

    Errors: NotFound and Refused for the source, MalformedInput for what it holds, LimitExceeded, StorageFull, Conflict
    when another import or push into the repository won meanwhile.
    """
    begun = time.monotonic()
    with opened(source, scratch=store.scratch, limits=store.limits) as origin:
        job = _Import(store, name, origin, progress)
        job.run(use_index=use_index)
    return ImportResult(
        repository=name,
        created=job.created,
        objects=job.objects,
        objects_in_source=job.objects_in_source,
        objects_unreachable=job.objects_unreachable,
        refs=job.refs,
        stored_bytes=job.stored_bytes,
        seconds=time.monotonic() - begun,
    )


class _Import:
    """One import under way."""

    def __init__(self, store: Store, name: str, origin: GitSource, progress: Report) -> None:
        self.store = store
        self.name = name
        self.origin = origin
        self.progress = progress
        self.created = False
        self.objects = self.objects_in_source = self.objects_unreachable = self.refs = (
            self.stored_bytes
        ) = 0

    def run(self, *, use_index: bool) -> None:
        """Run all stages."""
        source_refs = [ref for ref in self.origin.refs() if ref.name.startswith(b"refs/")]
        for ref in source_refs:
            check_ref_name(ref.name)
        source_head = self.origin.head()
        ingest = self._ingest(use_index=use_index)
        self.objects_in_source = ingest.objects_scanned
        record = self._repository()
        try:
            self._fill(record, ingest, source_refs, source_head)
        except BaseException:
            if self.created:
                # What was made for this import goes with it; a crash here leaves an empty repository.
                with suppress(ShardgitError):
                    Repositories(self.store).delete(self.name)
            raise

    def _fill(
        self,
        record: RepositoryRecord,
        ingest: Ingest,
        source_refs: Sequence[SourceRef],
        source_head: SourceRef | None,
    ) -> None:
        """Write what is new and commit it with the refs."""
        with self.store.journal.snapshot() as snapshot:
            state = self.store.state(snapshot, self.name)
        view = self.store.view(state.pool)
        self._leave_out_known(ingest, view)
        reach = _Reach(ingest, view, self.store, self._layout(ingest))
        tips = [
            ref.target
            for ref in [*source_refs, *([source_head] if source_head else [])]
            if ref.target
        ]
        marks = reach.closure(tips)
        self.objects_unreachable = ingest.drop_positions(marks, reach.first)
        if self.objects_unreachable:
            reach = _Reach(ingest, view, self.store, self._layout(ingest))
        refs = [reach.ref(ref) for ref in source_refs]
        head = reach.ref(source_head) if source_head else None
        self.objects = ingest.objects_kept
        self.refs = len(refs)
        manifest = self._write(record, reach, view) if self.objects else None
        with self.store.journal.snapshot() as snapshot:
            now = self.store.state(snapshot, self.name)
            if now.pool != state.pool:
                raise Conflict(
                    "repository changed during the import; import again", repository=self.name
                )
            change = self.store.refs.replace_all(
                snapshot, record, refs, head, LogNote("", "import")
            )
        conditions, operations = list(change.conditions), list(change.operations)
        if manifest is not None:
            compare, put = self.store.next_pool(state.pool, manifest)
            conditions.append(compare)
            operations.append(put)
        # commit point: a crash before it leaves the repository as it was and blocks that nothing names; after it the
        # import is whole.
        self.store.journal.commit_sync(conditions, operations)

    def _repository(self) -> RepositoryRecord:
        """Return the repository, made when it is missing."""
        with self.store.journal.snapshot() as snapshot, suppress(RepositoryMissing):
            record = self.store.repository(snapshot, self.name)
            return self._fitting(record)
        with suppress(RepositoryExists):
            record = self.store.create_repository(self.name, self.origin.hash_kind)
            self.created = True
            return record
        with self.store.journal.snapshot() as snapshot:
            return self._fitting(self.store.repository(snapshot, self.name))

    def _fitting(self, record: RepositoryRecord) -> RepositoryRecord:
        if record.hash_kind is not self.origin.hash_kind:
            raise Refused(
                "source has another object format than the repository",
                source=self.origin.hash_kind.git_name,
                repository=record.hash_kind.git_name,
            )
        return record

    # ---- stages ----

    def _ingest(self, *, use_index: bool) -> Ingest:
        packs = list(self.origin.packs(use_index=use_index))
        try:
            return self._resolved(packs, hinted=True)
        except MalformedPack:
            if all(pack.offsets is None for pack in packs):
                raise
            # An .idx that does not fit its pack must not condemn the pack: find the entries without it.
            return self._resolved(packs, hinted=False)

    def _resolved(self, packs: Sequence[SourcePack], *, hinted: bool) -> Ingest:
        ingest = new_ingest(self.origin.hash_kind, self.store.limits)
        total = sum(len(pack.data) for pack in packs)
        done = 0
        for pack in packs:
            self.progress(Progress("scanning packs", done, total, "bytes"))
            ingest.scan(pack.data, pack.offsets if hinted else None)
            done += len(pack.data)
        self.progress(Progress("scanning packs", total, total, "bytes"))
        resolve(
            ingest,
            threads=self.store.workers.threads,
            stage="resolving deltas",
            progress=self.progress,
        )
        return ingest

    def _leave_out_known(self, ingest: Ingest, view: PoolView | None) -> None:
        """Drop what the pool has already; an id that it has with another size or type is a collision."""
        if view is None or not ingest.objects_scanned:
            return
        size = self.origin.hash_kind.size
        flat = ingest.sorted_ids()
        ids = [ObjectId(flat[at : at + size]) for at in range(0, len(flat), size)]
        known = [
            (rank, position) for rank, position in enumerate(view.positions(ids)) if position >= 0
        ]
        ranks = bytearray(len(ids))
        for (rank, _), info in zip(
            known, view.info([position for _, position in known]), strict=True
        ):
            if ingest.facts_at(rank) != (info.type, info.size):
                raise ObjectCollision("object exists with other bytes", oid=hex_of(ids[rank]))
            ranks[rank] = 1
        ingest.drop(ranks)

    def _layout(self, ingest: Ingest) -> int:
        limits = self.store.limits
        return ingest.layout(
            target=limits.block_target_bytes,
            most=limits.block_max_bytes,
            count_most=limits.segment_objects_max,
        )

    def _write(self, record: RepositoryRecord, reach: _Reach, view: PoolView | None) -> BlockId:
        """Put every block of the new run and the new manifest; returns the manifest's id."""
        before = view.manifest if view else None
        writer = RunWriter(
            ingest=reach.ingest,
            pool=record.pool,
            hash_kind=record.hash_kind,
            first_serial=before.next_serial if before else 0,
            limits=self.store.limits,
        )
        facts = [reach.ingest.segment_facts(number) for number in range(reach.segments)]
        whole = sum(
            length + (entry_bytes if alone else 0) for _, length, entry_bytes, _, _, alone in facts
        )
        whole += len(reach.stream) + 12 * self.objects
        small = before is None and whole < self.store.limits.block_target_bytes // 2
        batch = _Batch(self.store, embed=small)
        for block in writer.segments(reach.segments):
            batch.add(block)
            self.progress(Progress("writing blocks", len(writer.entries), reach.segments, "blocks"))
        for block in [*writer.index(), *writer.graph(reach.stream)]:
            batch.add(block)
        run = writer.record()
        manifest = Manifest(
            hash_kind=record.hash_kind,
            generation=before.generation + 1 if before else 1,
            next_serial=writer.first_serial + len(writer.entries),
            runs=(*(before.runs if before else ()), run),
            # What is new goes first: a clone then meets recent objects first, as in a pack.
            segments=(*writer.entries, *(before.segments if before else ())),
            bitmaps=(),
        )
        if before is not None:
            manifest = batch.keep_embedded(manifest, view)
        root, blocks = encode_manifest(manifest, pool=record.pool, embedded=batch.embedded)
        batch.put(blocks)
        self.stored_bytes = batch.stored_bytes
        return root


class _Batch:
    """Puts blocks by the batch, or keeps them to be embedded in a small pool's manifest."""

    def __init__(self, store: Store, *, embed: bool) -> None:
        self.store = store
        self.embed = embed
        self.embedded: dict[BlockId, bytes] = {}
        self.stored_bytes = 0
        self._waiting: list[tuple[BlockId, bytes]] = []
        self._bytes = 0

    def add(self, block: NewBlock) -> None:
        """Take one block."""
        if self.embed:
            self.embedded[block.id] = block.data
            return
        self._waiting.append((block.id, block.data))
        self._bytes += len(block.data)
        if self._bytes >= BATCH_BYTES:
            self.put([])

    def put(self, more: Iterable[tuple[BlockId, bytes]]) -> None:
        """Put what waits and ``more``; durable on return."""
        blocks = [*self._waiting, *more]
        self._waiting, self._bytes = [], 0
        self.store.blocks.put_many_sync(blocks)
        self.stored_bytes += sum(len(data) for _, data in blocks)

    def keep_embedded(self, manifest: Manifest, view: PoolView | None) -> Manifest:
        """Give blocks that were embedded in the manifest before a place of their own."""
        if view is None:
            return manifest
        return view.unembedded(manifest, lambda block, data: self._waiting.append((block, data)))


class _Reach:
    """What the source's refs reach, over the pool's graph and the new run's together."""

    def __init__(self, ingest: Ingest, view: PoolView | None, store: Store, segments: int) -> None:
        self.ingest = ingest
        self.view = view
        self.segments = segments
        self.first = view.objects if view else 0
        self.kind = HashKind(ingest.hash_kind)
        outside = [ObjectId(oid) for oid in ingest.externals()]
        known = view.positions(outside) if view else [-1] * len(outside)
        generations: dict[bytes, int] = {}
        if view is not None:
            old = view.graph()
            for oid, position in zip(outside, known, strict=True):
                if position >= 0 and old.type_at(position) == 1:
                    generations[oid] = old.generation_at(position)
        self.stream = ingest.graph(generations)
        # The new run stands behind those that the pool has, so their positions stay.
        graph = view.graph() if view else PoolGraph(int(self.kind))
        self.graph = graph.extended(self.stream, known)
        self._positions: dict[ObjectId, int] = {}

    def position(self, oid: ObjectId) -> int:
        """Return the position of an object in the pool or the new run, -1 without."""
        return self.positions([oid])[0]

    def positions(self, ids: Sequence[ObjectId]) -> list[int]:
        """Return positions, -1 without."""
        local = [self.ingest.position(oid) for oid in ids]
        if self.view is None:
            return local
        old = self.view.positions(ids)
        return [
            at if at >= 0 else (self.first + new if new >= 0 else -1)
            for at, new in zip(old, local, strict=True)
        ]

    def closure(self, tips: Sequence[ObjectId]) -> bytes:
        """Return all that ``tips`` reach; MalformedInput when the source lacks an object that they do."""
        walk = Walk(self.graph)
        positions = self.positions(tips)
        for oid, position in zip(tips, positions, strict=True):
            if position < 0:
                raise MalformedInput(
                    "a ref of the source names an object that it lacks", oid=hex_of(oid)
                )
        walk.mark(positions)
        while waiting := walk.run():
            for at in waiting:
                walk.expand(self.positions([ObjectId(oid) for oid in self._children(at)]))
        if walk.incomplete:
            raise MalformedInput(
                "source lacks an object that its refs reach; is it a partial clone?"
            )
        return walk.bitset()

    def _children(self, position: int) -> list[bytes]:
        if position >= self.first:
            return self.ingest.children(position - self.first)
        if self.view is None:
            return []
        (tree,) = self.view.read_positions([position])
        return tree_children(tree.data, self.kind.size)

    def ref(self, ref: SourceRef) -> Ref:
        """Return a ref with what its tag peels to."""
        if ref.target is None:
            return Ref(ref.name, symbolic=ref.symbolic)
        position = self.position(ref.target)
        if position < 0 or self.graph.type_at(position) != TAG:
            return Ref(ref.name, target=ref.target)
        peeled = self.graph.peel(position)
        return Ref(ref.name, target=ref.target, peeled=self._id_at(peeled) if peeled >= 0 else None)

    def _id_at(self, position: int) -> ObjectId:
        if self.view is not None and position < self.first:
            return self.view.ids_at([position])[0]
        return ObjectId(self.ingest.id_at_position(position - self.first))
