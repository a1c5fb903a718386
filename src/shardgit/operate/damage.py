"""What is lost with blocks that nobody has any more: which objects, and which refs reach them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import _segment
from shardgit.errors import DataLoss
from shardgit.graph.closure import bit, closure
from shardgit.journal.records import RepositoryRecord
from shardgit.operate.findings import shown_repositories

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shardgit.oid import BlockId, PoolId
    from shardgit.operate.naming import Named, Owners
    from shardgit.pool.view import PlacedSegment, PoolView
    from shardgit.service.store import Store

OBJECTS_LISTED = 1_000
REFS_TRIED = 200  # of one repository; a walk each

_DIGITS = 16  # of a key


@dataclass(frozen=True, slots=True)
class Damage:
    """A block that is lost. ``objects`` are ids, or the first digits of each that the index tells; the first of them.

    ``refs`` reach one of these objects or something that cannot be told because of them, as "repository ref".
    """

    block: str
    what: str
    repositories: tuple[str, ...]
    objects: tuple[str, ...] = ()
    object_count: int = 0
    refs: tuple[str, ...] = ()


def damage_of(
    store: Store, lost: Mapping[BlockId, list[Named]], owners: Owners
) -> tuple[Damage, ...]:
    """Return what is lost with each block."""
    found = []
    pools: dict[PoolId, list[BlockId]] = defaultdict(list)
    for block, names in sorted(lost.items()):
        pool = next((one.pool for one in names if one.pool is not None), None)
        if pool is not None:
            pools[pool].append(block)
    segments: dict[BlockId, tuple[PoolView, PlacedSegment]] = {}
    refs: dict[PoolId, tuple[str, ...]] = {}
    for pool, blocks in pools.items():
        try:
            view, here = _segments(store, pool, blocks)
        except DataLoss:
            continue  # not even its manifest can be read
        segments.update((block, (view, segment)) for block, segment in here.items())
        if here:
            refs[pool] = tuple(_refs(store, pool, view, list(here.values())))
    for block, names in sorted(lost.items()):
        repositories = shown_repositories(name for one in names for name in owners.of(one))
        pool = next((one.pool for one in names if one.pool is not None), None)
        objects: list[str] = []
        count = 0
        if block in segments:
            view, segment = segments[block]
            objects = _objects(view, segment)
            count = segment.entry.objects
        found.append(
            Damage(
                block.hex(),
                names[0].what,
                repositories,
                tuple(objects[:OBJECTS_LISTED]),
                count,
                refs.get(pool, ()) if pool is not None and block in segments else (),
            )
        )
    return tuple(found)


def _segments(
    store: Store, pool: PoolId, blocks: list[BlockId]
) -> tuple[PoolView, dict[BlockId, PlacedSegment]]:
    with store.journal.snapshot() as snapshot:
        view = store.pool(snapshot, pool).view
    wanted = set(blocks)
    return view, {
        segment.entry.ref.id: segment for segment in view.segments if segment.entry.ref.id in wanted
    }


def _objects(view: PoolView, segment: PlacedSegment) -> list[str]:
    """Return what the index tells of a lost segment's objects: the first digits of their ids, six or so."""
    found: dict[int, str] = {}
    for run in view.runs:
        local = segment.base - run.start
        if not 0 <= local < run.record.objects:
            continue
        mine = range(local, local + segment.entry.objects)
        for _, ref in run.record.index:
            try:
                piece = view.block(ref, run.root)
                _segment.check_index(piece)
            except DataLoss:
                continue
            for low, high, position in _segment.index_entries(piece):
                if position in mine:
                    found[position] = f"{low:016x}"[
                        : _DIGITS - (-(-(low ^ high).bit_length() // 4))
                    ]
    return [found[position] for position in sorted(found)]


def _refs(store: Store, pool: PoolId, view: PoolView, gone: list[PlacedSegment]) -> Iterator[str]:
    """Return the refs of a pool's repositories that reach an object of lost segments."""
    spans = [range(one.base, one.base + one.entry.objects) for one in gone]
    with store.journal.snapshot() as snapshot:
        records = [RepositoryRecord.decode(row.value) for row in snapshot.range(b"I", b"J")]
        tips: dict[bytes, list[str]] = defaultdict(list)
        for record in records:
            if record.pool != pool:
                continue
            try:
                for tried, ref in enumerate(store.refs.list(snapshot, record)):
                    if ref.target is not None and tried < REFS_TRIED:
                        name = f"{record.name} {ref.name.decode('utf-8', 'replace')}"
                        tips[ref.target].append(name)
            except DataLoss:
                continue
    for tip, names in tips.items():
        try:
            bits = closure(view, view.positions([tip]))  # type: ignore[list-item]
            hit = any(bit(bits, position) for span in spans for position in span)
        except DataLoss:
            hit = True
        if hit:
            yield from names
