"""Which repositories have most to do: counts that fade, of as many names as are worth it."""

from __future__ import annotations

import time

from shardgit.report import Hot

NAMES_MAX = 256
HALF_LIFE_S = 20.0


class Heat:
    """Counts requests and work by repository. Who is new takes the place of the coldest when there are too many."""

    def __init__(self, *, names_max: int = NAMES_MAX) -> None:
        self._names_max = names_max
        self._counts: dict[str, list[float]] = {}  # requests, seconds of work
        self._faded = time.monotonic()

    def add(self, repository: str, work_s: float) -> None:
        """Count a request that has ended."""
        found = self._counts.get(repository)
        if found is None:
            if len(self._counts) >= self._names_max:
                del self._counts[
                    min(self._counts, key=lambda name: tuple(self._counts[name][::-1]))
                ]
            found = self._counts[repository] = [0.0, 0.0]
        found[0] += 1
        found[1] += work_s

    def hottest(self, most: int) -> list[Hot]:
        """Return the repositories with most work, as of now; what was counted before has faded by half each 20 s."""
        now = time.monotonic()
        keep = 0.5 ** ((now - self._faded) / HALF_LIFE_S)
        self._faded = now
        for name, counts in list(self._counts.items()):
            counts[0] *= keep
            counts[1] *= keep
            if counts[0] < 0.01:
                del self._counts[name]
        rows = [Hot(name, round(a, 3), round(b, 4)) for name, (a, b) in self._counts.items()]
        return sorted(rows, key=lambda one: (-one.work_s, -one.requests, one.repository))[:most]
