"""Index and graph of a pool made anew from its segments, where they are lost or lead astray.

Positions stay as they are, so only what is made anew is written: index pieces from the segments'
footers, the graph from commits, tags and trees. One commit swaps the manifest; whoever loses to a
push or a settle looks again. A tree is coded against the one before it where they share children.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

from shardgit._fastpack import tree_children
from shardgit._graph import PoolGraph, unpack_stream
from shardgit.blocks.block import HEADER_SIZE, BlockKind, named, new_header
from shardgit.errors import Conflict, DataLoss
from shardgit.faultpoints import reach
from shardgit.journal.interface import DeleteRange
from shardgit.journal.records import recents_range, serial_of
from shardgit.objects import parse_commit, parse_tag
from shardgit.oid import ObjectId
from shardgit.operate.pool_check import ids_of_run, wrong_entries
from shardgit.pool.append import BlockBatch
from shardgit.pool.manifest import BlockRef, Manifest, RunRecord, SegmentEntry, encode_manifest
from shardgit.pool.view import PoolView
from shardgit.pool.writer import NewBlock, index_blocks
from shardgit.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.journal.interface import Operation, Row
    from shardgit.oid import BlockId, PoolId
    from shardgit.operate.operation import Control
    from shardgit.pool.view import PlacedRun
    from shardgit.service.store import PoolState, Store

ATTEMPTS = 5
NO_LINK = 0xFFFF_FFFF
EXTERNAL = 0x8000_0000
BATCH = 256
COMMIT, TREE, TAG = 1, 2, 4
_HEAD = struct.Struct("<4sHHIIIIIII28x")


def rebuild_pool(store: Store, pool: PoolId, *, control: Control) -> tuple[int, int]:
    """Make anew what is off in a pool's index and graph; returns how many index pieces and graph blocks.

    (0, 0) when nothing was. Errors: DataLoss when segments are gone, Conflict when others were faster each time,
    StorageFull.
    """
    for _ in range(ATTEMPTS):
        with store.journal.snapshot() as snapshot:
            # Keeps what is put until the commit that names it, and what is read.
            lease = store.leases.take(snapshot.revision)
            state = store.pool(snapshot, pool)
            rows = list(snapshot.range(*recents_range(pool)))
        with lease:
            try:
                return _Rebuild(store, state, rows, control).run()
            except Conflict:
                continue
    raise Conflict("pool changed each time while its index was made anew", pool=pool.hex())


class _Rebuild:
    def __init__(self, store: Store, state: PoolState, rows: list[Row], control: Control) -> None:
        self.store = store
        self.state = state
        self.rows = rows
        self.control = control
        self.view = state.view
        self.base = len(self.view.runs) - len(self.view.recents)
        self.batch = BlockBatch(store.blocks, embed=False)
        self.fold = False  # recents become runs of the manifest: their rows are never written anew
        self.pieces = self.graphs = 0

    def run(self) -> tuple[int, int]:
        sound = [self._is_sound(run) for run in self.view.runs]
        self.fold = not all(sound[self.base :])
        records = [
            record if good and not (self.fold and not record.index) else self._indexed(run)
            for run, record, good in zip(
                self.view.runs, (run.record for run in self.view.runs), sound, strict=True
            )
        ]
        # What is indexed anew can be looked up; the graph needs that for bases and links.
        view = self._view_of(records)
        records = self._with_graphs(view, records)
        if not self.pieces and not self.graphs:
            return 0, 0
        root = self._put_manifest(records)
        assert root is not None
        compare, put = self.store.next_pool(self.state, root)
        operations: list[Operation] = [put]
        if self.fold:
            operations.append(
                DeleteRange(*recents_range(self.state.record.id, upto=self.view.last_recent))
            )
        reach("rebuild.before_commit")
        # commit point: before it the pool is as it was, and there are blocks that nothing names; after it its index
        # and graph are whole.
        self.store.journal.commit_sync([compare], operations)
        reach("rebuild.after_commit")
        return self.pieces, self.graphs

    # ---- index ----

    def _is_sound(self, run: PlacedRun) -> bool:
        """Say whether a run's index leads where it must, and its graph is there."""
        try:
            for ref in (*(ref for _, ref in run.record.index), *run.record.graph):
                self.view.block(ref, run.root)
        except DataLoss:
            return False
        return next(wrong_entries(self.view, run), None) is None

    def _indexed(self, run: PlacedRun) -> RunRecord:
        """Return a run with an index that is made from the footers of its segments."""
        record = run.record
        size = self.view.hash_kind.size
        flat = ids_of_run(self.view, run)
        ids = [ObjectId(flat[at : at + size]) for at in range(0, len(flat), size)]
        made: list[tuple[bytes, BlockRef]] = []
        pool, limits = self.state.record.id, self.store.limits
        for key, block in index_blocks(ids, pool, self.view.hash_kind, limits):
            self.batch.add(block)
            made.append((key, block.ref))
        self.pieces += len(made)
        return replace(record, index=tuple(made))

    def _put(self, kind: BlockKind, payload: bytes) -> BlockRef:
        head = new_header(
            kind, self.view.hash_kind, self.state.record.id, HEADER_SIZE + len(payload)
        )
        block = NewBlock(*named(head + payload))
        self.batch.add(block)
        return block.ref

    # ---- the pool with what was made anew ----

    def _view_of(self, records: list[RunRecord]) -> PoolView:
        """Return the pool's view over other run records; what it needs is put, but no row names it."""
        if not self.fold and all(
            run.record is record for run, record in zip(self.view.runs, records, strict=True)
        ):
            return self.view
        root = self._put_manifest(records)
        view = PoolView(self.store.blocks, self.view.hash_kind, root, limits=self.store.limits)
        for row in () if self.fold else self.rows:
            view = view.extended(serial_of(row.key), row.value)
        return view

    def _put_manifest(self, records: list[RunRecord]) -> BlockId | None:
        """Put the manifest with these runs; returns its id, None for an empty one."""
        before = self.view.manifest
        serial = before.next_serial
        runs: list[RunRecord] = []
        entries: list[SegmentEntry] = []
        for number, (run, record) in enumerate(zip(self.view.runs, records, strict=True)):
            if number >= self.base and not self.fold:
                break
            shift = serial - record.first_serial if number >= self.base else 0
            mine = range(run.start, run.start + record.objects)
            runs.append(
                replace(
                    record,
                    first_serial=record.first_serial + shift,
                    index=tuple((key, self._apart(ref, run.root)) for key, ref in record.index),
                    graph=tuple(self._apart(ref, run.root) for ref in record.graph),
                )
            )
            if number >= self.base:
                fresh = [
                    replace(
                        one.entry,
                        serial=one.entry.serial + shift,
                        ref=self._apart(one.entry.ref, run.root),
                    )
                    for one in self.view.segments
                    if one.base in mine
                ]
                entries = [*fresh, *entries]
                serial += record.segments
        kept = [replace(one, ref=self._apart(one.ref, self._root)) for one in before.segments]
        manifest = Manifest(
            before.hash_kind,
            before.generation + 1,
            serial,
            tuple(runs),
            (*entries, *kept),
            before.bitmaps,
        )
        if not runs:
            return None
        root, blocks = encode_manifest(manifest, pool=self.state.record.id, embedded={})
        self.batch.put(blocks)
        return root

    @property
    def _root(self) -> bytes:
        return self.view.runs[0].root if self.base else b""

    def _apart(self, ref: BlockRef, root: bytes) -> BlockRef:
        """Return an embedded block as one of its own."""
        if not ref.inline:
            return ref
        self.batch.take(ref.id, self.view.block(ref, root))
        return BlockRef(ref.id, ref.length)

    # ---- graph ----

    def _with_graphs(self, view: PoolView, records: list[RunRecord]) -> list[RunRecord]:
        graph = PoolGraph(int(view.hash_kind))
        out: list[RunRecord] = []
        for run, record in zip(view.runs, records, strict=True):
            stream = self._stored_stream(view, run)
            grown = None if stream is None else self._grown(view, graph, stream)
            if grown is None:
                stream = _GraphWriter(view, run, graph, self.control).stream()
                grown = self._grown(view, graph, stream)
                if grown is None:
                    raise DataLoss("graph that was made anew does not fit its pool")
                room = self.store.limits.block_target_bytes - HEADER_SIZE
                refs = tuple(
                    self._put(BlockKind.GRAPH, stream[at : at + room])
                    for at in range(0, len(stream), room)
                )
                self.graphs += len(refs)
                record = replace(record, graph=refs)  # noqa: PLW2901
            graph = grown
            out.append(record)
        return out

    def _stored_stream(self, view: PoolView, run: PlacedRun) -> bytes | None:
        try:
            return unpack_stream(
                b"".join(view.block(ref, run.root)[HEADER_SIZE:] for ref in run.record.graph)
            )
        except DataLoss:
            return None

    def _grown(self, view: PoolView, graph: PoolGraph, stream: bytes) -> PoolGraph | None:
        try:
            outside = PoolGraph.externals_of(stream, int(view.hash_kind))
            places = view.positions([ObjectId(oid) for oid in outside])
            return graph.extended(stream, places)
        except DataLoss:
            return None


