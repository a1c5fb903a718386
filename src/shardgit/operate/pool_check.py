"""Checking one pool: its index against its segments, its graph, and every object by its id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit import _segment
from shardgit._fastpack import object_ids, watched_id
from shardgit.blocks.block import BlockKind, parse_header
from shardgit.errors import BlockCorrupt, DataLoss, ShardgitError
from shardgit.journal.records import PoolRecord, pool_key, recents_range, serial_of
from shardgit.objects import object_id
from shardgit.oid import HashKind
from shardgit.operate.findings import REPAIR, REPAIR_FROM, Finding, FindingKind
from shardgit.pool.manifest import ALONE
from shardgit.pool.view import PoolView

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.limits import Limits
    from shardgit.operate.store_files import StoreFiles
    from shardgit.pool.view import PlacedRun, PlacedSegment

BATCH_OBJECTS = 1_024
BATCH_BYTES = 32 << 20
KEY_BYTES = 8
ATTACK = "it looks like a SHA-1 collision attack"
ATTACKED = "shardgit ref log NAME"  # tells who brought it
Bad = tuple[FindingKind, str, str]  # of one object: kind, id, what is wrong
Step = tuple[int, int, int, list[Finding]]  # segments done, objects, bytes read, findings


class PoolCheck:
    """One pool as it is now, read from the store's files."""

    def __init__(
        self, files: StoreFiles, pool: PoolRecord, limits: Limits, *, detect: bool = False
    ) -> None:
        self.files = files
        self.pool = pool
        self.limits = limits
        self.detect = detect and pool.hash_kind is HashKind.SHA1  # collision attacks

    def open(self) -> PoolView | None:
        """Return the pool's view; None when it is empty. Errors: DataLoss."""
        key = pool_key(self.pool.id)
        for row in self.files.rows(key, key + b"\0"):
            self.pool = PoolRecord.decode(self.pool.id, row.value)
        view = PoolView(self.files, self.pool.hash_kind, self.pool.manifest, limits=self.limits)
        for row in self.files.rows(*recents_range(self.pool.id)):
            view = view.extended(serial_of(row.key), row.value)
        return view if view.objects else None

    def run(self, *, objects: bool, skip: int = 0) -> Iterator[Step]:
        """Check index and graph, then, with ``objects``, every object of the segments from ``skip`` on.

        Errors: DataLoss when the pool does not open.
        """
        view = self.open()
        if view is None:
            return
        if not skip:
            for run in view.runs:
                if run.record.index:
                    yield 0, 0, 0, list(wrong_entries(view, run))
            yield 0, 0, 0, list(wrong_graph(view))
        if not objects:
            return
        segments = sorted(view.segments, key=lambda segment: segment.base)
        for number in range(skip, len(segments)):
            segment = segments[number]
            bad = [
                Finding(
                    kind,
                    what,
                    REPAIR_FROM if kind is FindingKind.OBJECT else ATTACKED,
                    block=segment.entry.ref.id.hex(),
                    object=oid,
                )
                for kind, oid, what in bad_objects(view, segment, detect=self.detect)
            ]
            yield number + 1, segment.entry.objects, segment.entry.entry_bytes, bad


def ids_of_run(view: PoolView, run: PlacedRun) -> bytes:
    """Return the raw ids of a run's objects by position, one after another."""
    size = view.hash_kind.size
    mine = range(run.start, run.start + run.record.objects)
    segments = sorted((s for s in view.segments if s.base in mine), key=lambda s: s.base)
    return b"".join(
        view.use_segment(segment, lambda block: _segment.ids_of(block, size))
        for segment in segments
    )


