"""A bucket that tells slow from away: small requests are given up soon, large ones while the store is silent."""

from __future__ import annotations

import threading
import time
from concurrent.futures import wait
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from shardgit import telemetry
from shardgit.errors import PermissionRefused, ShardgitError, StorageFull, Unavailable
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shardgit.buckets.bucket import Bucket, Listed

T = TypeVar("T")
SMALL_BYTES = 64 << 10  # what goes in a moment over any link
AWAY_S = 4.0  # without an answer to anything, until a store counts as away
FIRST_S, PULSE_S = 1.0, 0.5  # that a request takes before the pulse is felt, and how often
THREADS = 64
PROBE = "pulse"  # an object that need not be there


class PatientBucket:
    """See Bucket. A store that answers nothing is Unavailable after some 4 s, whatever is asked of it.

    What is large may take long, as long as the store is there: while such requests last, a small question is asked
    each half second, and once none of these was answered for ``away_s``, all who wait are told. Their requests end
    behind them, by ``slow``'s patience; what these may still write is what was asked for. From then on the question is
    asked until it is answered, and whoever comes before that is told at once.

    ``quick`` and ``slow`` are the same bucket with little and much patience.
    """

    def __init__(self, quick: Bucket, slow: Bucket, *, away_s: float = AWAY_S) -> None:
        self.where = slow.where
        self._quick = quick
        self._slow = slow
        self._away_s = away_s
        self._threads = Workers(THREADS)  # never closed: one may hang for as long as a request may
        self._changed = threading.Condition()
        self._watchers = 0
        self._is_feeling = False
        self._is_away = False
        self._heard = 0.0  # when the last question was asked that had an answer

    # -- requests

    def put(self, name: str, data: bytes) -> None:
        """See Bucket."""
        if len(data) <= SMALL_BYTES:
            self._at_once(partial(self._quick.put, name, data))
        else:
            self._wait(partial(self._slow.put, name, data))

    def create(self, name: str, data: bytes) -> bool:
        """See Bucket. Never sent twice, and so never given up early."""
        return self._slow.create(name, data)

    def get(self, name: str) -> bytes | None:
        """See Bucket."""
        return self._wait(partial(self._slow.get, name))

    def get_range(self, name: str, start: int, end: int) -> bytes | None:
        """See Bucket."""
        if end - start <= SMALL_BYTES:
            return self._at_once(partial(self._quick.get_range, name, start, end))
        return self._wait(partial(self._slow.get_range, name, start, end))

    def size(self, name: str) -> int | None:
        """See Bucket."""
        return self._at_once(partial(self._quick.size, name))

    def list(self, prefix: str) -> Iterator[Listed]:
        """See Bucket."""
        return self._slow.list(prefix)

    def delete(self, names: Sequence[str]) -> None:
        """See Bucket."""
        self._slow.delete(names)

    # -- the pulse

    def _has_answered(self, asked: float) -> None:
        self._heard = max(self._heard, asked)
        self._is_away = False

    def _check_there(self) -> None:
        if self._is_away:
            raise Unavailable("object store does not answer", target=self.where)

    def _at_once(self, call: Callable[[], T]) -> T:
        self._check_there()
        return call()

    def _wait(self, call: Callable[[], T]) -> T:
        """Return what a call on a thread of its own returns, unless the store falls silent."""
        self._check_there()
        begun, waiting = time.monotonic(), [call]

        def unless_given_up() -> T:
            try:
                found = waiting.pop()
            except IndexError:
                raise Unavailable("object store did not answer", target=self.where) from None
            asked = time.monotonic()
            result = found()
            self._has_answered(asked)  # whoever waits for it still, or not
            return result

        job = self._threads.submit(unless_given_up)
        try:
            if not wait([job], FIRST_S).not_done:
                return job.result()
            with self._watching():
                while wait([job], PULSE_S).not_done:
                    if self._is_away or time.monotonic() - max(begun, self._heard) > self._away_s:
                        self._is_away = True  # the pulse says when it is back
                        waiting.clear()  # not begun yet: it need not, nor keep what it would send
                        self._check_there()
            return job.result()
        finally:
            del job, call  # an error leads to this frame, and would keep what was to be sent

    @contextmanager
    def _watching(self) -> Iterator[None]:
        with self._changed:
            if not self._is_feeling:
                threading.Thread(target=self._feel, name="bucket-pulse", daemon=True).start()
                self._is_feeling = True
            self._watchers += 1
        try:
            yield
        finally:
            with self._changed:
                self._watchers -= 1
                self._changed.notify_all()

    def _feel(self) -> None:
        """Ask until nobody waits any more, and the store is there."""
        while True:
            asked = time.monotonic()
            try:
                self._quick.size(PROBE)
            except (PermissionRefused, StorageFull):  # an answer, if not the one that was hoped for
                self._has_answered(asked)
            except ShardgitError:
                pass  # silence, or errors only
            except (
                Exception
            ) as error:  # whatever it is: without this thread nobody would hear of an answer
                telemetry.log().error("bucket_not_felt", exc_info=error)
            else:
                self._has_answered(asked)
            with self._changed:
                end = asked + PULSE_S
                while (self._watchers or self._is_away) and (left := end - time.monotonic()) > 0:
                    self._changed.wait(left)
                if not self._watchers and not self._is_away:
                    self._is_feeling = False
                    return
