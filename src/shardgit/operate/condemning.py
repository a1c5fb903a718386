"""What gc may drop from a pool: what no root reaches, in the runs that are worth to be written anew."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from shardgit import _segment
from shardgit.oid import ObjectId
from shardgit.operate.roots import kept
from shardgit.pool.condemned import run_key, segments_of
from shardgit.pool.manifest import EXTERNAL_BASES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.operate.roots import Roots
    from shardgit.pool.view import PlacedRun, PlacedSegment, PoolView


@dataclass(frozen=True, slots=True)
class Policy:
    """What gc drops: what was unreachable for ``grace_ms``, from runs of which it is ``garbage_min`` or more.

    Runs in which it takes ``garbage_min_bytes`` or more are written anew as well.
    """

    grace_ms: int
    garbage_min: float = 0.1
    garbage_min_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Chosen:
    """A group of consecutive runs to be written anew as one; ``keys`` tell them apart in later manifests."""

    keys: tuple[bytes, ...]
    objects: int  # condemned
    size: int  # about as many bytes


def garbage_of(view: PoolView, roots: Roots) -> list[int]:
    """Return for each run of the manifest the bitset, as a number, of what nothing reaches."""
    keep = int.from_bytes(kept(view, roots), "little")
    return [_rest_of(keep, run) for run in base_runs(view)]


def choose(view: PoolView, garbage: Sequence[int], policy: Policy) -> list[Chosen]:
    """Return what is worth to be written anew, the oldest first; all at once where one block holds the pool."""
    runs = base_runs(view)
    found = []
    for run, bits in zip(runs, garbage, strict=True):
        size = bytes_of(view, run, bits)
        whole = sum(segment.entry.entry_bytes for segment in segments_of(view, run))
        enough = size >= policy.garbage_min * whole or (size >= policy.garbage_min_bytes)
        found.append(
            Chosen((run_key(view, run),), bits.bit_count(), size) if bits and enough else None
        )
    chosen = [one for one in found if one is not None]
    if chosen and is_embedded(view):
        return [
            Chosen(
                tuple(run_key(view, run) for run in runs),
                sum(bits.bit_count() for bits in garbage),
                sum(one.size for one in chosen),
            )
        ]
    return chosen


def condemn(view: PoolView, roots: Roots, keys: set[bytes]) -> dict[bytes, bytes]:
    """Return what may go from the runs with ``keys``, when all other runs stay whole with all that they lead to.

    Each run that is returned will be written anew: one of which nothing may go stays, and its bases with it.
    """
    while True:
        out = _condemned(view, roots, keys)
        if out.keys() == keys or not out:
            return out
        keys = set(out)


def _condemned(view: PoolView, roots: Roots, keys: set[bytes]) -> dict[bytes, bytes]:
    staying: list[range] = []
    segments: list[PlacedSegment] = []
    later: list[int] = []  # bases in newer runs, which go first: none is written today
    runs = [(run, run_key(view, run)) for run in base_runs(view)]
    for run, key in runs:
        mine = segments_of(view, run)
        end = run.start + run.record.objects
        if key in keys:
            later += [at for at in _bases_of(view, mine) if at >= end]
        else:
            staying.append(range(run.start, end))
            segments += mine
    for run in view.recents:
        segments += segments_of(view, run)

    def more() -> Iterator[int]:
        for span in staying:
            yield from span
        yield from _bases_of(view, segments)
        yield from later

    keep = int.from_bytes(kept(view, roots, more()), "little")
    out = {}
    for run, key in runs:
        if key in keys and (bits := _rest_of(keep, run)):
            out[key] = bits.to_bytes((run.record.objects + 7) // 8, "little")
    return out


def _bases_of(view: PoolView, segments: Sequence[PlacedSegment]) -> list[int]:
    """Return the positions of the bases outside of segments that their deltas need."""
    size = view.hash_kind.size
    names: set[ObjectId] = set()
    for segment in segments:
        if segment.entry.flags & EXTERNAL_BASES:
            some = view.use_segment(segment, lambda block: _segment.externals_of(block, size))
            names.update(ObjectId(oid) for oid in some)
    return [at for at in view.positions(sorted(names)) if at >= 0]


def base_runs(view: PoolView) -> list[PlacedRun]:
    """Return the runs of a view's manifest, recents left out."""
    return list(view.runs[: len(view.runs) - len(view.recents)])


def is_embedded(view: PoolView) -> bool:
    """Say whether the manifest's root holds the blocks of its runs."""
    return any(segment.ref.inline for segment in view.manifest.segments)


def _rest_of(keep: int, run: PlacedRun) -> int:
    """Return what a run has and ``keep`` has not, by run-local positions."""
    whole = (1 << run.record.objects) - 1
    return whole & ~(keep >> run.start)


def both_of(one: bytes, other: bytes) -> bytes:
    """Return what both bitsets hold, as long as the first."""
    found = int.from_bytes(one, "little") & int.from_bytes(other, "little")
    return found.to_bytes(len(one), "little")


def bytes_of(view: PoolView, run: PlacedRun, bits: int) -> int:
    """Return how many bytes the entries of the objects in a bitset over a run's positions take."""
    size = 0
    if not bits:
        return 0
    for segment in segments_of(view, run):
        whole = (1 << segment.entry.objects) - 1
        mine = bits >> (segment.base - run.start) & whole
        if mine == whole:
            size += segment.entry.entry_bytes
        elif mine:
            size += view.use_segment(segment, partial(_entries_size, view.hash_kind.size, mine))
    return size


def _entries_size(hash_size: int, bits: int, block: memoryview) -> int:
    size = 0
    for number, byte in enumerate(bits.to_bytes((bits.bit_length() + 7) // 8, "little")):
        for ordinal in range(8 * number, 8 * number + 8) if byte else ():
            if byte >> (ordinal & 7) & 1:
                _, _, start, end = _segment.entry_at(block, hash_size, ordinal)
                size += end - start
    return size
