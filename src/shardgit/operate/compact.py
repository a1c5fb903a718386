"""Compact: runs of a pool become one, with deltas chosen anew and in the order of a clone.

A settle copies entries as they were pushed, so what thousands of small pushes leave behind is many runs, deltas on
bases in other segments, trees that are told against whatever their pusher had. A compaction makes all objects of some
consecutive runs, walks the history from the newest commit on, chooses bases anew among objects of like paths
(``_delta.Chooser``) and writes one run: commits by recency, trees and blobs as the walk meets them, families whole.

Which runs: all from the first on that is not twice as large as what follows it, so that each byte is written O(log n)
times as the pool grows. The manifest is swapped by compare-and-set, and only the runs that were written anew are
replaced: pushes and settles go on meanwhile. Stopped or killed, a compaction has done whole steps and leaves blocks
that nothing names.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit import _delta, faultpoints
from shardgit.errors import Conflict, StorageFull
from shardgit.graph.closure import bit
from shardgit.journal.records import RepositoryRecord
from shardgit.lmdbenv import NO_SPACE
from shardgit.oid import HashKind, ObjectId
from shardgit.operate.operation import running
from shardgit.operate.reserving import reserving
from shardgit.operate.rewriting import THREADS_MAX, level_of, merged
from shardgit.operate.settle import settle, settled_whole
from shardgit.pool.append import BlockBatch, run_bytes, write_run
from shardgit.pool.manifest import encode_manifest
from shardgit.pool.writer import RunWriter
from shardgit.progress import Progress
from shardgit.service.incoming import HOPS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardgit._layout import Ingest
    from shardgit.oid import PoolId
    from shardgit.operate.operation import Control
    from shardgit.pool.manifest import Manifest, RunRecord, SegmentEntry
    from shardgit.pool.view import PlacedRun, PoolView
    from shardgit.service.store import Store

WINDOW = 10  # objects that each is tried against, as git does
DEPTH = 50
LEVEL = 9  # of deflate; 12 is 1.5 % smaller and takes twice the time of all the rest
GROWTH = 2  # a run is written anew once what came after it is more than a GROWTH-th of it
# A tail of less is not worth a compaction. Pushes take twice what they will, so it is kept small.
WANTED_BYTES = 64 << 10
WANTED_PART = 64  # of the pool
# An ingest takes some 170 bytes an object, so no more than 700 MB. Runs of more objects are left alone, but for
# ``full``: what comes after them has its bases in them all the same.
STEP_OBJECTS = 4 << 20
ROUNDS_MAX = 16
TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class NewRun:
    """Runs written anew as one: its record, and its segments in clone order with serials from 0."""

    record: RunRecord
    entries: tuple[SegmentEntry, ...]
    stored_bytes: int
    deltas: int

    @property
    def objects(self) -> int:
        """Objects of the run."""
        return self.record.objects


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did: runs of the pool before and after, bytes of what was written anew, before and after."""

    pool: str
    runs_before: int
    runs_after: int
    objects: int
    deltas: int
    bytes_before: int
    bytes_after: int


def rewrite(
    store: Store,
    view: PoolView,
    runs: Sequence[PlacedRun],
    *,
    pool: PoolId,
    keep: bytes | None = None,
    control: Control,
) -> NewRun | None:
    """Write consecutive runs of a view's manifest as one, deltas chosen anew; None when nothing of them is kept.

    ``keep`` is a bitset over pool positions: objects of the runs that it lacks are left out. What later runs have as a
    delta's base or similar tree must be in it. The blocks are durable on return, and nothing names them: ``replaced``
    gives the manifest that does.
    Errors: LimitExceeded when the runs are deltas on too much outside of them, StorageFull, Stopped.
    """
    try:
        search = _Search(store, control, _seen_by_root(store, view, pool))
        with merged(
            store,
            view,
            runs,
            bases_max_bytes=store.limits.thin_bases_max_bytes,
            keep=keep,
            choose=search.choose,
        ) as (ingest, segments, stream):
            if not ingest.objects_kept:
                return None
            return _written(
                store, ingest, segments, stream, pool=pool, deltas=search.deltas, control=control
            )
    except OSError as cause:
        if cause.errno not in NO_SPACE:
            raise
        raise StorageFull("no room to write runs of the pool anew", pool=pool.hex()) from cause


def _written(
    store: Store,
    ingest: Ingest,
    segments: int,
    stream: bytes,
    *,
    pool: PoolId,
    deltas: int,
    control: Control,
) -> NewRun:
    """Put the blocks of a laid-out ingest; durable on return."""
    batch = BlockBatch(store.blocks, embed=False)
    level = level_of(run_bytes(ingest, segments, stream))
    writer = RunWriter(
        ingest, pool, HashKind(ingest.hash_kind), first_serial=0, level=level, limits=store.limits
    )
    told = 0

    def wrote(count: int) -> None:
        nonlocal told
        control.report(Progress("writing blocks", count, segments, "blocks"))
        control.pace(batch.taken_bytes - told)
        told = batch.taken_bytes

    write_run(writer, batch, segments=segments, stream=stream, wrote=wrote)
    batch.put([])
    return NewRun(writer.record(), tuple(writer.entries), batch.stored_bytes, deltas)


