"""A clone, taken apart: what explaining.py finds out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the work: its name, and seconds of time and of CPU. CPU of other threads does not count."""

    name: str
    seconds: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class CloneExplained:
    """A clone, taken apart.

    A pack's bytes are those of segments that go ``whole``, as they are stored; of entries ``picked`` out of segments,
    one by one; and of objects that are ``made`` anew as their delta's base does not go with them. ``reach_known``: what
    the refs reach was known before, so that nothing was walked.
    """

    refs: int
    refs_bytes: int
    objects: int
    pool_objects: int
    pack_bytes: int
    whole_segments: int
    whole_bytes: int
    picked_segments: int
    picked_bytes: int
    made_objects: int
    made_bytes: int
    recents: int
    recents_bytes: int
    reach_known: bool
    stages: tuple[Stage, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Time of all stages."""
        return sum(stage.seconds for stage in self.stages)