def wrong_entries(view: PoolView, run: PlacedRun) -> Iterator[Finding]:
    """Return what is wrong with a run's index pieces: entries that lead nowhere, or to another object."""
    size = view.hash_kind.size
    try:
        ids = ids_of_run(view, run)
    except DataLoss:
        return  # a segment is gone, which is a finding of its own
    count = run.record.objects
    seen = bytearray(count)
    whole = True
    for first, ref in run.record.index:
        name = ref.id.hex()
        try:
            piece = view.block(ref, run.root)
            parse_header(piece, kind=BlockKind.INDEX)
            _segment.check_index(piece)
        except DataLoss as error:
            whole = False
            if isinstance(error, BlockCorrupt):
                yield Finding(FindingKind.INDEX, error.message, REPAIR, block=name)
            continue
        entries = _segment.index_entries(piece)
        if not entries or entries[0][0] != int.from_bytes(first, "big"):
            what = "piece begins with another key than the manifest says"
            yield Finding(FindingKind.INDEX, what, REPAIR, block=name)
        nowhere = others = 0
        for low, high, position in entries:
            if position >= count:
                nowhere += 1
                continue
            key = int.from_bytes(ids[position * size : position * size + KEY_BYTES], "big")
            if low <= key <= high:
                seen[position] = 1
            else:
                others += 1
        if nowhere or others:
            what = f"{nowhere} entries point nowhere, {others} to another object"
            yield Finding(FindingKind.INDEX, what, REPAIR, block=name)
    if whole and (lost := seen.count(0)):
        what = f"{lost} of {count} objects have no entry"
        yield Finding(FindingKind.INDEX, what, REPAIR, block=run.record.index[0][1].id.hex())


def wrong_graph(view: PoolView) -> Iterator[Finding]:
    """Return what is wrong with a pool's graph."""
    try:
        view.graph()
    except BlockCorrupt as error:
        yield Finding(FindingKind.INDEX, f"graph: {error}", REPAIR)
    except DataLoss:
        return  # a block is gone, which is a finding of its own


def bad_objects(view: PoolView, segment: PlacedSegment, *, detect: bool = False) -> Iterator[Bad]:
    """Make every object of a segment anew; returns (kind, id, what is wrong) of those that do not give their id.

    With ``detect`` SHA-1 collision attacks as well.
    """
    positions = range(segment.base, segment.base + segment.entry.objects)
    try:
        infos = view.info(positions)
    except DataLoss:
        return
    if segment.entry.flags & ALONE or infos[0].size > view.limits.object_memory_max_bytes:
        batches = [[info] for info in infos]
    else:
        batches = [[]]
        held = 0
        for info in infos:
            if batches[-1] and (
                held + info.size > BATCH_BYTES or len(batches[-1]) == BATCH_OBJECTS
            ):
                batches.append([])
                held = 0
            batches[-1].append(info)
            held += info.size
    at = segment.base
    for batch in batches:
        some = range(at, at + len(batch))
        at = some.stop
        try:
            if len(batch) == 1:
                yield from _one_by_one(view, some, detect=detect)
                continue
            objects = [one.data for one in view.read_positions(some)]
        except ShardgitError:
            yield from _one_by_one(view, some, detect=detect)
            continue
        attacks: list[int] = []
        types = [info.type for info in batch]
        made = object_ids(view.hash_kind, types, objects, 0, attacks if detect else None)
        for info, oid in zip(batch, made, strict=True):
            if oid != info.id:
                yield FindingKind.OBJECT, info.id.hex(), "its bytes give another id"
        for number in attacks:
            yield FindingKind.ATTACK, batch[number].id.hex(), ATTACK


def _one_by_one(view: PoolView, positions: range, *, detect: bool) -> Iterator[Bad]:
    for position in positions:
        (info,) = view.info([position])
        try:
            pieces = view.read_stream(position)
            if detect:
                made, attack = watched_id(info.type, pieces, info.size)
            else:
                made, attack = object_id(info.type, pieces, info.size, view.hash_kind), False
        except ShardgitError as error:
            yield FindingKind.OBJECT, info.id.hex(), f"it cannot be made: {error}"
            continue
        if made != info.id:
            yield FindingKind.OBJECT, info.id.hex(), "its bytes give another id"
        if attack:
            yield FindingKind.ATTACK, info.id.hex(), ATTACK