def replaced(manifest: Manifest, runs: Sequence[RunRecord], new: NewRun | None) -> Manifest | None:
    """Return a manifest in which ``new`` stands for ``runs``; None when it does not have them one after another."""
    serials = [run.first_serial for run in manifest.runs]
    if not runs or runs[0].first_serial not in serials:
        return None
    at = serials.index(runs[0].first_serial)
    held = manifest.runs[at : at + len(runs)]
    if [(run.first_serial, run.objects, run.index) for run in held] != [
        (run.first_serial, run.objects, run.index) for run in runs
    ]:
        return None
    gone = {
        serial
        for run in held
        for serial in range(run.first_serial, run.first_serial + run.segments)
    }
    first = manifest.next_serial
    made = () if new is None else (replace(new.record, first_serial=first),)
    entries = () if new is None else new.entries
    fresh = tuple(replace(entry, serial=entry.serial + first) for entry in entries)
    # In the pages newer runs go first; the new run takes the place of the newest that it stands for.
    place = next(
        (number for number, entry in enumerate(manifest.segments) if entry.serial in gone), 0
    )
    before = tuple(entry for entry in manifest.segments[:place] if entry.serial not in gone)
    after = tuple(entry for entry in manifest.segments[place:] if entry.serial not in gone)
    return replace(
        manifest,
        generation=manifest.generation + 1,
        next_serial=first + len(fresh),
        runs=(*manifest.runs[:at], *made, *manifest.runs[at + len(runs) :]),
        segments=(*before, *fresh, *after),
    )


def swap_runs(store: Store, pool: PoolId, runs: Sequence[RunRecord], new: NewRun | None) -> None:
    """Commit the manifest in which ``new`` stands for ``runs``, over whatever else has come meanwhile.

    Errors: Conflict when the pool does not consist of them any more.
    """
    for _ in range(ROUNDS_MAX):
        with store.journal.snapshot() as snapshot:
            state = store.pool(snapshot, pool)
        manifest = replaced(state.view.manifest, runs, new)
        if manifest is None:
            break
        batch = BlockBatch(store.blocks, embed=False)
        whole = state.view.unembedded(manifest, batch.take)
        root, blocks = encode_manifest(whole, pool=pool, embedded={})
        batch.put(blocks)
        compare, put = store.next_pool(state, root)
        # commit point: before it the old runs stand, and blocks that nothing names; after it the new run in their
        # place.
        faultpoints.reach("compact.before_commit")
        if store.try_commit([compare], [put]):
            faultpoints.reach("compact.after_commit")
            return
    raise Conflict("the pool's runs have changed meanwhile", pool=pool.hex())


def wants_compaction(view: PoolView) -> bool:
    """Return whether compacting the pool would pay: its tail is not compacted, and large enough to matter."""
    return bool(_tail(view, full=False))


def compact_repository(
    store: Store, name: str, *, control: Control, full: bool = False
) -> Compacted:
    """Compact the pool of a repository. Errors: as ``compact``, and RepositoryMissing."""
    with store.journal.snapshot() as snapshot:
        pool = store.repository(snapshot, name).pool
    return compact(store, pool, control=control, full=full)


def compact(store: Store, pool: PoolId, *, control: Control, full: bool = False) -> Compacted:
    """Write the pool's tail of runs anew as one, or all of them with ``full``; nothing else waits for it.

    Killed at any moment it has happened or it has not; what is begun again begins with what is left.
    Errors: Refused when the pool is being compacted already, Conflict when another writer of runs won again and again,
    LimitExceeded, StorageFull, Stopped.
    """
    # The lease keeps gc from the blocks that are put before a swap names them.
    with running(store, f"compact-{pool.hex()[:8]}"), store.lease():
        settle(store, pool)
        for _ in range(ROUNDS_MAX):
            done = _round(store, pool, control=control, full=full)
            if done is not None:
                return done
        raise Conflict("the pool's runs change faster than they are compacted", pool=pool.hex())


def _round(store: Store, pool: PoolId, *, control: Control, full: bool) -> Compacted | None:
    """Compact a pool as it is now; None when somebody else changed the runs meanwhile."""
    with store.lease():  # what is read here and what is put stays
        with store.journal.snapshot() as snapshot:
            view = store.pool(snapshot, pool).view
        before = len(view.manifest.runs)
        runs = _tail(view, full=full)
        if not runs:
            return Compacted(pool.hex(), before, before, 0, 0, 0, 0)
        bytes_before = bytes_of(view, runs)
        control.check()
        search = _Search(store, control)
        if full and (size := settled_whole(store, pool, search.choose)) is not None:
            return Compacted(pool.hex(), before, 1, view.objects, search.deltas, bytes_before, size)
        records = [run.record for run in runs]
        try:
            with reserving(store, pool, records):
                new = rewrite(store, view, runs, pool=pool, control=control)
                assert new is not None
                swap_runs(store, pool, records, new)
        except Conflict:
            return None
        after = before - len(runs) + 1
        return Compacted(
            pool.hex(), before, after, new.objects, new.deltas, bytes_before, new.stored_bytes
        )


