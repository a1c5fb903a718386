"""Compact: runs of a pool become one, with deltas chosen anew and in the order of a clone.

A settle copies entries as they were pushed, so what thousands of small pushes leave behind is many runs, deltas on
bases in other segments, trees that are told against whatever their pusher had. A compaction makes all objects of some
consecutive runs, walks the history from the newest commit on, chooses bases anew among objects of like paths
(``_delta.Chooser``) and writes one run: commits by recency, trees and blobs as the walk meets them, families whole.

Which runs: all from the first on that is not twice as large as what follows it, so that each byte is written O(log n)
times as the pool grows. The manifest is swapped by compare-and-set, and only the runs that were written anew are
replaced: pushes and settles go on meanwhile. A compaction of all goes by groups of runs, the oldest first. Stopped or
killed, a compaction has done whole steps and leaves blocks that nothing names.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints
from shardgit.errors import Conflict, DataLoss, StorageFull
from shardgit.journal.interface import Delete
from shardgit.journal.mode import check_writable
from shardgit.journal.operations import operation_key, put_operation, read_operation
from shardgit.lmdbenv import NO_SPACE
from shardgit.oid import HashKind
from shardgit.operate.bases import Search, older_versions, seen_by_root
from shardgit.operate.operation import running
from shardgit.operate.reserving import reserving
from shardgit.operate.rewriting import level_of, merged
from shardgit.operate.settle import settle, settled_whole
from shardgit.pool.append import BlockBatch, run_bytes, write_run
from shardgit.pool.manifest import encode_manifest
from shardgit.pool.writer import RunWriter
from shardgit.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardgit._layout import Ingest
    from shardgit.oid import PoolId
    from shardgit.operate.operation import Control
    from shardgit.pool.manifest import Manifest, RunRecord, SegmentEntry
    from shardgit.pool.view import PlacedRun, PoolView
    from shardgit.service.store import Store

GROWTH = 2  # a run is written anew once what came after it is more than a GROWTH-th of it
# A tail of less is not worth a compaction. Pushes take twice what they will, so it is kept small.
WANTED_BYTES = 64 << 10
WANTED_PART = 64  # of the pool
# An ingest takes memory by the object. Runs of more objects are left alone, but for ``full``: what comes after them has
# its bases in them all the same.
STEP_OBJECTS = 4 << 20
ROUNDS_MAX = 16
RESUMED_MS = 7 * 86_400_000  # a compaction of all that was left for longer begins anew


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


@dataclass(frozen=True, slots=True)
class AllBegun:
    """A compaction of all runs that takes several steps: runs of this serial and later ones are its own, or younger."""

    serial: int
    at_ms: int


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
        search = Search(store, control, seen_by_root(store, view, pool))
        pairs: list[tuple[int, int]] = []
        with suppress(DataLoss):  # a base that cannot be read is none
            pairs = older_versions(view, runs)
        new, old = (view.ids_at([pair[number] for pair in pairs]) for number in range(2))
        search.older = list(zip(new, old, strict=True))
        with merged(
            store,
            view,
            runs,
            bases_max_bytes=store.limits.thin_bases_max_bytes,
            keep=keep,
            choose=search.choose,
            more=sorted({at for _, at in pairs}),
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
    return bool(_tail(view))


def compact_repository(
    store: Store, name: str, *, control: Control, full: bool = False
) -> Compacted:
    """Compact the pool of a repository. Errors: as ``compact``, and RepositoryMissing."""
    with store.journal.snapshot() as snapshot:
        pool = store.repository(snapshot, name).pool
    return compact(store, pool, control=control, full=full)


def compact(store: Store, pool: PoolId, *, control: Control, full: bool = False) -> Compacted:
    """Write the pool's tail of runs anew as one, or all of them with ``full``; nothing else waits for it.

    Killed at any moment a step has happened or it has not; what is begun again begins with what is left.
    Errors: Refused when the pool is being compacted already, Conflict when another writer of runs won again and again,
    LimitExceeded, ReadOnly, StorageFull, Stopped.
    """
    check_writable(store.journal)
    # The lease keeps gc from the blocks that are put before a swap names them.
    with running(store, f"compact-{pool.hex()[:8]}"), store.lease():
        settle(store, pool)
        if full:
            return _compact_all(store, pool, control=control)
        return _rounds(store, pool, _tail, control=control)


def _compact_all(store: Store, pool: PoolId, *, control: Control) -> Compacted:
    """Write all runs anew, the oldest first, in groups of at most STEP_OBJECTS; a larger run is a group alone."""
    kind, piece, groups = "compact", pool.hex(), 0
    with store.journal.snapshot() as snapshot:
        manifest = store.pool(snapshot, pool).view.manifest
        row = read_operation(snapshot, kind, AllBegun, piece)
    begun, known = row.record, row.record is not None
    first = AllBegun(manifest.next_serial, clock.now_ms())
    if begun is None or first.at_ms - begun.at_ms > RESUMED_MS or not _left(manifest, begun):
        begun, known = first, False
    total = Compacted(piece, len(manifest.runs), len(manifest.runs), 0, 0, 0, 0)
    while True:
        with store.journal.snapshot() as snapshot:
            manifest = store.pool(snapshot, pool).view.manifest
        group = _left(manifest, begun)
        if not group and groups:
            break
        if not known and len(group) < len(manifest.runs):
            store.journal.commit_sync([], [put_operation(kind, begun, piece)])
            known = True
        since = begun

        def next_group(view: PoolView, since: AllBegun = since) -> list[PlacedRun]:
            serials = {run.first_serial for run in _left(view.manifest, since)}
            held = view.runs[: len(view.manifest.runs)]
            return [run for run in held if run.record.first_serial in serials]

        done = _rounds(store, pool, next_group, control=control, whole=not known)
        groups += 1
        total = replace(
            total,
            runs_after=done.runs_after,
            objects=total.objects + done.objects,
            deltas=total.deltas + done.deltas,
            bytes_before=total.bytes_before + done.bytes_before,
            bytes_after=total.bytes_after + done.bytes_after,
        )
    if known or row.record is not None:
        store.journal.commit_sync([], [Delete(operation_key(kind, piece))])
    return total


def _left(manifest: Manifest, begun: AllBegun) -> list[RunRecord]:
    """Return the next group: the oldest runs that were there when all began to be written anew."""
    runs = list(manifest.runs)
    while runs and runs[0].first_serial >= begun.serial:
        runs.pop(0)
    objects = 0
    for count, run in enumerate(runs):
        objects += run.objects
        if count and objects > STEP_OBJECTS:
            return runs[:count]
    return runs


def _rounds(
    store: Store,
    pool: PoolId,
    pick: Callable[[PoolView], list[PlacedRun]],
    *,
    control: Control,
    whole: bool = False,
) -> Compacted:
    """Write the picked runs anew as one; ``whole``: a pool that fits one block may become one."""
    for _ in range(ROUNDS_MAX):
        done = _round(store, pool, pick, control=control, whole=whole)
        if done is not None:
            return done
    raise Conflict("the pool's runs change faster than they are compacted", pool=pool.hex())


def _round(
    store: Store,
    pool: PoolId,
    pick: Callable[[PoolView], list[PlacedRun]],
    *,
    control: Control,
    whole: bool,
) -> Compacted | None:
    """Compact a pool as it is now; None when somebody else changed the runs meanwhile."""
    with store.lease():  # what is read here and what is put stays
        with store.journal.snapshot() as snapshot:
            view = store.pool(snapshot, pool).view
        before = len(view.manifest.runs)
        runs = pick(view)
        if not runs:
            return Compacted(pool.hex(), before, before, 0, 0, 0, 0)
        bytes_before = bytes_of(view, runs)
        control.check()
        search = Search(store, control)
        if whole and (size := settled_whole(store, pool, search.choose)) is not None:
            return Compacted(pool.hex(), before, 1, view.objects, search.deltas, bytes_before, size)
        records = [run.record for run in runs]
        try:
            with reserving(store, pool, records):
                # A gc may have been at the pool until here: what becomes a base must be there, and stays from now on.
                with store.journal.snapshot() as snapshot:
                    view = store.pool(snapshot, pool).view
                runs = _same(view, records)
                if not runs:
                    return None
                new = rewrite(store, view, runs, pool=pool, control=control)
                assert new is not None
                swap_runs(store, pool, records, new)
        except Conflict:
            return None
        after = before - len(runs) + 1
        return Compacted(
            pool.hex(), before, after, new.objects, new.deltas, bytes_before, new.stored_bytes
        )


def _same(view: PoolView, records: Sequence[RunRecord]) -> list[PlacedRun]:
    """Return the runs of a view's manifest with these records; [] when it does not have all of them."""
    held = view.runs[: len(view.manifest.runs)]
    serials = {record.first_serial for record in records}
    runs = [run for run in held if run.record.first_serial in serials]
    return runs if [run.record for run in runs] == list(records) else []


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


def _tail(view: PoolView) -> list[PlacedRun]:
    """Return the runs to write anew: all from the first on that what follows outweighs by half; [] for none.

    They have STEP_OBJECTS at most.
    """
    runs = list(view.runs[: len(view.manifest.runs)])
    if not runs:
        return []
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
