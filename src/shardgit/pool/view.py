"""A pool at one moment: its manifest, and the recents that no settle has folded into it yet.

Lookups and object reads. Immutable; methods run in the calling thread.
"""

from __future__ import annotations

import threading
import zlib
from array import array
from bisect import bisect_right
from collections import defaultdict
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from blake3 import blake3

from shardgit import _segment
from shardgit._graph import PoolGraph, unpack_stream
from shardgit.blocks.block import HEADER_SIZE, BlockKind, on_its_own, parse_header
from shardgit.errors import BlockCorrupt, DataLoss, LimitExceeded
from shardgit.kept import Kept
from shardgit.limits import DEFAULT, Limits
from shardgit.oid import BlockId, HashKind, ObjectId
from shardgit.pool.finding import find_many
from shardgit.pool.grafts import NO_GRAFTS, Grafts, parents_in
from shardgit.pool.manifest import (
    ALONE,
    EXTERNAL_BASES,
    BlockRef,
    Manifest,
    RunRecord,
    SegmentEntry,
    decode_manifest,
    embedded_block,
    runs_in_order,
)
from shardgit.pool.outside import located, shares

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from shardgit.blocks.interface import BlockStore

T = TypeVar("T")
COMMIT = 1
MANY_IDS = 256  # for each piece of the index: from there on all of it is opened at once
_NONE: array[int] = array("q")
BASES_HELD_BYTES = 128 << 10  # of one pool
EXTERNAL_ROUNDS_MAX = 256  # a chain of bases over that many segments is not written
PIECE_BYTES = 1 << 20
SEGMENT_TRAILER_BYTES = 48
SMALL_BYTES = 16 << 10  # the entries of smaller segments are held, see PoolView.entries
SMALL_HELD_BYTES = 32 << 20  # of them, of all pools of a store


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What an object is: type 1 commit, 2 tree, 3 blob, 4 tag; size in bytes."""

    id: ObjectId
    type: int
    size: int


@dataclass(frozen=True, slots=True)
class GitObject:
    """An object with its bytes."""

    id: ObjectId
    type: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PlacedSegment:
    """A segment, the pool position of its first object, and the manifest root that may embed it."""

    entry: SegmentEntry
    base: int
    root: bytes = field(default=b"", repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class PlacedRun:
    """A run, the pool position of its first object, and the manifest root that may embed its blocks."""

    record: RunRecord
    start: int
    root: bytes = field(default=b"", repr=False, compare=False)


class _Overlay:
    """Positions of the objects of recents, by id; views that grew out of each other share it.

    A view believes an entry only below its own object count. One view may grow out of each in place, whoever comes
    first; others get a copy.
    """

    def __init__(self) -> None:
        self.positions: dict[bytes, int] = {}
        self.objects = 0  # of the longest view
        self._lock = threading.Lock()

    def grown(self, before: int, objects: int) -> _Overlay:
        """Return what a view of ``objects`` that grew out of one of ``before`` may write into: this or a copy."""
        with self._lock:
            if self.objects == before:
                self.objects = objects
                return self
            held = list(self.positions.items())
        made = _Overlay()
        made.positions = {oid: at for oid, at in held if at < before}
        made.objects = objects
        return made


def small_entries() -> Kept:
    """Return what holds the entries of small segments, by their blocks' ids: one for all views of a store."""
    return Kept(SMALL_HELD_BYTES, largest_bytes=SMALL_BYTES)


