"""Objects on their way into a pool: resolved and laid out, but seen by nobody until they are committed."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING

from shardgit._fastpack import tree_children
from shardgit._graph import PoolGraph, Walk
from shardgit.errors import DataLoss, LimitExceeded, ObjectCollision
from shardgit.graph.closure import bit
from shardgit.oid import ObjectId, hex_of
from shardgit.pool.grafts import NO_GRAFTS, Grafts
from shardgit.pool.view import late_links
from shardgit.service.resolving import run_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from shardgit._layout import Ingest
    from shardgit.limits import Limits
    from shardgit.oid import HashKind
    from shardgit.pool.view import GitObject, PoolView

# External bases under each other; one more is written whole, so a read visits 17 segments.
# Runs that doubled from 64 KiB to 16 MiB are a chain of 8, and the pushes after them go on with it.
HOPS_MAX = 16
KNOWN_BATCH = 256  # objects compared at once
BASES_BATCH = 64
NOBODY = 255  # hops under a base that will not be there
BATCH_BYTES = 64 << 20  # of objects read at once
MORE_BYTES = 128 << 20  # of objects that may become bases, and that nothing needs
COMMIT, TREE, BLOB, TAG = 1, 2, 3, 4


def resolve_thin(
    ingest: Ingest,
    view: PoolView | None,
    lookup: Callable[[Sequence[ObjectId]], list[int]],
    *,
    threads: int,
    limits: Limits,
    keep: bytes | None = None,
    more: Sequence[int] = (),
) -> None:
    """Resolve all families; deltas may have bases in the pool, where ``lookup`` finds them.

    A delta on an object that ``keep``, a bitset over positions, lacks is laid out whole: its base is about to go.
    ``more`` are positions of objects that may become bases of others later, as far as there is room.

    Errors: MalformedPack when a base is neither in the packs nor found, LimitExceeded when the
    bases are too much to hold.
    """
    asked: set[bytes] = set()
    while True:
        run_all(ingest, threads=threads)
        missing = [ObjectId(oid) for oid in ingest.missing_bases() if oid not in asked]
        asked.update(missing)
        found = [at for at in lookup(missing) if at >= 0] if missing else []
        if view is None or not found:
            break
        sizes = [info.size for info in view.info(found)]
        if ingest.bytes_outside + sum(sizes) > limits.thin_bases_max_bytes:
            raise LimitExceeded(
                "pack is a delta on too much that is here already; push in smaller steps",
                limit_bytes=limits.thin_bases_max_bytes,
            )
        _add_bases(ingest, view, found, sizes, keep)
    if view is not None and more:
        ids = view.ids_at(more)
        fresh = [at for at, oid in zip(more, ids, strict=True) if oid not in asked]
        room = min(MORE_BYTES, limits.thin_bases_max_bytes - ingest.bytes_outside)
        offered: list[int] = []
        sizes = []
        for at, info in zip(fresh, view.info(fresh), strict=True):
            if info.size <= min(room, limits.object_memory_max_bytes):
                room -= info.size
                offered.append(at)
                sizes.append(info.size)
        with suppress(DataLoss):  # nothing needs them
            _add_bases(ingest, view, offered, sizes, keep)
        run_all(ingest, threads=threads)
    ingest.finish()


def _add_bases(
    ingest: Ingest,
    view: PoolView,
    found: Sequence[int],
    sizes: Sequence[int],
    keep: bytes | None,
) -> None:
    """Give objects of the pool to an ingest as bases."""
    for some in _batches(found, sizes, BASES_BATCH):
        far = [
            hops if keep is None or bit(keep, at) else NOBODY
            for at, hops in zip(some, view.hops_at(some), strict=True)
        ]
        for base, hops in zip(view.read_positions(some), far, strict=True):
            ingest.add_base(base.id, base.type, base.data, hops)


def leave_out_known(ingest: Ingest, view: PoolView | None, *, compare: bool) -> list[int]:
    """Leave out what the pool has already; returns its positions.

    An object that the pool has with another size, type or (``compare``) other bytes is an
    ObjectCollision.
    """
    if view is None or not ingest.objects_scanned:
        return []
    size = view.hash_kind.size
    flat = ingest.sorted_ids()
    ids = [ObjectId(flat[at : at + size]) for at in range(0, len(flat), size)]
    known = [(rank, at) for rank, at in enumerate(view.positions(ids)) if at >= 0]
    if not known:
        return []
    positions = [at for _, at in known]
    ranks = bytearray(len(ids))
    infos, hops = view.info(positions), view.hops_at(positions)
    for (rank, _), info, far in zip(known, infos, hops, strict=True):
        if ingest.facts_at(rank) != (info.type, info.size):
            raise ObjectCollision("object exists with other bytes", oid=hex_of(ids[rank]))
        ranks[rank] = min(far, 254) + 1
    if compare:
        ours = ingest.bases_alone()
        pushed = [
            (at, info.size)
            for (rank, at), info in zip(known, infos, strict=True)
            if ids[rank] not in ours
        ]
        _compare(ingest, view, pushed)
    ingest.drop(ranks)
    return positions


def _compare(ingest: Ingest, view: PoolView, known: Sequence[tuple[int, int]]) -> None:
    """Raise ObjectCollision where an id of the packs stands for other bytes in the pool.

    ``known`` are (position, size) of what both have.
    """
    positions, sizes = [at for at, _ in known], [size for _, size in known]
    for some in _batches(positions, sizes, KNOWN_BATCH):
        for held in _held(view, some):
            if ingest.read(ingest.find(held.id)) != held.data:
                raise ObjectCollision("object exists with other bytes", oid=hex_of(held.id))


def _batches(positions: Sequence[int], sizes: Sequence[int], count: int) -> Iterator[list[int]]:
    """Cut positions into batches of up to ``count`` objects, and of BATCH_BYTES where more than one fits."""
    batch: list[int] = []
    held = 0
    for position, size in zip(positions, sizes, strict=True):
        if batch and (len(batch) == count or held + size > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(position)
        held += size
    if batch:
        yield batch


def _held(view: PoolView, positions: Sequence[int]) -> Iterator[GitObject]:
    yield from view.read_positions(positions)


class Incoming:
    """New objects over a pool: one numbering for both. Positions of new objects follow the pool's.

    Without an ingest there is nothing new, and it is the pool alone. ``grafts`` are those of the repository, as the
    view has them where there is one.
    """

    def __init__(
        self,
        ingest: Ingest | None,
        view: PoolView | None,
        kind: HashKind,
        limits: Limits,
        *,
        grafts: Grafts = NO_GRAFTS,
    ) -> None:
        self.grafts = view.grafts if view else grafts
        self.ingest = ingest
        self.view = view
        self.kind = kind
        self.first = view.objects if view else 0
        self.segments = 0
        self.stream = b""
        self.complete = True  # nothing that is new links to what is not there
        self.links: Sequence[
            int
        ] = ()  # positions in the pool that new objects link to, -1 for what it lacks
        self.graph = view.graph() if view else PoolGraph(int(kind))
        if ingest is not None:
            self._place(ingest, limits)

    def _place(self, ingest: Ingest, limits: Limits) -> None:
        self.segments = ingest.layout(
            target=limits.block_target_bytes,
            most=limits.block_max_bytes,
            count_most=limits.segment_objects_max,
            hops_most=HOPS_MAX,
        )
        outside = [ObjectId(oid) for oid in ingest.externals()]
        known = self.view.positions(outside) if self.view else [-1] * len(outside)
        generations: dict[bytes, int] = {
            oid: self.graph.generation_at(position)
            for oid, position in zip(outside, known, strict=True)
            if position >= 0 and self.graph.type_at(position) == COMMIT
        }
        self.links = known
        self.complete = all(position >= 0 for position in known)
        self.stream = ingest.graph(generations)
        if ingest.objects_kept:
            self.graph = self.graph.extended(self.stream, known)
            self._amend()

    def _amend(self) -> None:
        """Cut the repository's grafts among what is new, and put in new parents of what the pool has."""
        cuts = self.commits(self.view.uncut if self.view else self.grafts.ids)
        awaited = self.view.awaited if self.view else {}
        links = late_links(self.graph, awaited, self.positions) if awaited else []
        if cuts or links or self.graph.stale:
            self.graph = self.graph.amended(cuts, links)

    def cut(self, commits: Sequence[int]) -> Incoming:
        """Return the same objects with a graph in which commits have no parents."""
        made = copy(self)
        made.graph = self.graph.amended(commits, ())
        return made

    def commits(self, ids: Iterable[ObjectId]) -> list[int]:
        """Return the positions of those ids that are commits of the pool or new ones."""
        places = self.positions(sorted(ids))
        return [at for at in places if at >= 0 and self.graph.type_at(at) == COMMIT]

    @property
    def objects(self) -> int:
        """New objects."""
        return self.ingest.objects_kept if self.ingest is not None else 0

    def positions(self, ids: Sequence[ObjectId]) -> list[int]:
        """Return positions in the pool or among the new objects, -1 without."""
        old = self.view.positions(ids) if self.view else [-1] * len(ids)
        if self.ingest is None:
            return old
        local = [self.ingest.position(oid) for oid in ids]
        return [
            at if at >= 0 else (self.first + new if new >= 0 else -1)
            for at, new in zip(old, local, strict=True)
        ]

    def position(self, oid: ObjectId) -> int:
        """Return one position, -1 without."""
        return self.positions([oid])[0]

    def reached(self, tips: Sequence[int], have: bytes | None = None) -> tuple[bytes, bool]:
        """Return (bitset of what ``tips`` reach and ``have`` lacks, whether all of it is there)."""
        walk = Walk(self.graph, have)
        walk.mark(tips)
        while waiting := walk.run():
            for at in waiting:
                walk.expand(self.positions([ObjectId(oid) for oid in self._children(at)]))
        return walk.bitset(), not walk.incomplete

    def _children(self, position: int) -> list[bytes]:
        if position >= self.first:
            assert self.ingest is not None
            return self.ingest.children(position - self.first)
        assert self.view is not None
        (tree,) = self.view.read_positions([position])
        return tree_children(tree.data, self.kind.size)

    def peeled(self, oid: ObjectId) -> ObjectId | None:
        """Return what the tag ``oid`` leads to; None when it is no tag, or leads to nothing."""
        position = self.position(oid)
        if position < 0 or self.graph.type_at(position) != TAG:
            return None
        found = self.graph.peel(position)
        return self.id_at(found) if found >= 0 else None

    def id_at(self, position: int) -> ObjectId:
        """Return the id of an object of the pool or a new one."""
        if self.view is not None and position < self.first:
            return self.view.ids_at([position])[0]
        assert self.ingest is not None
        return ObjectId(self.ingest.id_at_position(position - self.first))
