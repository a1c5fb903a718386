"""What a worker's store keeps and has waiting, looked at every few seconds: no request pays for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit import metrics

if TYPE_CHECKING:
    from shardgit.kept import Looked
    from shardgit.service.fetch import FetchService
    from shardgit.service.store import Store


class Meters:
    """Tells metrics what has changed since it looked last."""

    def __init__(self, store: Store, fetches: FetchService) -> None:
        self._store = store
        self._fetches = fetches
        self._told: dict[str, tuple[int, int]] = {}  # hits and misses by cache

    def look(self) -> None:
        """Look at all of it, once."""
        store = self._store
        caches = store.caches() | store.journal.caches() | self._fetches.caches()
        for name, cache in caches.items():
            self._tell(name, cache)
        waiting, behind = store.workers.waiting()
        metrics.QUEUE_JOBS.labels("threads").set(waiting)
        metrics.QUEUE_JOBS.labels("background").set(behind)
        metrics.QUEUE_JOBS.labels("journal").set(store.journal.waiting())
        metrics.QUEUE_WAIT.set(store.workers.waited_s())
        busy = store.workers.busy
        metrics.THREADS.labels("busy").set(busy)
        metrics.THREADS.labels("idle").set(store.workers.threads - busy)

    def _tell(self, name: str, cache: Looked) -> None:
        now = (cache.hits, cache.misses)
        before = self._told.get(name, (0, 0))
        self._told[name] = now
        for outcome, count in zip(("hit", "miss"), map(int.__sub__, now, before), strict=True):
            metrics.CACHE_READS.labels(name, outcome).inc(count)
        metrics.CACHE_BYTES.labels(name).set(cache.used_bytes)
