"""The ring at run time: which shards keep a partition. See docs/formats/ring.md.

ring/builder.py makes rings; a process that serves only reads them.
"""

from __future__ import annotations

import math
import struct
import sys
import zlib
from array import array
from dataclasses import dataclass, field

from blake3 import blake3

from shardgit.errors import JournalCorrupt, StoreFormatUnknown

PARTITIONS = 65_536
MAGIC = b"SGRG"
VERSION = 1
REPLICAS_MAX = 3
SHARDS_MAX = 4_096
ZONE_MAX = 0xFFFE
WEIGHT_MAX = 1e9
_HEAD = struct.Struct("<4sHBBQQII")
_SHARD = struct.Struct("<HHdI")
_CHECKSUM_BYTES = 32


@dataclass(frozen=True, slots=True)
class RingShard:
    """A shard as the ring knows it.

    ``weight`` is its share relative to the others'; 0 means that it is drained and gets nothing.
    Replicas of one partition stand in distinct zones where there are enough.
    """

    number: int
    zone: int = 0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Ring:
    """An explicit table: ``table[r][p]`` is the shard that keeps replica r of partition p."""

    epoch: int
    seed: int
    shards: tuple[RingShard, ...]
    table: tuple[array[int], ...]
    _homes: list[tuple[int, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # One tuple a combination, not one a partition: 0.5 MB instead of 4, and a lookup of 60 ns.
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        homes = [known.setdefault(home, home) for home in zip(*self.table, strict=True)]
        object.__setattr__(self, "_homes", homes)

    @property
    def replicas(self) -> int:
        """Copies of each block."""
        return len(self.table)

    def shards_of(self, partition: int) -> tuple[int, ...]:
        """Return the numbers of the shards that keep a partition, one a replica."""
        return self._homes[partition]

    def partitions_of(self, shard: int) -> int:
        """Count the partitions that a shard keeps a replica of."""
        return sum(row.count(shard) for row in self.table)

    def encode(self) -> bytes:
        """Return the ring's bytes: magic, version and a checksum over all."""
        rows = zlib.compress(b"".join(_little(row).tobytes() for row in self.table), 6)
        counts = (self.replicas, 0, self.epoch, self.seed, len(self.shards), len(rows))
        head = _HEAD.pack(MAGIC, VERSION, *counts)
        shards = b"".join(_SHARD.pack(s.number, s.zone, s.weight, 0) for s in self.shards)
        body = head + shards + rows
        return body + blake3(body).digest()

    @classmethod
    def decode(cls, data: bytes) -> Ring:
        """Return the ring that ``data`` holds.

        Errors: JournalCorrupt when a byte is off, StoreFormatUnknown for another version.
        """
        if len(data) < _HEAD.size + _CHECKSUM_BYTES:
            raise JournalCorrupt("ring is too short", bytes=len(data))
        body = data[:-_CHECKSUM_BYTES]
        if blake3(body).digest() != data[-_CHECKSUM_BYTES:]:
            raise JournalCorrupt("ring checksum does not match")
        magic, version, replicas, zero, epoch, seed, count, length = _HEAD.unpack_from(body)
        if magic != MAGIC:
            raise JournalCorrupt("ring has an unknown magic", magic=magic.hex())
        if version != VERSION:
            raise StoreFormatUnknown("ring is of another version", version=version, known=VERSION)
        if zero or not 1 <= replicas <= REPLICAS_MAX or not 1 <= count <= SHARDS_MAX:
            raise JournalCorrupt("ring has impossible counts", replicas=replicas, shards=count)
        at = _HEAD.size + count * _SHARD.size
        if len(body) != at + length:
            raise JournalCorrupt("ring has another length than it claims", bytes=len(data))
        shards = tuple(_shard(body, _HEAD.size + n * _SHARD.size) for n in range(count))
        ring = cls(epoch, seed, shards, _table(body[at:], replicas))
        ring._check()
        return ring

    def _check(self) -> None:
        known = {shard.number for shard in self.shards}
        if len(known) != len(self.shards):
            raise JournalCorrupt("ring names a shard twice")
        for home in set(self._homes):
            if not known.issuperset(home):
                raise JournalCorrupt("ring table names an unknown shard", shards=home)
            if len(set(home)) != len(home):
                raise JournalCorrupt("ring keeps two replicas on one shard", shards=home)


def _shard(body: bytes, at: int) -> RingShard:
    number, zone, weight, zero = _SHARD.unpack_from(body, at)
    if zero or number >= SHARDS_MAX or zone > ZONE_MAX:
        raise JournalCorrupt("ring has an impossible shard", shard=number, zone=zone)
    if not math.isfinite(weight) or not 0 <= weight <= WEIGHT_MAX:
        raise JournalCorrupt("ring has an impossible weight", shard=number, weight=weight)
    return RingShard(number, zone, weight)


def _table(deflated: bytes, replicas: int) -> tuple[array[int], ...]:
    row_bytes = 2 * PARTITIONS
    inflate = zlib.decompressobj()
    try:
        rows = inflate.decompress(deflated, row_bytes * replicas + 1)
    except zlib.error as cause:
        raise JournalCorrupt("ring table does not inflate") from cause
    if len(rows) != row_bytes * replicas or not inflate.eof or inflate.unused_data:
        raise JournalCorrupt("ring table has another size", bytes=len(rows))
    return tuple(
        _little(array("H", rows[at : at + row_bytes])) for at in range(0, len(rows), row_bytes)
    )


def _little(row: array[int]) -> array[int]:
    """Swap the bytes of a row where the machine is not little-endian, in either direction."""
    if sys.byteorder == "little":
        return row
    swapped = array("H", row)
    swapped.byteswap()
    return swapped
