"""Settle: recents become runs of the manifest, and runs of one size become one larger run.

Recents lie in the journal, whole, and each is looked through at every lookup, so they must stay few. A settle takes a
pool's recents as one snapshot shows them, writes those that are embedded into one new run, takes those whose blocks
are in the shards as runs as they are, and swaps the manifest. When RUNS_MERGED runs of one level stand at the end they
are merged too, so each byte is written O(log n) times and a pool of n pushes has O(log n) runs. Entries are copied as
they are stored; positions change, so views are told apart by manifest. The blocks of merged runs stay until gc.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shardgit import faultpoints, metrics, telemetry
from shardgit.errors import Conflict, DataLoss, LimitExceeded, ShardgitError, StorageFull
from shardgit.journal.interface import DeleteRange
from shardgit.journal.records import recents_range
from shardgit.lmdbenv import NO_SPACE
from shardgit.operate.reserving import reserved
from shardgit.operate.rewriting import LEVEL_MAX, level_of, merged
from shardgit.pool.append import BlockBatch, run_bytes, write_run
from shardgit.pool.manifest import ALONE, Manifest, RunRecord, SegmentEntry, encode_manifest
from shardgit.pool.writer import RunWriter, index_blocks
from shardgit.turns import holding

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from contextlib import AbstractContextManager

    from shardgit._layout import Ingest
    from shardgit.oid import BlockId, PoolId
    from shardgit.pool.view import PlacedRun
    from shardgit.service.store import PoolState, Store

# Runs of one level that become one of the next. Compactions come before that where there is maintenance: what is merged
# as it was pushed, and stands alone at the end, is not looked at again until more has come.
RUNS_MERGED = 32


def settle(store: Store, pool: PoolId) -> bool:
    """Fold a pool's recents into its manifest; False when there was nothing to do or another settle is at it.

    Nothing that reads or pushes waits for it. Stopped at any moment, it has happened or it has not.
    What cannot be merged because a block is damaged is set aside as it is: the rest goes on.
    Errors: StorageFull, DataLoss.
    """
    with settling_alone(store, pool) as free:
        if not free:
            return False
        for _ in range(2):
            with store.journal.snapshot() as snapshot:
                state = store.pool(snapshot, pool)
            if not state.view.recents:
                return False
            work = _Settle(store, state)
            try:
                work.run()
            except Conflict:
                continue  # an import came in between
            except OSError as cause:
                metrics.SETTLES.labels("failed").inc()
                if cause.errno not in NO_SPACE:
                    raise
                raise StorageFull("no room to settle the pool", pool=pool.hex()) from cause
            except ShardgitError:
                metrics.SETTLES.labels("failed").inc()
                raise
            metrics.SETTLES.labels("set_aside" if work.damage else "done").inc()
            if work.damage:
                telemetry.log().error(
                    "settle_met_damage", pool=pool.hex(), error=str(work.damage[0])
                )
            return True
        return False


def settling_alone(store: Store, pool: PoolId) -> AbstractContextManager[bool]:
    """Keep other processes and threads from settling the same pool: their work would be for nothing."""
    return holding(store.turns, f"settle-{pool.hex()[:8]}")


def settled_whole(store: Store, pool: PoolId, choose: Callable[[Ingest], None]) -> int | None:
    """Write a pool that fits one block anew as one, bases chosen by ``choose``; returns the bytes of its root.

    None when it does not fit, or another settle is at it. Errors: StorageFull.
    """
    with settling_alone(store, pool) as free:
        if not free:
            return None
        with store.journal.snapshot() as snapshot:
            state = store.pool(snapshot, pool)
        work = _Settle(store, state, choose)
        if not state.view.objects or not work.small():
            return None
        try:
            return work.run()
        except Conflict:
            return None


class _Settle:
    """One settle of one pool."""

    def __init__(
        self, store: Store, state: PoolState, choose: Callable[[Ingest], None] | None = None
    ) -> None:
        self.store = store
        self.choose = choose
        self.state = state
        self.view = state.view
        self.batch = BlockBatch(store.blocks, embed=False)
        self.serial = self.view.manifest.next_serial
        self.damage: list[DataLoss] = []  # what was met and left aside
        self.bases_max_bytes = store.limits.thin_bases_max_bytes  # of what is not merged, at once

    def run(self) -> int:
        """Write the new runs and swap the manifest; returns the bytes of its root."""
        view, store = self.view, self.store
        before = view.manifest
        made = self._one_block() if self.small() else None
        if made is not None:
            manifest, embedded = made
        else:
            embedded = {}
            kept = view.runs[: len(view.runs) - len(view.recents)]
            groups = _grouped(kept, view.recents, reserved(store, self.state.record.id))
            base = view.unembedded(before, self.batch.take)
            manifest = self._assembled(base, len(kept), groups)
        root, blocks = encode_manifest(manifest, pool=self.state.record.id, embedded=embedded)
        self.batch.put(blocks)
        compare, put = store.next_pool(self.state, root)
        recents = [
            DeleteRange(*recents_range(self.state.record.id, upto=view.last_recent))
            for _ in view.recents[:1]
        ]
        # commit point: before it the recents stand, and blocks that nothing names; after it the new manifest stands
        # in their place, whole.
        faultpoints.reach("settle.before_commit")
        store.journal.commit_sync([compare], [put, *recents])
        faultpoints.reach("settle.after_commit")
        return len(blocks[-1][1])

    def small(self) -> bool:
        """Return whether all of the pool fits one block: then it stays one."""
        entries = [segment.entry for segment in self.view.segments]
        if any(entry.flags & ALONE for entry in entries):
            return False
        whole = sum(entry.entry_bytes + 40 * entry.objects for entry in entries)
        return whole < self.store.limits.block_target_bytes // 3

    def _one_block(self) -> tuple[Manifest, dict[BlockId, bytes]] | None:
        """Write the whole pool anew as one run that the root embeds; None where a block is damaged."""
        try:
            return self._whole()
        except DataLoss as error:
            self.damage.append(error)
            return None

    def _whole(self) -> tuple[Manifest, dict[BlockId, bytes]]:
        view = self.view
        with self._merged(view.runs) as (ingest, segments, stream):
            small = run_bytes(ingest, segments, stream) < self.store.limits.block_target_bytes // 2
            batch = BlockBatch(self.store.blocks, embed=True) if small else self.batch
            writer = self._writer(ingest, level=0)
            write_run(writer, batch, segments=segments, stream=stream)
            manifest = Manifest(
                view.hash_kind,
                view.manifest.generation + 1,
                writer.first_serial + len(writer.entries),
                (writer.record(),),
                tuple(writer.entries),
                (),
            )
        return manifest, batch.embedded

    def _assembled(
        self, base: Manifest, kept: int, groups: Sequence[Sequence[PlacedRun]]
    ) -> Manifest:
        """Return the new manifest: the runs of the old one, then one run for each group."""
        runs = list(base.runs)
        fresh: list[SegmentEntry] = []
        gone: set[int] = set()
        waiting = list(groups)
        while waiting:
            group = waiting.pop(0)
            first = group[0]
            try:
                if len(group) == 1 and first.record.index and first.start >= self._base_objects:
                    run, entries = self._taken(first)
                else:
                    run, entries = self._rewritten(group)
            except StorageFull:
                raise
            except LimitExceeded:
                # Each was small enough to be pushed; a settle that fails on their sum would fail for ever.
                if not (parts := self._smaller(group)):
                    raise
                waiting[:0] = parts
                continue
            except DataLoss as error:
                self.damage.append(error)
                if len(group) > 1:
                    waiting[:0] = self._smaller(group)
                    continue
                run, entries = self._moved(first)
            for old in group:
                if old.start < self._base_objects:
                    number = next(n for n, run_ in enumerate(self.view.runs) if run_ is old)
                    gone.add(number)
            runs.append(run)
            fresh = [*entries, *fresh]
        dropped = {
            serial
            for number in gone
            for serial in range(
                base.runs[number].first_serial,
                base.runs[number].first_serial + base.runs[number].segments,
            )
        }
        runs = [run for number, run in enumerate(runs) if number not in gone]
        segments = [entry for entry in base.segments if entry.serial not in dropped]
        return Manifest(
            base.hash_kind,
            base.generation + 1,
            self.serial,
            tuple(runs),
            (*fresh, *segments),  # what is new goes first: a clone meets recent objects first
            base.bitmaps,
        )

    def _smaller(self, group: Sequence[PlacedRun]) -> list[Sequence[PlacedRun]]:
        """Return a group of too many bases in parts: runs of the manifest stay as they are, recents go by halves.

        One alone may take what it needs. [] when that was too little.
        """
        recents = [run for run in group if run.start >= self._base_objects]
        if len(recents) < len(group):
            return [recents]
        if len(recents) == 1:
            if self.bases_max_bytes == self.store.limits.pack_raw_max_bytes:
                return []  # it is not the bases
            self.bases_max_bytes = self.store.limits.pack_raw_max_bytes
            return [recents]
        half = len(recents) // 2
        return [recents[:half], recents[half:]]

    @property
    def _base_objects(self) -> int:
        return self.view.manifest.objects

    def _taken(self, run: PlacedRun) -> tuple[RunRecord, list[SegmentEntry]]:
        """Take a recent whose blocks are in the shards as it is."""
        record = run.record
        shift = self.serial - record.first_serial
        self.serial += record.segments
        mine = range(run.start, run.start + record.objects)
        entries = [
            replace(segment.entry, serial=segment.entry.serial + shift)
            for segment in self.view.segments
            if segment.base in mine
        ]
        size = sum(entry.entry_bytes for entry in entries)
        level = level_of(size)
        return replace(record, first_serial=record.first_serial + shift, level=level), entries

    def _moved(self, run: PlacedRun) -> tuple[RunRecord, list[SegmentEntry]]:
        """Take a recent that is embedded as it is, as blocks: what its deltas need cannot be read now."""
        if run.record.index:
            raise self.damage[-1]
        record, entries = self._taken(run)
        alone = replace(self.view.manifest, runs=(record,), segments=tuple(entries), bitmaps=())
        out = self.view.unembedded(alone, self.batch.take, root=run.root)
        blocks = index_blocks(
            self.view.ids_at(range(run.start, run.start + record.objects)),
            self.state.record.id,
            self.view.hash_kind,
            self.store.limits,
        )
        index = []
        for key, block in blocks:
            self.batch.take(block.id, block.data)
            index.append((key, block.ref))
        return replace(out.runs[0], index=tuple(index)), list(out.segments)

    def _rewritten(self, group: Sequence[PlacedRun]) -> tuple[RunRecord, list[SegmentEntry]]:
        """Write the runs of a group as one."""
        with self._merged(group) as (ingest, segments, stream):
            size = run_bytes(ingest, segments, stream)
            level = level_of(size)
            if len(group) >= RUNS_MERGED and group[0].start < self._base_objects:
                level = max(level, max(run.record.level for run in group) + 1)
            writer = self._writer(ingest, level=min(level, LEVEL_MAX))
            write_run(writer, self.batch, segments=segments, stream=stream)
            self.serial += len(writer.entries)
            return writer.record(), list(writer.entries)

    def _writer(self, ingest: Ingest, *, level: int) -> RunWriter:
        return RunWriter(
            ingest,
            self.state.record.id,
            self.view.hash_kind,
            first_serial=self.serial,
            level=level,
            limits=self.store.limits,
        )

    def _merged(
        self, runs: Sequence[PlacedRun]
    ) -> AbstractContextManager[tuple[Ingest, int, bytes]]:
        """Resolve and lay out the objects of consecutive runs; gives the ingest, its segments and its graph stream."""
        return merged(
            self.store,
            self.view,
            runs,
            bases_max_bytes=self.bases_max_bytes,
            choose=self.choose,
        )


def _grouped(
    kept: Sequence[PlacedRun], recents: Sequence[PlacedRun], reserved: Collection[int] = ()
) -> list[list[PlacedRun]]:
    """Return which runs become one: recents that are embedded with their neighbours, those with blocks alone.

    Where the manifest ends in enough runs of low levels, these go into the first group, but for those that somebody
    else is writing anew (``reserved``, by first serial) and what stands before them.
    """
    groups: list[list[PlacedRun]] = []
    for run in recents:
        if run.record.index or not groups or groups[-1][-1].record.index:
            groups.append([run])
        else:
            groups[-1].append(run)
    if groups[0][0].record.index:
        return groups
    tail: list[PlacedRun] = []
    for level in range(LEVEL_MAX):
        end = len(kept) - len(tail)
        more = end
        while (
            more and kept[more - 1].record.level <= level and _mergeable(kept[more - 1], reserved)
        ):
            more -= 1
        if len(kept) - more + 1 < RUNS_MERGED or more == end:
            break
        tail = list(kept[more:])
    if tail:
        groups[0] = [*tail, *groups[0]]
    return groups


def _mergeable(run: PlacedRun, reserved: Collection[int]) -> bool:
    return run.record.level < LEVEL_MAX and run.record.first_serial not in reserved
