"""Verify: every object of a repository is made, its id computed and compared, all links followed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import DataLoss
from shardgit.objects import object_id
from shardgit.pool.manifest import ALONE
from shardgit.progress import Progress, Report, silent

if TYPE_CHECKING:
    from shardgit.pool.view import PlacedSegment, PoolView
    from shardgit.service.store import Store

BATCH = 256


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was verified; ``bad`` are the ids whose bytes give another id or none."""

    repository: str
    objects: int
    segments: int
    refs: int
    bad: tuple[str, ...]
    seconds: float


def verify_repository(store: Store, name: str, *, progress: Report = silent) -> VerifyReport:
    """Verify one repository's pool and that its refs reach only what is there.

    Errors: DataLoss when blocks are missing, or a ref or an object links to what the pool lacks.
    """
    begun = time.monotonic()
    with store.journal.snapshot() as snapshot:
        state = store.state(snapshot, name)
        view = store.view(state.pool)
        refs = list(store.refs.list(snapshot, state.record))
        reach = store.reach_of(snapshot, state)
    reach.bits()  # DataLoss when a link leads to what the pool lacks
    bad: list[str] = []
    segments = view.segments if view else []
    if view is not None:
        lost = [
            ref for ref in refs if ref.target is not None and view.positions([ref.target])[0] < 0
        ]
        if lost:
            raise DataLoss(
                "a ref names an object that the pool lacks",
                ref=lost[0].name.decode("utf-8", "replace"),
            )
        done = 0
        for segment in segments:
            bad += _bad_in(view, segment)
            done += segment.entry.objects
            progress(Progress("verifying objects", done, view.objects, "objects"))
    elif any(ref.target is not None for ref in refs):
        raise DataLoss("repository has refs and no objects", repository=name)
    return VerifyReport(
        name,
        view.objects if view else 0,
        len(segments),
        len(refs),
        tuple(bad),
        time.monotonic() - begun,
    )


def _bad_in(view: PoolView, segment: PlacedSegment) -> list[str]:
    """Return the ids in a segment whose objects do not give them, and of those whose index row is off."""
    kind = view.hash_kind
    positions = list(range(segment.base, segment.base + segment.entry.objects))
    bad: list[str] = []
    if segment.entry.flags & ALONE:
        (info,) = view.info(positions)
        if object_id(info.type, view.read_stream(segment.base), info.size, kind) != info.id:
            bad.append(info.id.hex())
        return bad
    for at in range(0, len(positions), BATCH):
        some = positions[at : at + BATCH]
        found = view.read_positions(some)
        for position, one, indexed in zip(
            some, found, view.positions([o.id for o in found]), strict=True
        ):
            if (
                object_id(one.type, [one.data], len(one.data), kind) != one.id
                or indexed != position
            ):
                bad.append(one.id.hex())
    return bad
