"""Leases: what each process may still read or is still writing, told to gc through shared memory.

Whoever looks at a pool holds a lease from then on: the journal revision that it looked at, and when. It names no block
that was not named at that revision, and puts none that is older than the lease. One slot a process holds the oldest of
both, so a lease costs no commit. gc deletes what nothing names only when every live slot is newer than its own look.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections import deque
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.errors import Unavailable
from shardgit.journal.fences import fenced
from shardgit.processes import born

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from shardgit.journal.interface import Compare

SLOTS = 1_024  # processes that may have a store open; LMDB's reader slots run out before
SLOT_WORDS = 4  # process id, its start, oldest revision, oldest time in ms; 8 bytes each
HEAD_WORDS = 8
MAGIC = int.from_bytes(b"SGLEASE1", "little")
NOTHING = (1 << 64) - 1
FILE_BYTES = 8 * (HEAD_WORDS + SLOTS * SLOT_WORDS)
PID, BORN, REVISION, SINCE = range(SLOT_WORDS)


@dataclass(frozen=True, slots=True)
class Held:
    """The oldest leases of a live process: of what revision, and since when; NOTHING without any."""

    pid: int
    revision: int
    since_ms: int


class Lease:
    """Keeps what a revision of the journal names from being deleted, until it is ended or forgotten.

    ``fences`` are conditions of every commit that relies on it: they fail once nobody waits for this process any more.
    What the thread commits that has entered it is fenced by itself.
    """

    __slots__ = ("_entered", "_key", "_leases", "fences", "revision", "since_ms")

    def __init__(
        self, leases: Leases, key: int, revision: int, since_ms: int, fences: tuple[Compare, ...]
    ) -> None:
        self._leases = leases
        self._key = key
        self._entered: AbstractContextManager[None] | None = None
        self.revision = revision
        self.since_ms = since_ms
        self.fences = fences

    def end(self) -> None:
        """Let go; more than once is the same as once."""
        self._leases.forget(self._key)

    def __enter__(self) -> Lease:
        """Return self."""
        if self.fences:
            self._entered = fenced(*self.fences)
            self._entered.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Let go."""
        if self._entered is not None:
            self._entered.__exit__(None, None, None)
            self._entered = None
        self.end()

    def __del__(self) -> None:
        """Let go: who forgets the lease reads nothing under it any more."""
        self._leases.forget(self._key)


class Leases:
    """The leases of this process, and those of others as they stand. Usable from many threads."""

    def __init__(self, path: Path) -> None:
        self.fences: Callable[[], tuple[Compare, ...]] = tuple  # of leases that are taken now
        self._numbers = count()
        self._held: dict[int, tuple[int, int]] = {}
        self._revision = self._since = NOTHING  # the oldest of each
        self._gone: deque[int] = deque()
        self._lock = Lock()
        self._closed = False
        self._file = path.open("a+b")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            size = os.fstat(self._file.fileno()).st_size
            if size != FILE_BYTES:
                os.ftruncate(self._file.fileno(), 0)
                os.posix_fallocate(self._file.fileno(), 0, FILE_BYTES)  # a hole would be SIGBUS
            self._map = mmap.mmap(self._file.fileno(), FILE_BYTES)
            self._words = memoryview(self._map).cast("Q")
            if self._words[0] != MAGIC:
                self._words[:] = memoryview(bytes(FILE_BYTES)).cast("Q")
                self._words[0] = MAGIC
            self._at = self._claim()
        except OSError as cause:
            self._file.close()
            raise Unavailable("leases cannot be kept", path=str(path), cause=str(cause)) from cause
        finally:
            if not self._file.closed:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _claim(self) -> int:
        for at in range(HEAD_WORDS, len(self._words), SLOT_WORDS):
            pid = self._words[at + PID]
            if not pid or not _lives(pid, self._words[at + BORN]):
                self._words[at + REVISION] = self._words[at + SINCE] = NOTHING
                self._words[at + BORN] = born(os.getpid())
                self._words[at + PID] = os.getpid()
                return at
        raise Unavailable("too many processes have the store open", most=SLOTS)

    def take(self, revision: int) -> Lease:
        """Return a lease on what a snapshot of the journal names, which must be open still."""
        fences = self.fences()  # before the time: a session that is lost later fails its commits
        since_ms = clock.now_ms()
        key = next(self._numbers)
        with self._lock:
            self._held[key] = (revision, since_ms)
            if revision < self._revision or since_ms < self._since:
                self._revision = min(self._revision, revision)
                self._since = min(self._since, since_ms)
                self._tell()
        self._drain()
        return Lease(self, key, revision, since_ms, fences)

    def forget(self, key: int) -> None:
        """End a lease. Called by destructors, in any thread and inside any call, so it waits for no lock."""
        self._gone.append(key)
        self._drain()

    def _drain(self) -> None:
        # Whoever holds the lock looks again after it, so nothing that was added meanwhile is left lying.
        while self._gone and self._lock.acquire(blocking=False):
            try:
                while self._gone:
                    ended = self._held.pop(self._gone.popleft(), None)
                    if ended is not None and (
                        ended[0] <= self._revision or ended[1] <= self._since
                    ):
                        held = list(self._held.values())
                        self._revision = min((one[0] for one in held), default=NOTHING)
                        self._since = min((one[1] for one in held), default=NOTHING)
                        self._tell()
            finally:
                self._lock.release()

    def _tell(self) -> None:
        if not self._closed:
            self._words[self._at + REVISION] = self._revision
            self._words[self._at + SINCE] = self._since

    def all(self) -> Iterator[Held]:
        """Return the oldest leases of each live process, this one's too; those without any are left out."""
        self._drain()
        for at in range(HEAD_WORDS, len(self._words), SLOT_WORDS):
            pid, when, revision, since = self._words[at : at + SLOT_WORDS]
            if pid and (revision != NOTHING or since != NOTHING) and _lives(pid, when):
                yield Held(pid, revision, since)

    def close(self) -> None:
        """Give the slot back."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._words[self._at + REVISION] = self._words[self._at + SINCE] = NOTHING
            self._words[self._at + PID] = 0
            self._words.release()
            self._map.close()
            self._file.close()


def _lives(pid: int, when: int) -> bool:
    return when != 0 and born(pid) == when
