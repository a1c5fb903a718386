"""What workers that have ended had counted: kept in one file for all, so that a server which lasts gathers no files."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

from prometheus_client import multiprocess
from prometheus_client.mmap_dict import MmapedDict

if TYPE_CHECKING:
    from pathlib import Path

DEAD = "0"  # stands for the process' number in the names of these files
SUMMED = ("counter", "histogram", "summary")
GREATEST = ("gauge_max",)


def bury(folder: Path, process: int) -> None:
    """Add what a process counted to what those before it did, and let its files go. Errors: OSError."""
    multiprocess.mark_process_dead(process, path=str(folder))  # type: ignore[no-untyped-call]
    for kind in (*SUMMED, *GREATEST):
        left = folder / f"{kind}_{process}.db"
        if not left.exists():
            continue
        # One that was killed as it wrote may have left a file that does not parse to its end.
        cut = contextlib.suppress(RuntimeError, ValueError, struct.error)
        with contextlib.closing(_Counts(folder / f"{kind}_{DEAD}.db")) as sums, cut:
            rows = MmapedDict.read_all_values_from_file(str(left))  # type: ignore[no-untyped-call]
            for key, value, time, _ in rows:
                before = sums.get(key)
                now = max(before, value) if kind in GREATEST else before + value
                sums.write_value(key, now, time)  # type: ignore[no-untyped-call]
        left.unlink()


class _Counts(MmapedDict):
    """A file of values by key."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))  # type: ignore[no-untyped-call]

    def get(self, key: str) -> float:
        """Return a value, 0 where there is none."""
        return float(self.read_value(key)[0])  # type: ignore[no-untyped-call]