class PoolView:
    """A pool at one moment. Errors: DataLoss when a block that the manifest names is missing or damaged.

    ``manifest`` leaves recents out; ``runs``, ``segments``, ``objects`` and all methods count them in. ``id`` tells
    views apart: equal ids show equal objects at equal positions, with equal links.

    ``grafts`` are those of the repository that looks at the pool: these commits have no parents in its graph, whatever
    the pool has of them.
    """

    def __init__(
        self,
        blocks: BlockStore,
        hash_kind: HashKind,
        manifest_id: BlockId | None,
        *,
        limits: Limits = DEFAULT,
        small: Kept | None = None,
    ) -> None:
        self.blocks = blocks
        self.limits = limits
        self.hash_kind = hash_kind
        self.manifest_id = manifest_id
        self.last_recent = 0
        self.recents_bytes = 0  # of their journal rows
        self._sound: set[BlockId] = set()
        self._pieces: dict[BlockId, bytes] = {}
        self._outside: dict[BlockId, array[int]] = {}
        self._lock = threading.Lock()
        self._graph: PoolGraph | None = None
        self._awaited: dict[
            int, list[ObjectId]
        ] = {}  # parents of commits of which the pool lacks one
        self.grafts = NO_GRAFTS
        self._cut: tuple[int, ...] = ()  # the grafts that the pool has
        self._uncut: tuple[ObjectId, ...] = ()  # those that it does not have
        self._cut_parents: dict[ObjectId, list[ObjectId]] | None = None
        self._overlay = _Overlay()
        # Pushes on top of each other are deltas on each other: without these each reads a chain of segments, a third of
        # what a small push costs.
        self._bases_held = Kept(BASES_HELD_BYTES, largest_bytes=BASES_HELD_BYTES // 4)
        self._small = small_entries() if small is None else small
        self._spans: tuple[array[int], array[int]] | None = None
        self._recent_runs: tuple[PlacedRun, ...] = ()
        self._recent_segments: list[PlacedSegment] = []  # by position
        self._recent_starts: list[int] = []
        root = b""
        self._plain_id = bytes(manifest_id or bytes(32))
        if manifest_id is None:
            self.manifest = Manifest(hash_kind, 0, 0, (), (), ())
        else:
            (found,) = blocks.get_many_sync([manifest_id])
            if found is None:
                raise DataLoss("manifest block is missing", block=manifest_id.hex())
            root = found
            self.manifest = decode_manifest(root, read=lambda ref: self._use(ref, bytes, b""))
            if self.manifest.hash_kind is not hash_kind:
                raise BlockCorrupt("manifest has another hash kind", block=manifest_id.hex())
        self._root = root
        self.objects = self._base_objects = self._overlay.objects = self.manifest.objects
        starts = runs_in_order(self.manifest.runs)
        self.runs = tuple(
            PlacedRun(run, start, root)
            for run, start in zip(self.manifest.runs, starts, strict=True)
        )
        self._indexed = tuple(run for run in self.runs if run.record.index)
        self.segments = _placed(self.manifest, self.runs)  # in clone order
        self._by_position = sorted(self.segments, key=lambda segment: segment.base)
        self._starts = [segment.base for segment in self._by_position]

    @property
    def id(self) -> bytes:
        """Tell this view from others."""
        return blake3(self._plain_id + self.grafts.key).digest() if self.grafts else self._plain_id

    def with_grafts(self, grafts: Grafts) -> PoolView:
        """Return the view of a repository with such grafts; this one stays as it is."""
        if grafts.key == self.grafts.key:
            return self
        made = copy(self)
        made._graft(grafts)  # noqa: SLF001
        return made

    def _graft(self, grafts: Grafts) -> None:
        self.grafts = grafts
        self._graph = None
        self._awaited = {}
        self._cut = ()
        self._uncut = tuple(grafts.ids)
        self._cut_parents = None
        self._lock = threading.Lock()

    def extended(
        self,
        serial: int,
        root: bytes,
        *,
        graph: PoolGraph | None = None,
        made: Manifest | None = None,
    ) -> PoolView:
        """Return a view with one recent more, whose row holds ``root``; this one stays as it is.

        Costs by the recent, not by the pool. A recent holds no object that was there before: whoever
        commits one sees to that. ``graph`` is this view's with
        the recent's run, and ``made`` the manifest in ``root``, where this process has just made them:
        what is embedded there is not looked at again.
        """
        view = copy(self)
        view._extend(serial, root, graph, made)  # noqa: SLF001
        return view

    def _extend(
        self, serial: int, root: bytes, given: PoolGraph | None, made: Manifest | None
    ) -> None:
        """Take one recent more; only a fresh copy does that, and what it shares with others it does not change."""
        if made is not None:
            self._sound.update(entry.ref.id for entry in made.segments if entry.ref.inline)
        manifest = made or decode_manifest(root, read=lambda ref: self._use(ref, bytes, b""))
        if len(manifest.runs) != 1 or manifest.hash_kind is not self.hash_kind:
            raise BlockCorrupt("recent is not one run of its pool", serial=serial)
        before = self.objects
        self._outside = dict(self._outside)  # another view that grew here has other recents
        run = PlacedRun(manifest.runs[0], before, root)
        segments = _placed(manifest, (run,))
        placed = sorted(segments, key=lambda segment: segment.base)
        self._plain_id = blake3(self._plain_id + blake3(root).digest()).digest()
        self.last_recent = serial
        self.recents_bytes += len(root)
        self.objects = before + run.record.objects
        self.runs = (*self.runs, run)
        self.segments = [*segments, *self.segments]
        self._spans = None
        self._recent_runs = (*self._recent_runs, run)
        self._recent_segments = [*self._recent_segments, *placed]
        self._recent_starts = [*self._recent_starts, *(segment.base for segment in placed)]
        self._lock = threading.Lock()
        if self._uncut:
            self._cut_parents = None
        graph, self._graph = self._graph, None
        self._overlay = self._overlay.grown(before, self.objects)
        if run.record.index:
            self._indexed = (*self._indexed, run)
        else:
            size = self.hash_kind.size
            for segment in placed:
                flat = self.use_segment(segment, lambda view: _segment.ids_of(view, size))
                for number in range(segment.entry.objects):
                    oid = flat[number * size : (number + 1) * size]
                    self._overlay.positions[oid] = segment.base + number
        if given is not None and given.objects == self.objects and not given.lacking:
            # Who made it has cut what is new in it.
            self._graph, self._awaited = given, {}
            self._find_cuts(given, self._uncut)
        elif graph is not None:
            self._graph = self._amended(self._with_run(graph, run), before)

    @property
    def recents(self) -> tuple[PlacedRun, ...]:
        """The runs that no settle has folded into the manifest yet, by rising serial."""
        return self._recent_runs

    # ---- blocks ----

    def _use(self, ref: BlockRef, job: Callable[[memoryview], T], root: bytes) -> T:
        if ref.inline:
            return job(memoryview(embedded_block(root, ref, check=ref.id not in self._sound)))
        found = self.blocks.use(ref.id, lambda view: (job(view),))
        if found is None:
            raise DataLoss("block is missing", block=ref.id.hex())
        return found[0]

    def block(self, ref: BlockRef, root: bytes) -> bytes:
        """Return a copy of a block that a manifest names; ``root`` is the one that may embed it."""
        return self._use(ref, bytes, root)

    def use_segment(self, segment: PlacedSegment, job: Callable[[memoryview], T]) -> T:
        """Run ``job`` over a segment's block, which is checked the first time."""
        ref = segment.entry.ref

        def checked(view: memoryview) -> T:
            if ref.id not in self._sound:
                parse_header(view, kind=BlockKind.SEGMENT)
                if _segment.check(view, self.hash_kind.size) != segment.entry.objects:
                    raise BlockCorrupt(
                        "segment has another count than its manifest says", block=ref.id.hex()
                    )
                self._sound.add(ref.id)
            return job(view)

        return self._use(ref, checked, segment.root)

    def entries(self, segment: PlacedSegment) -> bytes:
        """Return the entries of a segment that does not stand alone. Small ones are held.

        A clone between two settles takes hundreds of them, and opening each costs more than sending it.
        """
        ref = segment.entry.ref
        found = self._small.get(ref.id)
        if found is None:
            found = self.use_segment(segment, self._entries_of)
            self._small.put(ref.id, found)
        return found

    def _entries_of(self, view: memoryview) -> bytes:
        start, end = _segment.entries_span(view, self.hash_kind.size)
        return bytes(view[start:end])

    def outside(self, segment: PlacedSegment) -> array[int]:
        """Return the positions of the bases that a segment has in others, one for each REF_DELTA entry in its order.

        -1 for one that the pool lacks.
        """
        if not segment.entry.flags & EXTERNAL_BASES:
            return _NONE
        ref = segment.entry.ref
        found = self._outside.get(ref.id)
        if found is None:
            names = self.use_segment(
                segment, lambda view: _segment.externals_of(view, self.hash_kind.size)
            )
            found = array("q", self.positions([ObjectId(name) for name in names]))
            self._outside[ref.id] = found
        return found

    def part_ids(self, segment: PlacedSegment) -> list[BlockId]:
        """Return the part blocks of a segment that stands alone, in order."""
        names = self.use_segment(segment, lambda view: _segment.part_ids(view, self.hash_kind.size))
        return [BlockId(name) for name in names]

    def use_part(self, part: BlockId, job: Callable[[memoryview], T]) -> T:
        """Run ``job`` over a part block's payload."""

        def checked(view: memoryview) -> T:
            parse_header(view, kind=BlockKind.PART)
            return job(view[HEADER_SIZE:])

        return self._use(BlockRef(part, 0), checked, b"")

    def parts(self, segment: PlacedSegment) -> Iterator[bytes]:
        """Return the payloads of a segment's part blocks, in order."""
        parts = self.part_ids(segment)
        with self.blocks.prefetch(parts):
            for part in parts:
                yield self.use_part(part, bytes)

    # ---- lookups ----

    def piece(self, ref: BlockRef, root: bytes) -> bytes:
        """Return an index piece, which is held."""
        found = self._pieces.get(ref.id)
        if found is None:
            found = self._use(ref, bytes, root)
            parse_header(found, kind=BlockKind.INDEX)
            _segment.check_index(found)
            self._pieces[ref.id] = found
        return found

    def _read_ahead(self, pieces: Sequence[BlockRef], root: bytes) -> None:
        """Hold index pieces that will be wanted, read several at once where they are far."""
        if len(pieces) > 1:
            with self.blocks.prefetch([ref.id for ref in pieces if not ref.inline]):
                for ref in pieces:
                    self.piece(ref, root)

    def positions(self, ids: Sequence[ObjectId]) -> list[int]:
        """Return the pool position of each id, -1 where the pool has no such object."""
        out = [-1] * len(ids)
        recent = self._overlay.positions
        if recent:
            for number, oid in enumerate(ids):
                if 0 <= (at := recent.get(oid, -1)) < self.objects:
                    out[number] = at
        waiting = [number for number, at in enumerate(out) if at < 0]
        if not waiting:
            return out
        flat = b"".join(ids)
        if len(flat) != len(ids) * self.hash_kind.size:
            return [
                self.positions([one])[0] if len(one) == self.hash_kind.size else -1 for one in ids
            ]
        if len(waiting) >= MANY_IDS * max(1, sum(len(run.record.index) for run in self._indexed)):
            places = array("q", out)
            unsure = find_many(self, self._indexed, flat, places)
            out = places.tolist()
            waiting = [number for number in unsure if out[number] < 0]
        for placed in reversed(self._indexed):
            if not waiting:
                break
            self._find_each(placed, ids, flat, waiting, out)
            waiting = [number for number in waiting if out[number] < 0]
        return out

    def _find_each(
        self,
        placed: PlacedRun,
        ids: Sequence[ObjectId],
        flat: bytes,
        waiting: list[int],
        out: list[int],
    ) -> None:
        """Look the ids whose numbers are ``waiting`` up in one run."""
        run, start = placed.record, placed.start
        firsts = [key for key, _ in run.index]
        by_piece: dict[int, array[int]] = defaultdict(lambda: array("q"))
        for number in waiting:
            piece = bisect_right(firsts, ids[number][:8]) - 1
            # Equal keys may straddle two pieces: the earlier one is asked too.
            if piece >= 0:
                by_piece[piece].append(number)
                if piece and firsts[piece] == ids[number][:8]:
                    by_piece[piece - 1].append(number)
        candidates: list[tuple[int, int]] = []
        refs = {piece: run.index[piece][1] for piece in by_piece}
        self._read_ahead([ref for ref in refs.values() if ref.id not in self._pieces], placed.root)
        for piece, which in by_piece.items():
            data = self.piece(refs[piece], placed.root)
            found = array("q", bytes(8 * len(which)))
            _segment.index_find(data, flat, self.hash_kind.size, which, found)
            for number, local in zip(which, found, strict=True):
                if local >= 0:
                    candidates.append((start + local, number))
                elif local < -1:
                    key = int.from_bytes(ids[number][:8], "big")
                    candidates += [
                        (start + row, number)
                        for row in _segment.index_rows(data, key, key, 1 << 16)
                    ]
        self._confirm(candidates, ids, out)

    def _confirm(
        self, candidates: list[tuple[int, int]], ids: Sequence[ObjectId], out: list[int]
    ) -> None:
        """Keep the candidates (position, number) whose whole id is the one asked for."""
        candidates.sort()
        for segment, some in self._grouped(candidates, key=lambda entry: entry[0]):
            ordinals = [position - segment.base for position, _ in some]
            found = self.use_segment(
                segment,
                lambda view, o=ordinals: _segment.ids_at(view, self.hash_kind.size, o),  # type: ignore[misc]
            )
            for (position, number), oid in zip(some, found, strict=True):
                if oid == ids[number]:
                    out[number] = position

    def _grouped(
        self, items: Sequence[T], *, key: Callable[[T], int]
    ) -> Iterator[tuple[PlacedSegment, list[T]]]:
        """Group items that are sorted by position by their segment."""
        at, count = 0, len(items)
        while at < count:
            segment = self.segment_at(key(items[at]))
            end = segment.base + segment.entry.objects
            stop = at + 1
            while stop < count and key(items[stop]) < end:
                stop += 1
            yield segment, list(items[at:stop])
            at = stop

    def spans(self) -> tuple[array[int], array[int]]:
        """Return (the first positions, the numbers of objects) of ``segments``, in their order."""
        if self._spans is None:
            firsts = array("q", (segment.base for segment in self.segments))
            sizes = array("q", (segment.entry.objects for segment in self.segments))
            self._spans = firsts, sizes
        return self._spans

    def segment_at(self, position: int) -> PlacedSegment:
        """Return the segment that holds a position; IndexError outside the pool."""
        if not 0 <= position < self.objects:
            raise IndexError(position)
        if position < self._base_objects:
            return self._by_position[bisect_right(self._starts, position) - 1]
        return self._recent_segments[bisect_right(self._recent_starts, position) - 1]

    def ids_at(self, positions: Sequence[int]) -> list[ObjectId]:
        """Return the ids at pool positions."""
        return [info.id for info in self.info(positions)]

    def info(self, positions: Sequence[int]) -> list[ObjectInfo]:
        """Return id, type and size at pool positions."""
        out: dict[int, ObjectInfo] = {}
        size = self.hash_kind.size
        for segment, some in self._grouped(sorted(set(positions)), key=lambda position: position):
            ordinals = [position - segment.base for position in some]

            def look(
                view: memoryview, ordinals: list[int] = ordinals
            ) -> tuple[list[bytes], list[int]]:
                return _segment.ids_at(view, size, ordinals), _segment.sizes_at(
                    view, size, ordinals
                )

            for position, oid, length in zip(some, *self.use_segment(segment, look), strict=True):
                out[position] = ObjectInfo(ObjectId(oid), segment.entry.type, length)
        return [out[position] for position in positions]

    def find_prefix(
        self, prefix: str, among: Callable[[int], bool], *, limit: int = 16
    ) -> list[ObjectId]:
        """Return up to ``limit`` ids whose hex starts with ``prefix`` (4 digits or more), of objects ``among``.

        That says of a position whether it counts. What does not count has no part in the limit either.
        """
        low = int(prefix[:16].ljust(16, "0"), 16)
        high = int(prefix[:16].ljust(16, "f"), 16)
        found: list[ObjectId] = []
        for oid, at in list(self._overlay.positions.items()):
            if at < self.objects and oid.hex().startswith(prefix) and among(at):
                found.append(ObjectId(oid))
        for run in self._indexed:
            for key, ref in run.record.index:
                if int.from_bytes(key, "big") <= high:
                    rows = _segment.index_rows(self.piece(ref, run.root), low, high, 4096)
                    places = [run.start + row for row in rows if among(run.start + row)]
                    ids = self.ids_at(places)
                    found += [oid for oid in ids if oid.hex().startswith(prefix)]
            if len(found) >= limit:
                break
        return sorted(set(found))[:limit]

    # ---- objects ----

    def read(self, ids: Sequence[ObjectId]) -> list[GitObject | None]:
        """Return each object, None where the pool has none."""
        positions = self.positions(ids)
        held = iter(self.read_positions([position for position in positions if position >= 0]))
        return [next(held) if position >= 0 else None for position in positions]

    def read_positions(
        self, positions: Sequence[int], *, rounds: int = EXTERNAL_ROUNDS_MAX
    ) -> list[GitObject]:
        """Return the objects at pool positions."""
        groups = list(self._grouped(sorted(set(positions)), key=lambda position: position))
        refs = [segment.entry.ref for segment, _ in groups] if len(groups) > 1 else ()
        out: dict[int, GitObject] = {}
        with self.blocks.prefetch([ref.id for ref in refs if not ref.inline]):
            for segment, some in groups:
                out.update(self._read_some(segment, some, rounds))
        return [out[position] for position in positions]

    def _read_some(
        self, segment: PlacedSegment, some: Sequence[int], rounds: int
    ) -> dict[int, GitObject]:
        """Return the objects at positions of one segment."""
        if segment.entry.flags & ALONE:
            info = self.info([segment.base])[0]
            data = b"".join(self.read_stream(segment.base))
            return {segment.base: GitObject(info.id, info.type, data)}
        size = self.hash_kind.size
        ordinals = [position - segment.base for position in some]

        def decode(view: memoryview) -> tuple[list[bytes], list[bytes | None], list[bytes]]:
            return (
                _segment.ids_at(view, size, ordinals),
                *_segment.decode_many(view, size, ordinals),
            )

        ids, objects, missing = self.use_segment(segment, decode)
        if missing:
            self._decode_rest(segment, ordinals, objects, missing, rounds)
        out: dict[int, GitObject] = {}
        for position, oid, data_or_none in zip(some, ids, objects, strict=True):
            if data_or_none is None:
                raise BlockCorrupt("object has no base", oid=oid.hex())
            out[position] = GitObject(ObjectId(oid), segment.entry.type, data_or_none)
        return out

    def _decode_rest(
        self,
        segment: PlacedSegment,
        ordinals: Sequence[int],
        objects: list[bytes | None],
        missing: Sequence[bytes],
        rounds: int,
    ) -> None:
        """Put those objects of a segment in their places that are None for want of the bases that are missing."""
        if rounds == 0:
            raise BlockCorrupt(
                "chain of external bases is too long", block=segment.entry.ref.id.hex()
            )
        for share in self.base_shares(missing):
            bases = self.bases(share, rounds=rounds)
            waiting = [number for number, data in enumerate(objects) if data is None]
            wanted = [ordinals[number] for number in waiting]

            def decode(
                view: memoryview, wanted: list[int] = wanted, bases: dict[bytes, bytes] = bases
            ) -> list[bytes | None]:
                return _segment.decode_many(view, self.hash_kind.size, wanted, bases)[0]

            for number, data in zip(waiting, self.use_segment(segment, decode), strict=True):
                objects[number] = data

    def base_shares(self, ids: Sequence[bytes]) -> list[dict[bytes, int]]:
        """Cut bases in other segments into what ``bases`` may be asked for at once. Errors: DataLoss as there.

        Those that are held, and a single one, are not looked for: their positions are -1.
        """
        if len(ids) == 1 or len(self._bases_held.get_many(ids)) == len(ids):
            return [dict.fromkeys(ids, -1)]
        return shares(self, ids)

    def bases(
        self, places: Mapping[bytes, int], *, rounds: int = EXTERNAL_ROUNDS_MAX
    ) -> dict[bytes, bytes]:
        """Return the bytes of bases in other segments by id. Errors: DataLoss where the pool has not all.

        ``places`` are their positions, -1 where they are to be looked for.
        """
        held = self._bases_held.get_many(places)
        waiting = {oid: at for oid, at in places.items() if oid not in held}
        if not waiting:
            return held
        if -1 in waiting.values():
            waiting = located(self, waiting)
        bases = self.read_positions([*waiting.values()], rounds=rounds - 1)
        found: dict[bytes, bytes] = {base.id: base.data for base in bases}
        for oid, data in found.items():
            self._bases_held.put(oid, data)
        return held | found

    def read_stream(self, position: int) -> Iterator[bytes]:
        """Return an object's bytes in pieces of about 1 MiB; one that is no delta is never held whole."""
        segment = self.segment_at(position)
        (info,) = self.info([position])
        if segment.entry.flags & ALONE:
            yield from self._inflate(_behind_header(self.parts(segment)), info)
            return
        ordinal = position - segment.base

        def cut(view: memoryview) -> bytes | None:
            kind, _, start, end = _segment.entry_at(view, self.hash_kind.size, ordinal)
            return bytes(view[start:end]) if kind <= 4 else None

        body = self.use_segment(segment, cut)
        if body is not None:
            yield from self._inflate(iter([body]), info)
            return
        if info.size > self.limits.object_size_max_bytes:
            raise LimitExceeded("object is over the size limit", size=info.size)
        data = self.read_positions([position])[0].data
        for at in range(0, len(data), PIECE_BYTES):
            yield data[at : at + PIECE_BYTES]

    def _inflate(self, source: Iterator[bytes], info: ObjectInfo) -> Iterator[bytes]:
        inflate = zlib.decompressobj()
        done = 0
        try:
            for piece in source:
                waiting = piece
                while waiting and not inflate.eof:
                    out = inflate.decompress(waiting, PIECE_BYTES)
                    waiting = inflate.unconsumed_tail
                    done += len(out)
                    if done > info.size:
                        raise BlockCorrupt(
                            "stored object is longer than its size", oid=info.id.hex()
                        )
                    if out:
                        yield out
        except zlib.error as cause:
            raise BlockCorrupt("stored object does not inflate", oid=info.id.hex()) from cause
        if not inflate.eof or done != info.size:
            raise BlockCorrupt("stored object is shorter than its size", oid=info.id.hex())

    # ---- graph ----

    def graph(self) -> PoolGraph:
        """Return the pool's graph, built at the first call; it is shared and must not be added to."""
        with self._lock:
            if self._graph is None:
                graph = PoolGraph(int(self.hash_kind))
                pieces = (ref for run in self.runs for ref in run.record.graph)
                with self.blocks.prefetch([ref.id for ref in pieces if not ref.inline]):
                    for run in self.runs:
                        graph = self._with_run(graph, run)
                if graph.objects != self.objects:
                    raise BlockCorrupt(
                        "graph has another object count than the pool", block=self.id.hex()
                    )
                self._graph = self._amended(graph, 0)
            return self._graph

    def _find_cuts(self, graph: PoolGraph, grafts: Sequence[ObjectId]) -> list[int]:
        """Return the commits of ``grafts`` that the pool has, and note which it has and which not."""
        places = self.positions(grafts)
        found = [at for at in places if at >= 0 and graph.type_at(at) == COMMIT]
        self._cut = (*self._cut, *found)
        self._uncut = tuple(oid for oid, at in zip(grafts, places, strict=True) if at < 0)
        return found

    @property
    def cut(self) -> Sequence[int]:
        """The grafts that the pool has: commits at which history ends."""
        self.graph()
        return self._cut

    @property
    def uncut(self) -> Sequence[ObjectId]:
        """The grafts that the pool does not have: what brings them cuts them."""
        self.graph()
        return self._uncut

    def cut_parents(self) -> dict[ObjectId, list[ObjectId]]:
        """Return the grafts that the pool has, each with the parents that its bytes name."""
        if self._cut_parents is None:
            found = self.read(sorted(self.grafts.ids))
            self._cut_parents = {
                one.id: parents_in(one.data, self.hash_kind)
                for one in found
                if one is not None and one.type == COMMIT
            }
        return self._cut_parents

    @property
    def awaited(self) -> dict[int, list[ObjectId]]:
        """The commits with parents that the pool lacks, and all parents of each; those that are grafted left out."""
        self.graph()
        return self._awaited

    def _amended(self, graph: PoolGraph, start: int) -> PoolGraph:
        """Cut the grafts from position ``start`` on, and put in parents that came after their children.

        A shallow repository's commits may be in the pool long before a deeper sibling brings what lies behind them.
        """
        if not start:
            self._cut = ()
        grafts = self._uncut if start else tuple(sorted(self.grafts.ids))
        cuts = self._find_cuts(graph, grafts)
        awaited = dict(self._awaited) if start else {}
        if graph.lacking:
            cut = set(cuts)
            fresh = [at for at in graph.lacking_commits(start) if at not in cut]
            for at, commit in zip(fresh, self.read_positions(fresh), strict=True):
                awaited[at] = parents_in(commit.data, self.hash_kind)
        links = late_links(graph, awaited, self.positions) if awaited else []
        if cuts or links or graph.stale:
            graph = graph.amended(cuts, links)
        self._awaited = {at: ids for at, ids in awaited.items() if -1 in graph.parents_at(at)}
        return graph

    def _with_run(self, graph: PoolGraph, run: PlacedRun) -> PoolGraph:
        stream = unpack_stream(b"".join(self._graph_blocks(run)))
        outside = PoolGraph.externals_of(stream, int(self.hash_kind))
        # What a link leads to was there before the run, so later runs need not be asked.
        return graph.extended(stream, self.positions([ObjectId(oid) for oid in outside]))

    def hops_at(self, positions: Sequence[int]) -> list[int]:
        """Return the longest chain of external bases in the segment that holds each position."""
        known: dict[int, int] = {}
        out = []
        for position in positions:
            segment = self.segment_at(position)
            if not segment.entry.flags & EXTERNAL_BASES:
                out.append(0)
                continue
            if segment.base not in known:
                known[segment.base] = self.use_segment(segment, _hops_of)
            out.append(known[segment.base])
        return out

    def unembedded(
        self,
        manifest: Manifest,
        put: Callable[[BlockId, bytes], None],
        *,
        root: bytes | None = None,
    ) -> Manifest:
        """Return ``manifest`` with the blocks that a root embeds, this view's if none is given, as blocks of their own.

        They are given to ``put``.
        """
        whole = self._root if root is None else root
        known: dict[BlockRef, BlockRef] = {}

        def out(ref: BlockRef) -> BlockRef:
            if not ref.inline:
                return ref
            if ref not in known:
                made, data = on_its_own(ref.id, embedded_block(whole, ref))
                put(made, data)
                known[ref] = BlockRef(made, ref.length)
            return known[ref]

        runs = tuple(
            replace(
                run,
                index=tuple((key, out(ref)) for key, ref in run.index),
                graph=tuple(out(r) for r in run.graph),
            )
            for run in manifest.runs
        )
        segments = tuple(replace(segment, ref=out(segment.ref)) for segment in manifest.segments)
        return replace(
            manifest,
            runs=runs,
            segments=segments,
            bitmaps=tuple(out(ref) for ref in manifest.bitmaps),
        )

    def _graph_blocks(self, run: PlacedRun) -> Iterator[bytes]:
        for ref in run.record.graph:
            data = self._use(ref, bytes, run.root)
            parse_header(data, kind=BlockKind.GRAPH)
            yield data[HEADER_SIZE:]


def late_links(
    graph: PoolGraph,
    awaited: dict[int, list[ObjectId]],
    positions: Callable[[Sequence[ObjectId]], list[int]],
) -> list[tuple[int, list[int]]]:
    """Return (commit, all its parents' positions) of those of ``awaited`` that lacked a parent which is there now."""
    flat = [oid for ids in awaited.values() for oid in ids]
    place = dict(zip(flat, positions(flat), strict=True))
    found = []
    for at, ids in awaited.items():
        places = [place[oid] for oid in ids]
        if places != graph.parents_at(at):
            found.append((at, places))
    return found


def _placed(manifest: Manifest, runs: Sequence[PlacedRun]) -> list[PlacedSegment]:
    """Return a manifest's segments in clone order, with their places in the pool."""
    by_serial = {entry.serial: entry for entry in manifest.segments}
    places: dict[int, PlacedSegment] = {}
    for run in runs:
        at = run.start
        record = run.record
        for serial in range(record.first_serial, record.first_serial + record.segments):
            places[serial] = PlacedSegment(by_serial[serial], at, run.root)
            at += by_serial[serial].objects
        if at - run.start != record.objects:
            raise BlockCorrupt(
                "run has another object count than its segments", first_serial=record.first_serial
            )
    return [places[entry.serial] for entry in manifest.segments]


def _hops_of(view: memoryview) -> int:
    return view[len(view) - SEGMENT_TRAILER_BYTES + 22]


def _behind_header(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Pass an entry on without its type-and-size header, which stands whole in the first part."""
    first = next(parts, b"")
    at = 0
    while at < len(first) and first[at] & 0x80:
        at += 1
    yield first[at + 1 :]
    yield from parts