def bytes_of(view: PoolView, runs: Sequence[PlacedRun]) -> int:
    """Return the bytes of all blocks of runs."""
    spans = [range(run.start, run.start + run.record.objects) for run in runs]
    blocks = sum(
        max(one.entry.ref.length, one.entry.entry_bytes)
        for one in view.segments
        if any(one.base in span for span in spans)
    )
    for run in runs:
        blocks += sum(ref.length for _, ref in run.record.index)
        blocks += sum(ref.length for ref in run.record.graph)
    return blocks


def _tail(view: PoolView, *, full: bool) -> list[PlacedRun]:
    """Return the runs to write anew: all from the first on that what follows outweighs by half; [] for none.

    They have STEP_OBJECTS at most.
    """
    runs = list(view.runs[: len(view.manifest.runs)])
    if full or not runs:
        return runs
    sizes = [bytes_of(view, [run]) for run in runs]
    first, total = 0, sum(sizes)
    objects = sum(run.record.objects for run in runs)
    while first < len(runs) and (
        objects > STEP_OBJECTS or sizes[first] > GROWTH * (total - sizes[first])
    ):
        total -= sizes[first]
        objects -= runs[first].record.objects
        first += 1
    if len(runs) - first < 2 or total < max(WANTED_BYTES, sum(sizes) // WANTED_PART):
        return []
    return runs[first:]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the first repository of a pool that has forks reaches: a bitset over a view's positions."""

    view: PoolView
    bits: bytes

    def ranks(self, ingest: Ingest) -> bytes:
        """Return 0 for each object that it reaches and 1 for the others, in the order of their ids."""
        flat, size = ingest.sorted_ids(), self.view.hash_kind.size
        ids = [ObjectId(flat[at : at + size]) for at in range(0, len(flat), size)]
        return bytes(0 if at >= 0 and bit(self.bits, at) else 1 for at in self.view.positions(ids))


def _seen_by_root(store: Store, view: PoolView, pool: PoolId) -> _Seen | None:
    """Return what the oldest repository of a pool reaches; None where there is one alone, or the pool has moved on.

    Its clones are the most, so they stay copies of whole segments, however many forks push.
    """
    with store.journal.snapshot() as snapshot:
        records = (RepositoryRecord.decode(row.value) for row in snapshot.range(b"I", b"J"))
        mine = sorted((one for one in records if one.pool == pool), key=lambda one: one.id)
        if len(mine) < 2:
            return None
        state = store.state(snapshot, mine[0].name)
        if state.pool.view.manifest_id != view.manifest_id:
            return None
        reach = store.reach_of(snapshot, state)
    return _Seen(view, reach.bits())


class _Search:
    """The choice of bases in one rewriting: threads, room for entries, progress."""

    def __init__(self, store: Store, control: Control, seen: _Seen | None = None) -> None:
        self.store = store
        self.control = control
        self.seen = seen
        self.deltas = 0

    def choose(self, ingest: Ingest) -> None:
        """Choose bases for all objects of an ingest. Errors: Stopped, StorageFull."""
        limits = self.store.limits
        with tempfile.TemporaryFile(dir=self.store.scratch) as file:
            chooser = _delta.Chooser(
                ingest,
                _rooms(file.fileno()),
                window=WINDOW,
                depth=DEPTH,
                size_most=limits.object_memory_max_bytes,
                family_bytes=limits.block_max_bytes // 2,
                hops_most=HOPS_MAX,
                level=LEVEL,
            )
            if self.seen is not None:
                chooser.sights(self.seen.ranks(ingest))
            chooser.prepare()
            count = min(self.store.workers.threads, THREADS_MAX) if chooser.objects > 2_000 else 1
            threads = [
                threading.Thread(target=chooser.search, name=f"deltas-{number}")
                for number in range(count)
            ]
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    while thread.is_alive():
                        thread.join(TICK_S)
                        self.control.report(
                            Progress(
                                "choosing deltas", chooser.objects_done, chooser.objects, "objects"
                            )
                        )
                        self.control.check()
            except BaseException:
                chooser.stop()
                for thread in threads:
                    thread.join()
                raise
            self.deltas = chooser.apply()


def _rooms(handle: int) -> Callable[[int], mmap.mmap]:
    """Return what maps one piece of a file after another: entries wait there and not in memory."""
    lock = threading.Lock()
    end = 0

    def room(size: int) -> mmap.mmap:
        nonlocal end
        size = -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        with lock:
            start, end = end, end + size
            # A hole that the disk has no room for would be a SIGBUS at the first write.
            os.posix_fallocate(handle, start, size)
        return mmap.mmap(handle, size, offset=start)

    return room