class _GraphWriter:
    """Makes the graph stream of one run from its objects. See docs/formats/graph.md."""

    def __init__(self, view: PoolView, run: PlacedRun, before: PoolGraph, control: Control) -> None:
        self.view = view
        self.run = run
        self.before = before  # of the runs before this one
        self.control = control
        self.outside: dict[ObjectId, int] = {}

    def stream(self) -> bytes:
        """Return the stream. Errors: DataLoss."""
        record, size = self.run.record, self.view.hash_kind.size
        start = self.run.start
        trees_at = start + record.commits + record.tags
        dates, trees, parent_start, parents = array("q"), array("I"), array("I", [0]), array("I")
        for _, data in self._objects(start, record.commits):
            commit = parse_commit(data, self.view.hash_kind)
            links = self._links([commit.tree, *commit.parents])
            dates.append(max(min(commit.committer.seconds, (1 << 63) - 1), -(1 << 63)))
            trees.append(links[0])
            parents.extend(links[1:])
            parent_start.append(len(parents))
        targets = array("I")
        for _, data in self._objects(start + record.commits, record.tags):
            targets.extend(self._links([parse_tag(data, self.view.hash_kind).target]))
        similar, edge_start, edges = array("I"), array("I", [0]), array("I")
        last: set[bytes] = set()
        for number, (_, data) in enumerate(self._objects(trees_at, record.trees)):
            children = set(tree_children(data, size))
            fresh = children - last
            near = bool(number) and len(fresh) < len(children)
            similar.append(trees_at - start + number - 1 if near else NO_LINK)
            edges.extend(
                self._links([ObjectId(oid) for oid in sorted(fresh if near else children)])
            )
            edge_start.append(len(edges))
            last = children
        generations = self._generations(parent_start, parents)
        head = _HEAD.pack(
            b"SGGR",
            1,
            int(self.view.hash_kind),
            record.commits,
            record.tags,
            record.trees,
            record.blobs,
            len(parents),
            len(edges),
            len(self.outside),
        )
        tables = (dates, generations, trees, parent_start, parents, targets, similar, edge_start)
        flat = b"".join(table.tobytes() for table in (*tables, edges))
        return head + flat + b"".join(self.outside)

    def _objects(self, first: int, count: int) -> Iterator[tuple[int, bytes]]:
        for at in range(first, first + count, BATCH):
            some = range(at, min(at + BATCH, first + count))
            found = self.view.read_positions(some)
            for position, one in zip(some, found, strict=True):
                yield position, one.data
            self.control.pace(sum(len(one.data) for one in found))
            done = some.stop - self.run.start
            self.control.report(Progress("making the graph", done, None, "objects"))

    def _links(self, ids: list[ObjectId]) -> list[int]:
        low, high = self.run.start, self.run.start + self.run.record.objects
        links = []
        for oid, at in zip(ids, self.view.positions(ids), strict=True):
            if low <= at < high:
                links.append(at - low)
            else:
                links.append(EXTERNAL + self.outside.setdefault(oid, len(self.outside)))
        return links

    def _generations(self, starts: array[int], parents: array[int]) -> array[int]:
        """Return 1 + the highest generation of each commit's parents."""
        outside = list(self.outside)
        places = self.view.positions(outside)
        known = [
            self.before.generation_at(at)
            if 0 <= at < self.before.objects and self.before.type_at(at) == COMMIT
            else 0
            for at in places
        ]
        out = array("I", bytes(4 * (len(starts) - 1)))
        for first in range(len(out)):
            waiting = [first]
            while waiting:
                at = waiting[-1]
                mine = parents[starts[at] : starts[at + 1]]
                later = [one for one in mine if one < EXTERNAL and not out[one]]
                if later:
                    waiting += later
                    continue
                waiting.pop()
                ranks = (out[one] if one < EXTERNAL else known[one - EXTERNAL] for one in mine)
                out[at] = 1 + max(ranks, default=0)
        return out
