"""The folder of a part of the tier: generations that are made, made durable and dropped, one process at a time.

boot                 the boot of the machine under which this was written
g-<16 hex>/          a generation: data.mdb, lock.mdb; blocks go to the highest
g-<16 hex>/sealed    its bytes are durable: it outlives a crash of the machine
making/              generations that are being made or removed, and the locks of who does that
"""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit import clock, metrics
from shardgit.blocks.identity import fsync, write_durably
from shardgit.errors import ShardMissing, Unavailable
from shardgit.filelock import holding
from shardgit.lmdbenv import Environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.blocks.shard import ShardStore

MAKING_WAIT_S = 5.0
QUIET_S = 10.0  # since the last write to a generation, until it is made durable
SEALED, BOOT, MAKING = "sealed", "boot", "making"
_NAME = re.compile("g-[0-9a-f]{16}")


class GenerationFolder:
    """See above. What fails raises OSError, or Unavailable when another process holds the lock for too long."""

    def __init__(self, folder: Path, *, most: int, map_bytes: int) -> None:
        self.folder = folder
        self._most = most
        self._map_bytes = map_bytes

    @contextmanager
    def _making(self) -> Iterator[Path]:
        """Hold the lock of who makes and drops generations. Errors: Unavailable, after MAKING_WAIT_S."""
        folder = self.folder / MAKING
        folder.mkdir(parents=True, exist_ok=True)
        end = clock.monotonic() + MAKING_WAIT_S
        while True:
            with holding(folder / "lock") as held:
                if held:
                    yield folder
                    return
            if clock.monotonic() > end:
                raise Unavailable("generations are locked for too long", path=str(self.folder))
            clock.sleep(0.005)

    def set_up(self) -> None:
        """Make the folder, or drop from it what is not safe to open."""
        with self._making():
            self._drop_unsafe()

    def _drop_unsafe(self) -> None:
        """Drop what a crash of the machine, or of a process that made a generation, has left."""
        for left in (self.folder / MAKING).iterdir():
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        boot = _boot()
        mark = self.folder / BOOT
        if not mark.exists() or mark.read_text("ascii", "replace") != boot:
            for path in self.paths():
                if not (path / SEALED).exists():
                    self.remove(path)
            write_durably(mark, boot)

    def remove(self, path: Path) -> None:
        """Remove a generation, in one step for who opens it: never its lock file without its data."""
        target = self.folder / MAKING / f"{path.name}-{os.urandom(4).hex()}"
        with suppress(OSError):
            path.rename(target)
            shutil.rmtree(target, ignore_errors=True)

    def paths(self) -> list[Path]:
        """Return the generations' folders, the newest first."""
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, reverse=True)

    def number_of(self, path: Path) -> int:
        """Return a generation's number."""
        return int(path.name[2:], 16)

    def begin(self, behind: int) -> None:
        """Begin a generation behind that one, unless another process just has; drop the oldest."""
        with self._making() as making:
            paths = self.paths()
            newest = self.number_of(paths[0]) if paths else -1
            if newest > behind:
                return
            shutil.rmtree(making / "new", ignore_errors=True)
            Environment(making / "new", create=True, map_bytes=self._map_bytes).close()
            (making / "new").rename(self.folder / f"g-{behind + 1:016x}")
            for path in self.paths()[self._most :]:
                metrics.TIER_DROPS.labels("oldest").inc()
                self.remove(path)

    def seal(self, stores: Sequence[ShardStore]) -> None:
        """Make generations durable that are written to no more, unless another process is at it.

        Another process may write its last batch yet when a newer generation is there already.
        """
        with holding(self.folder / MAKING / "seal") as held:
            for store in stores if held else ():
                mark = store.folder / SEALED
                with suppress(ShardMissing, FileNotFoundError):
                    written = (store.folder / "data.mdb").stat().st_mtime
                    if not mark.exists() and abs(time.time() - written) > QUIET_S:
                        store.sync()
                        write_durably(mark, "")
                        if (store.folder / "data.mdb").stat().st_mtime != written:
                            self.unseal(store)  # by one who found no seal yet

    def is_sealed(self, store: ShardStore) -> bool:
        """Say whether a generation would be believed after a crash of the machine."""
        return (store.folder / SEALED).exists()

    def unseal(self, store: ShardStore) -> None:
        """Note that a generation is written to: behind its seal that would be believed after a crash."""
        with suppress(FileNotFoundError):
            (store.folder / SEALED).unlink()
            fsync(store.folder)

    def bytes_used(self) -> int:
        """Return the bytes of all files."""
        total = 0
        with suppress(OSError):
            for path in self.paths():
                for file in path.iterdir():
                    with suppress(OSError):
                        total += file.stat().st_size
        return total


def _boot() -> str:
    """Return what tells this boot of the machine from others."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text("ascii").strip() if file.exists() else os.uname().nodename
