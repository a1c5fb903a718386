"""What long operations share: progress, pace, stopping, one at a time, and their row in the journal.

    def scrub(store: Store, *, control: Control) -> Scrubbed:
        with running(store, "scrub"):
            for blocks in ...:
                control.report(Progress("scrubbing", done, total, "bytes"))
                control.pace(sum(len(block) for block in blocks))

An operation is a plain function in one thread. It may be killed at any point: what it needs to go on stands in its row
(journal/operations.py), and the lock that keeps a second one out is the kernel's.
"""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from shardgit.errors import Refused, Stopped
from shardgit.journal.records import STORE_KEY
from shardgit.oid import BlockId
from shardgit.operate import notes
from shardgit.progress import Progress, Report, silent
from shardgit.turns import holding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardgit.service.store import Store

REPORT_EVERY_S = 0.2
PROBE_EVERY_S = 0.2
PROBES_KEPT = 128  # 26 s: load that lasts longer is the new baseline, so nothing is starved
PROBES_MIN = 8
CALM_PART = 4  # the baseline is the probe that a quarter of the last ones were under
BUSY_FACTOR = 2.0
BUSY_FLOOR_S = 0.0005  # below this a probe tells nothing
PAUSE_MIN_S = 0.005  # a pause for each PAUSE_BYTES
PAUSE_MAX_S = 1.0
PAUSE_BYTES = 1 << 20
PROBE_IDS = 8
PROBE_SLEEP_S = 0.0005
BURST_S = 0.25  # what a throttle forgives after a pause
NICE = 10
TRIES = 4  # to take a turn: who asks whether somebody has it keeps it for a moment


class Throttle:
    """How fast an operation may go: by bytes a second, and by how the store answers meanwhile.

    ``probe`` returns the seconds that a small use of the store took. When it takes twice as long as in calm, the pause
    behind each MiB grows, up to a second; it shrinks again once it does not. Without a rate and a probe there is none.
    """

    def __init__(
        self,
        rate_bytes_s: float | None = None,
        *,
        probe: Callable[[], float] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate_bytes_s = rate_bytes_s
        self.pause_s = 0.0
        self._probe = probe
        self._now = now
        self._free_at = now()  # when the bytes so far are paid for
        self._owed_s = 0.0  # of pauses too short to be made
        self._probes: list[float] = []
        self._next_probe = now()

    def wait_s(self, size_bytes: int) -> float:
        """Return how long to wait after so many bytes."""
        now = self._now()
        wait = 0.0
        if self.rate_bytes_s:
            self._free_at = max(self._free_at, now - BURST_S) + size_bytes / self.rate_bytes_s
            wait = self._free_at - now
        if self._probe is not None and now >= self._next_probe:
            self._next_probe = now + PROBE_EVERY_S
            self._judge(self._probe())
        self._owed_s += self.pause_s * size_bytes / PAUSE_BYTES
        if self._owed_s >= PAUSE_MIN_S:
            wait, self._owed_s = max(wait, self._owed_s), 0.0
        return wait

    def _judge(self, took: float) -> None:
        self._probes.append(took)
        del self._probes[:-PROBES_KEPT]
        if len(self._probes) < PROBES_MIN:
            return
        calm = sorted(self._probes)[len(self._probes) // CALM_PART]
        if took > BUSY_FACTOR * calm + BUSY_FLOOR_S:
            self.pause_s = min(max(2 * self.pause_s, PAUSE_MIN_S), PAUSE_MAX_S)
        else:
            self.pause_s = self.pause_s / 2 if self.pause_s > PAUSE_MIN_S else 0.0


class Control:
    """Given to every long operation, and used by its thread; ``stop`` may be called from any."""

    def __init__(self, *, report: Report = silent, throttle: Throttle | None = None) -> None:
        self.throttle = throttle
        self._report = report
        self._told: tuple[str, float] = ("", 0.0)
        self._stop = threading.Event()

    @property
    def stopping(self) -> bool:
        """Whether the operation has been told to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Tell the operation to stop at its next step."""
        self._stop.set()

    def report(self, progress: Progress) -> None:
        """Tell the caller how far it is; a few times a second are passed on, and each stage's end."""
        stage, when = self._told
        now = time.monotonic()
        last = progress.total is not None and progress.done >= progress.total
        if progress.stage == stage and not last and now - when < REPORT_EVERY_S:
            return
        self._told = (progress.stage, now)
        notes.tell(progress)
        self._report(progress)

    def check(self) -> None:
        """Raise Stopped when the operation has been told to stop."""
        if self._stop.is_set():
            raise Stopped("operation was stopped; begin it again to go on")

    def pace(self, size_bytes: int) -> None:
        """Sleep as long as the throttle wants after so many bytes; Stopped when told to stop."""
        self.check()
        if self.throttle is not None:
            self.sleep(self.throttle.wait_s(size_bytes))

    def sleep(self, seconds: float) -> None:
        """Wait; Stopped as soon as the operation is told to stop."""
        if seconds > 0:
            self._stop.wait(seconds)
        self.check()


def silent_control() -> Control:
    """Return a control that tells nobody and waits for nothing."""
    return Control()


def store_probe(store: Store) -> Callable[[], float]:
    """Return what measures how a store answers now: a look into journal and shards, and a turn at the processor.

    A read that waits for a disk, or a thread that waits for a core, shows in it as it does in a request.
    """
    chance = random.Random(0)  # noqa: S311 - any ids will do

    def probe() -> float:
        ids = [BlockId(chance.randbytes(32)) for _ in range(PROBE_IDS)]
        begun = time.perf_counter()
        time.sleep(PROBE_SLEEP_S)
        with store.journal.snapshot() as snapshot:
            snapshot.get(STORE_KEY)
        if not store.in_cluster:  # there it would ask the object store, over and over
            store.blocks.has_many_sync(ids)
        return time.perf_counter() - begun - PROBE_SLEEP_S

    return probe


@contextmanager
def running(store: Store, kind: str) -> Iterator[None]:
    """Keep every other process and thread from running an operation of the same kind meanwhile.

    Who watches the store is shown it with its progress. Errors: Refused when one is running already.
    """
    with holding(store.turns, f"operation-{kind}", tries=TRIES) as held:
        if not held:
            raise Refused("operation is running already", operation=kind)
        with notes.noted(store.scratch, kind):
            yield


def is_running(store: Store, kind: str) -> bool:
    """Say whether some process runs an operation of the kind."""
    return store.turns.note_of(f"operation-{kind}") is not None


def step_back(store: Store) -> None:
    """Let the kernel prefer all other threads to this one, and to those that it starts.

    The store's own are not among these: every push of the process commits through them.
    """
    store.begin_threads()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
