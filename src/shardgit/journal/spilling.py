"""Large values of commits that wait together go into one bundle, before any of these commits is sent."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit import clock, metrics, telemetry
from shardgit.journal.bundles import BUNDLE_ID_BYTES
from shardgit.journal.etcd_rows import Reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.journal.bundle_cache import BundleCache
    from shardgit.journal.bundles import Bundles
    from shardgit.journal.etcd_commit import Commit

BUNDLE_BYTES = 8 << 20  # of one bundle, from where on no more commits are taken into it
GROUP = 24  # commits that one bundle is to serve, where so many come
CROWDS = 4  # bundles that tell how many come at once
AWAY_S = 1.0  # that a bundle took to fail, until all who wait fail with it
# That the first of a group waits for the last when GROUP are expected; in proportion for fewer. So groups grow to
# GROUP where more than GROUP / WINDOW_S commits come a second, and shrink to one where fewer do.
WINDOW_S = 0.15


class Spiller:
    """A thread that puts bundles: what comes while one is put goes into the next.

    When others were there with the last bundles, a group waits a moment for as many: all of them pay less for S3 and
    its CPU. Whoever is alone does not wait.
    """

    def __init__(
        self,
        bundles: Bundles,
        cache: BundleCache,
        forward: Callable[[Commit], None],
        fail: Callable[[Commit, BaseException], None],
    ) -> None:
        self._bundles = bundles
        self._cache = cache
        self._forward = forward
        self._fail = fail
        self._waiting: queue.SimpleQueue[Commit | None] = queue.SimpleQueue()
        self._crowds = deque([1], maxlen=CROWDS)
        self._thread = threading.Thread(target=self._run, name="journal-spill", daemon=True)
        self._thread.start()

    def take(self, commit: Commit) -> None:
        """Put a commit's large values, then forward it, or say why not."""
        self._waiting.put(commit)

    def close(self) -> None:
        """Finish what waits."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            group, is_last = self._with_more(first)
            del first
            try:
                self._put(group)
            except Exception as error:  # this thread must not end: who waits would wait for ever
                telemetry.log().error("bundle_not_made", exc_info=error)
                for commit in group:
                    if not commit.references:
                        self._fail(commit, error)
            del group  # what waits leads to a whole push
            if is_last:
                return

    def _with_more(self, first: Commit) -> tuple[list[Commit], bool]:
        group, size = [first], _bytes_of(first)
        wanted = min(max(self._crowds), GROUP)
        end = clock.monotonic() + (WINDOW_S * wanted / GROUP if wanted > 1 else 0.0)
        while size < BUNDLE_BYTES:
            left = end - clock.monotonic() if len(group) < wanted else 0.0
            try:
                more = self._waiting.get(left > 0, max(left, 0.0))
            except queue.Empty:
                break
            if more is None:
                return group, True
            group.append(more)
            size += _bytes_of(more)
        return group, False

    def _put(self, group: list[Commit]) -> None:
        bundle = os.urandom(BUNDLE_ID_BYTES)
        parts: list[bytes] = []
        found: list[dict[bytes, Reference]] = []
        at = 0
        for commit in group:
            references = {}
            for put in commit.large():
                size = len(put.value)
                digest = blake3(put.value).digest()
                references[put.key] = Reference(bundle, at, size, digest)
                parts.append(put.value)
                at += size
            found.append(references)
        data, begun = b"".join(parts), clock.monotonic()
        try:
            self._bundles.put(bundle, data)
        except Exception as error:
            metrics.JOURNAL_BUNDLES.labels("failed").inc()
            # Who came while the bucket was tried for seconds would wait as long once more.
            is_away = clock.monotonic() - begun > AWAY_S
            for commit in [*group, *(self._take_waiting() if is_away else ())]:
                self._fail(commit, error)
            return
        metrics.JOURNAL_BUNDLES.labels("done").inc()
        metrics.JOURNAL_GROUP.observe(len(group))
        self._crowds.append(
            len(group) + self._waiting.qsize()
        )  # before any of these may come again
        self._cache.keep(bundle, data)
        for commit, references in zip(group, found, strict=True):
            commit.references = references
            self._forward(commit)

    def _take_waiting(self) -> list[Commit]:
        found = [self._waiting.get() for _ in range(self._waiting.qsize())]
        if None in found:
            self._waiting.put(None)
        return [one for one in found if one is not None]


def _bytes_of(commit: Commit) -> int:
    return sum(len(put.value) for put in commit.large())
