"""What the processes of a node tell each other about their replica: a page of shared memory."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = int.from_bytes(b"SGREPLC1", "little")
NOTHING = (1 << 64) - 1
_BYTES = 4_096
_MAGIC, _BOOT, _GENERATION, _APPLIED, _RETIRED, _DAMAGED = range(6)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class ReplicaStatus:
    """Words that one process writes, the one that feeds the replica, and all read.

    The replica is not fsynced, so nothing of it is believed after the machine has stopped: the first to open it then
    removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        with (folder / "status").open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if os.fstat(file.fileno()).st_size != _BYTES:
                    os.ftruncate(file.fileno(), 0)
                    os.posix_fallocate(file.fileno(), 0, _BYTES)  # a hole would be SIGBUS
                self._map = mmap.mmap(file.fileno(), _BYTES)
                self._words = memoryview(self._map).cast("Q")
                if self._words[_MAGIC] != MAGIC or self._words[_BOOT] != _boot():
                    self._reset()
            except OSError as cause:
                raise Unavailable("replica has no status", path=str(folder)) from cause
            finally:
                fcntl.flock(
                    file, fcntl.LOCK_UN
                )  # the map keeps the file open, and the lock with it

    def _reset(self) -> None:
        for left in self.folders():
            shutil.rmtree(left, ignore_errors=True)
        self._words[_GENERATION] = self._words[_APPLIED] = self._words[_DAMAGED] = 0
        self._words[_RETIRED] = NOTHING
        self._words[_BOOT] = _boot()
        self._words[_MAGIC] = MAGIC

    def folders(self) -> Iterator[Path]:
        """Return the folders of all generations that are there."""
        return self._folder.glob("rows-*")

    def folder(self, generation: int) -> Path:
        """Return where a generation lies."""
        return self._folder / f"rows-{generation}"

    @property
    def generation(self) -> int:
        """The environment that is whole and fed; 0: none is yet."""
        return int(self._words[_GENERATION])

    @property
    def applied(self) -> int:
        """The journal's revision that every snapshot opened from now on shows at least."""
        return int(self._words[_APPLIED])

    @property
    def retired(self) -> int:
        """The oldest revision that snapshots of earlier generations may still show, NOTHING without any."""
        return int(self._words[_RETIRED])

    @property
    def damaged(self) -> int:
        """The generation in which a reader met damage, 0 for none."""
        return int(self._words[_DAMAGED])

    def publish(self, generation: int, applied: int) -> None:
        """Let readers see what was applied, of this generation."""
        # A reader that sees the new number with the old environment would wait a little, the other way round it would
        # miss rows: each commit into a generation is whole before its number is told.
        self._words[_GENERATION] = generation
        self._words[_APPLIED] = applied

    def retire(self, oldest: int) -> None:
        """Tell the oldest revision that readers of earlier generations may show."""
        self._words[_RETIRED] = oldest

    def report(self, generation: int) -> None:
        """Tell that a generation is damaged; it is then made anew."""
        self._words[_DAMAGED] = generation

    def close(self) -> None:
        """Let go of the page."""
        self._words.release()
        self._map.close()


def _boot() -> int:
    """Return a number that is another one each time the machine starts."""
    try:
        text = _BOOT_ID.read_bytes()
    except OSError:
        text = b""
    return int.from_bytes(blake3(text).digest(length=8), "little")
