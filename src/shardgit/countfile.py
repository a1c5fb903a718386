"""The files that workers count into: mapped, and never written where the disk has no room for what is mapped."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

if TYPE_CHECKING:
    from collections.abc import Iterable

FIRST_BYTES = 1 << 16
_HEAD = struct.Struct("i")  # how much of the file is in use
_HEAD_BYTES = 8
_VALUE_BYTES = 20  # of an entry beside its padded key: a length and two doubles

astray: dict[str, CountFile] = {}
"""The files of this process for which there is no room."""


class CountFile(MmapedDict):
    """prometheus_client's dict of doubles in a mapped file, every byte of which has its place on the disk.

    The file as prometheus_client makes it is sparse, and a write to it kills the process (SIGBUS) once the disk is
    full. Here values for which there is no room stay in memory, where nobody but their process sees them, until
    ``go_home`` finds some.
    """

    must = False
    """Whether having no room is an error (OSError)."""

    def __init__(self, filename: str) -> None:
        path = Path(filename)
        self._fname = filename
        known = path.read_bytes() if path.exists() else b""
        self._capacity = max(len(known), FIRST_BYTES)
        self._lock = RLock()
        self._m = mmap.mmap(-1, self._capacity)
        self._m[: len(known)] = known
        self._used = _HEAD.unpack_from(self._m)[0] or _HEAD_BYTES
        _HEAD.pack_into(self._m, 0, self._used)
        rows = self._read_all_values()  # type: ignore[no-untyped-call]
        self._positions = {key: at for key, _, _, at in rows}
        self._settle(self._capacity)

    def reserve(self, keys: Iterable[str]) -> None:
        """Have room for values of keys. Errors: OSError where having none is one."""
        with self._lock:
            size = sum(_entry_bytes(key) for key in keys if key not in self._positions)
            capacity = self._capacity
            while self._used + size > capacity:
                capacity *= 2
            if capacity > self._capacity:
                self._settle(capacity)

    def _init_value(self, key: str) -> None:
        self.reserve([key])
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Set a value. Errors: OSError, of one that is new, where having no room is an error."""
        with self._lock:
            super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]

    def go_home(self) -> None:
        """Have values in the file again, if there is room by now."""
        with self._lock:
            if self._fname in astray:
                self._settle(self._capacity)

    def close(self) -> None:
        """Let the file go."""
        with self._lock:
            self._m.close()
            astray.pop(self._fname, None)

    def _settle(self, capacity: int) -> None:
        """Have values in the file, of that size from now on; without room for it in memory."""
        try:
            fresh = self._mapped(capacity)
        except OSError:
            if self.must:
                raise
            astray[self._fname] = self
            fresh = mmap.mmap(-1, capacity)
            fresh[: self._used] = self._m[: self._used]
        else:
            astray.pop(self._fname, None)
        self._m.close()
        self._m = fresh
        self._capacity = capacity

    def _mapped(self, capacity: int) -> mmap.mmap:
        """Return the file, mapped, with the values in it; one that is new is seen once they are. Errors: OSError."""
        path = Path(self._fname)
        known = path.stat().st_size if path.exists() else 0
        where = path if known else path.with_suffix(".new")
        try:
            with where.open("r+b" if known else "w+b") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, max(known, capacity))
                except OSError:
                    file.truncate(known)
                    raise
                fresh = mmap.mmap(file.fileno(), capacity)
        except OSError:
            if not known:
                with contextlib.suppress(OSError):
                    where.unlink()
            raise
        fresh[: self._used] = self._m[: self._used]
        if not known:
            where.rename(path)
        return fresh


def _entry_bytes(key: str) -> int:
    return len(key.encode()) + 8 + _VALUE_BYTES  # 8: as padding at most


def count_safely() -> None:
    """Have all metrics that are made from now on count into such files, where they count into files at all."""
    values.MmapedDict = CountFile  # type: ignore[attr-defined, assignment]
