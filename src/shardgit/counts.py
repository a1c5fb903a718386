"""What workers that have ended had counted: kept in one file for all, so that a server which lasts gathers no files."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import multiprocess

from shardgit.countfile import CountFile
from shardgit.processes import drop_left, own_prefix, pid_space

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEAD = "0"  # stands for the process' number in the names of these files
SUMMED = ("counter", "histogram", "summary")
GREATEST = ("gauge_max",)
MEMORY = Path("/dev/shm")  # noqa: S108 - where most systems keep a folder that no disk can be too full for
ROOM_BYTES = 32 << 20  # 64 workers count into some 25 MiB


@contextlib.contextmanager
def count_folder(places: Sequence[Path] = ()) -> Iterator[Path]:
    """Make the folder that workers count into, in the first place that has room for it, else in the last; it goes then.

    The places are memory and where temporary files lie, unless they are given. What servers left there that were killed
    goes, too. Errors: OSError.
    """
    places = places or (MEMORY, Path(tempfile.gettempdir()))
    what = f"shardgit-metrics-{pid_space()}"  # containers may share a place
    for each in places:
        drop_left(each, what)
    place = next((one for one in places if _has_room(one)), places[-1])
    with tempfile.TemporaryDirectory(dir=place, prefix=own_prefix(what)) as made:
        yield Path(made)


def _has_room(place: Path) -> bool:
    with contextlib.suppress(OSError):
        disk = os.statvfs(place)
        return os.access(place, os.W_OK | os.X_OK) and disk.f_bavail * disk.f_frsize >= ROOM_BYTES
    return False


def bury(folder: Path, process: int) -> None:
    """Add what a process counted to what those before it did, and let its files go.

    Errors: OSError, when the disk has no room: then the files stay, and count as they are.
    """
    multiprocess.mark_process_dead(process, path=str(folder))  # type: ignore[no-untyped-call]
    for kind in (*SUMMED, *GREATEST):
        left = folder / f"{kind}_{process}.db"
        if not left.exists():
            continue
        rows = _rows(left)
        with contextlib.closing(_Counts(folder / f"{kind}_{DEAD}.db")) as sums:
            sums.reserve(key for key, _ in rows)  # before the first sum: a part would count twice
            for key, value in rows:
                before = sums.get(key)
                sums.write_value(key, max(before, value) if kind in GREATEST else before + value, 0)
        left.unlink()


def _rows(file: Path) -> list[tuple[str, float]]:
    """Return what a file holds; one that was killed as it wrote may have left one that does not parse to its end."""
    found = []
    with contextlib.suppress(RuntimeError, ValueError, struct.error):
        rows = CountFile.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call]
        for key, value, _, _ in rows:
            found.append((key, value))
    return found


class _Counts(CountFile):
    """A file of values by key."""

    must = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))

    def get(self, key: str) -> float:
        """Return a value, 0 where there is none."""
        return float(self.read_value(key)[0])  # type: ignore[no-untyped-call]
