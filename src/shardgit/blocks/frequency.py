"""How often blocks were asked for lately: a count-min sketch in a file that the processes of a node share."""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.oid import BlockId

ROWS = 4
COUNT_MAX = 15
ROW_MIN, ROW_MAX = 1 << 10, 1 << 20  # counters, of a byte each
_PLACES = struct.Struct("<4I")
_ASKED = struct.Struct("<Q")
_HALVES = bytes(n >> 1 for n in range(256))


class Sketch:
    """Counts up to 15 for each block, about; all counts are halved when ``sample`` more have come.

    Several processes may count at once: a count that they lose or halve twice matters to nobody, as little as what a
    crash leaves of the file. Without a file it is this process's own.
    """

    def __init__(self, file: Path | None, *, blocks: int) -> None:
        """Make or open a sketch for a cache of about so many blocks."""
        counters = 1 << max(8 * blocks - 1, 1).bit_length()
        self._mask = min(max(counters, ROW_MIN), ROW_MAX) - 1
        self.sample = 10 * max(blocks, ROW_MIN // 8)
        size = _ASKED.size + ROWS * (self._mask + 1)
        if file is None:
            self._map = mmap.mmap(-1, size)
            return
        # Each size has a file of its own: to cut one that another process has mapped would kill that.
        own = file.with_name(f"{file.name}-{size}")
        for other in file.parent.glob(f"{file.name}*"):
            if other != own:
                with suppress(OSError):
                    other.unlink()
        handle = os.open(own, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(handle, 0, size)  # a hole of a full disk would kill who touches it
            self._map = mmap.mmap(handle, size)
        finally:
            os.close(handle)

    def _places(self, block: BlockId) -> list[int]:
        # An id is a hash: its own bytes are as good as four hashes of it. The first ones are the partition.
        width, mask = self._mask + 1, self._mask
        words = _PLACES.unpack_from(block, 8)
        return [_ASKED.size + row * width + (word & mask) for row, word in enumerate(words)]

    def count(self, block: BlockId) -> int:
        """Count a block once more; returns its count before."""
        places = self._places(block)
        found = min(self._map[place] for place in places)
        if found < COUNT_MAX:
            for place in places:
                if self._map[place] == found:
                    self._map[place] = found + 1
        (asked,) = _ASKED.unpack_from(self._map)
        if asked + 1 >= self.sample:
            self._halve()
        else:
            _ASKED.pack_into(self._map, 0, asked + 1)
        return found

    def estimate(self, block: BlockId) -> int:
        """Return how often a block was asked for lately, rather too much than too little."""
        return min(self._map[place] for place in self._places(block))

    def _halve(self) -> None:
        _ASKED.pack_into(self._map, 0, 0)
        self._map[_ASKED.size :] = self._map[_ASKED.size :].translate(_HALVES)

    def close(self) -> None:
        """Give the file back."""
        self._map.close()
