"""Import: a Git repository becomes a run of its pool, in one journal commit.

Stages: scan the source's packs; resolve families and compute every id; leave out what the pool has and what no ref
reaches; lay out segments; put all blocks; commit manifest pointer and refs together. Nothing is visible before the
commit, so an import that was stopped leaves only blocks that no manifest names, and is simply repeated.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit._fastpack import Ingest
from shardgit._graph import PoolGraph, Walk
from shardgit.errors import MalformedInput, MalformedPack, Refused
from shardgit.oid import HashKind, ObjectId, hex_of
from shardgit.pool.writer import NewBlock, RunWriter
from shardgit.service.progress import Progress, Report, silent
from shardgit.service.source import GitSource, SourceRef, opened

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shardgit.pool.view import PoolView
    from shardgit.service.store import Store

BATCH_BYTES = 32 << 20  # blocks put with one fsync a shard: 32 MiB is 0.1 s of a slow disk
TICK_S = 0.1


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

    Runs in the calling thread and on the store's workers. With ``use_index`` the entry starts in a pack's .idx spare a
    pass over the pack; every entry is checked against them. Returns when all is durable and readable.

    Errors: NotFound and Refused for the source, MalformedInput for what it holds, LimitExceeded, StorageFull,
    Conflict when another import or push into the repository won meanwhile.
    """
    begun = time.monotonic()
    with opened(source, scratch=store.scratch, limits=store.limits) as origin:
        job = _Import(store, name, origin, progress)
        result = job.run(use_index=use_index)
    return ImportResult(**result, seconds=time.monotonic() - begun)


class _Import:
    """One import under way."""

    def __init__(self, store: Store, name: str, origin: GitSource, progress: Report) -> None:
        self.store = store
        self.name = name
        self.origin = origin
        self.progress = progress
        self.stored_bytes = 0

    def run(self, *, use_index: bool) -> dict[str, object]:
        store = self.store
        repository, created = store.open_or_create_repository(self.name, self.origin.hash_kind)
        if repository.hash_kind is not self.origin.hash_kind:
            raise Refused(
                "source has another object format than the repository",
                source=self.origin.hash_kind.git_name,
                repository=repository.hash_kind.git_name,
            )
        pool = store.pool_row(repository.pool)
        view = store.view_of(pool)
        refs = self.origin.refs()
        head = self.origin.head()
        ingest = self.ingest(use_index=use_index)
        in_source = ingest.objects_scanned
        self.leave_out_known(ingest, view)
        tips = tips_of(refs, head)
        unreachable = 0
        manifest: bytes | None = None
        reach = Reach(ingest, view, self.layout(ingest))
        if reach.walk(tips):
            unreachable = ingest.drop_positions(reach.bits, reach.first)
            if unreachable:
                reach = Reach(ingest, view, self.layout(ingest))
        peeled = reach.peeled(refs, head)
        if ingest.objects_kept:
            writer = RunWriter(
                ingest=ingest,
                pool=repository.pool,
                hash_kind=repository.hash_kind,
                first_serial=view.manifest.next_serial if view else 0,
                limits=store.limits,
            )
            manifest = self.write(writer, reach, view, tips)
        store.publish_import(repository, pool, manifest=manifest, refs=refs, head=head, peeled=peeled)
        return {
            "repository": self.name,
            "created": created,
            "objects": ingest.objects_kept,
            "objects_in_source": in_source,
            "objects_unreachable": unreachable,
            "refs": len(refs),
            "stored_bytes": self.stored_bytes,
        }

    # ---- stages ----

    def ingest(self, *, use_index: bool) -> Ingest:
        """Scan and resolve all packs of the source."""
        limits = self.store.limits
        kind = self.origin.hash_kind

        def new() -> Ingest:
            return Ingest(
                int(kind),
                size_max=limits.object_size_max_bytes,
                memory_max=limits.object_memory_max_bytes,
                cache_max=limits.resolve_cache_max_bytes,
                objects_max=limits.pack_objects_max,
                depth_max=limits.delta_depth_max,
            )

        ingest = new()
        hinted = False
        packs = list(self.origin.packs(use_index=use_index))
        total = sum(len(pack.data) for pack in packs)
        done = 0
        for pack in packs:
            self.progress(Progress("scanning packs", done, total, "bytes"))
            ingest.scan(pack.data, pack.offsets)
            hinted = hinted or pack.offsets is not None
            done += len(pack.data)
        self.progress(Progress("scanning packs", total, total, "bytes"))
        ingest.link()
        try:
            self._resolve(ingest)
        except MalformedPack:
            if not hinted:
                raise
            # An .idx that does not fit its pack must not condemn the pack: find the entries without it.
            ingest = new()
            for pack in packs:
                ingest.scan(pack.data)
            self._resolve(ingest)
        return ingest

    def _resolve(self, ingest: Ingest) -> None:
        total = ingest.objects_scanned
        threads = [
            threading.Thread(target=ingest.resolve, name=f"resolve-{n}") for n in range(self.store.workers.threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(TICK_S)
                self.progress(Progress("resolving deltas", ingest.objects_resolved, total, "objects"))
        ingest.finish()

    def leave_out_known(self, ingest: Ingest, view: PoolView | None) -> None:
        """Drop what the pool has already; an id that it has with another size or type is a collision."""
        if view is None or not ingest.objects_scanned:
            return
        size = self.origin.hash_kind.size
        flat = ingest.sorted_ids()
        ids = [ObjectId(flat[at : at + size]) for at in range(0, len(flat), size)]
        known = view.positions(ids)
        ranks = bytearray(len(ids))
        found = [(rank, position) for rank, position in enumerate(known) if position >= 0]
        for (rank, _), info in zip(found, view.info([position for _, position in found]), strict=True):
            if ingest.facts_at(rank) != (info.type, info.size):
                from shardgit.errors import ObjectCollision

                raise ObjectCollision("object exists with other bytes", oid=hex_of(ids[rank]))
            ranks[rank] = 1
        ingest.drop(ranks)

    def layout(self, ingest: Ingest) -> int:
        """Lay the kept objects out; returns the number of segments."""
        limits = self.store.limits
        return ingest.layout(
            target=limits.block_target_bytes,
            most=limits.block_max_bytes,
            count_most=limits.segment_objects_max,
        )

    def write(self, writer: RunWriter, reach: Reach, view: PoolView | None, tips: Sequence[ObjectId]) -> bytes:
        """Put every block of the run and the new manifest; returns the manifest's block id."""
        store = self.store
        small = sum(writer.ingest.segment_facts(n)[1] for n in range(reach.segments)) < store.limits.block_target_bytes
        embedded: dict[bytes, bytes] = {}
        batches = Batches(store, embedded if small and view is None else None, self._stored)
        for block in writer.segments(reach.segments):
            batches.add(block)
            self.progress(Progress("writing blocks", len(writer.entries), reach.segments, "blocks"))
        batches.add_all(writer.index())
        batches.add_all(writer.graph(reach.stream))
        batches.flush()
        return store.new_manifest(
            writer=writer, graph=reach.graph, view=view, tips=reach.commits(tips), embedded=embedded, put=self._put
        )

    def _put(self, blocks: Sequence[NewBlock]) -> None:
        self.store.blocks.put_many_sync([(block.id, block.data) for block in blocks])
        self._stored(sum(len(block.data) for block in blocks))

    def _stored(self, count: int) -> None:
        self.stored_bytes += count
