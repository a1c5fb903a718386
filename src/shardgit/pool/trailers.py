"""Trailers of packs that were sent before, for all processes of a store and for those that come after them.

The hash is half of what the server pays for a full clone of git.git (perf), and the trailer is all that it gives.
"""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from pathlib import Path

SLOTS = 4_096
WAYS = 4  # slots that one key may stand in
KEY_BYTES = (
    16  # of a plan's hash; who has two plans with the same gets a pack that the client refuses
)
_SLOT = struct.Struct("<16s B 7x 32s 8s")  # key, length of the trailer, the trailer, checksum
FILE_BYTES = SLOTS * _SLOT.size


class Trailers:
    """What packs end with, by plan; the oldest are written over.

    Slots in a file that every process maps, none of which locks another: who reads half of what another writes finds
    that its checksum does not fit. Without a path, or where the file cannot be made, in this process's memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._map = _mapped(path)

    def get(self, plan: bytes) -> bytes | None:
        """Return the trailer of a plan, None when it was not sent whole yet."""
        for at in _places(plan):
            key, length, padded, checksum = _SLOT.unpack_from(self._map, at)
            if key == plan[:KEY_BYTES] and 0 < length <= len(padded):
                trailer = bytes(padded[:length])
                if _checksum(plan, trailer) == checksum:
                    return trailer
        return None

    def put(self, plan: bytes, trailer: bytes) -> None:
        """Note the trailer of a plan."""
        key = plan[:KEY_BYTES]
        slot = _SLOT.pack(key, len(trailer), trailer, _checksum(plan, trailer))
        places = _places(plan)
        for at in places:
            there, length, _, _ = _SLOT.unpack_from(self._map, at)
            if there == key or not length:
                break
        else:
            at = places[plan[-1] % WAYS]
        self._map[at : at + _SLOT.size] = slot


def _places(plan: bytes) -> list[int]:
    first = int.from_bytes(plan[:4], "little") % (SLOTS // WAYS) * WAYS
    return [(first + way) * _SLOT.size for way in range(WAYS)]


def _checksum(plan: bytes, trailer: bytes) -> bytes:
    return blake3(plan + trailer).digest(length=8)


def _mapped(path: Path | None) -> mmap.mmap:
    if path is not None:
        with suppress(OSError), path.open("a+b") as file:
            # A page that the disk has no room for would kill who writes to it.
            os.posix_fallocate(file.fileno(), 0, FILE_BYTES)
            return mmap.mmap(file.fileno(), FILE_BYTES)
    return mmap.mmap(-1, FILE_BYTES)
