"""The ring at run time: which shards keep a partition. See docs/formats/ring.md.

ring/builder.py makes rings; a process that serves only reads them.
"""

from __future__ import annotations

import math
import struct
import sys
import zlib
from array import array
from dataclasses import dataclass, field, replace
from enum import IntEnum

from blake3 import blake3

from shardgit.errors import JournalCorrupt
from shardgit.formats import check_version

PARTITIONS = 65_536
MAGIC = b"SGRG"
VERSION = 1
MOVING_VERSION = 2  # of a ring between two tables
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


class Phase(IntEnum):
    """Where a ring is between two tables."""

    SETTLED = 0
    COPYING = 1  # ``other`` is the table to come: what is put goes to both
    MOVED = 2  # ``other`` is the table that was: it may still be read


@dataclass(frozen=True, slots=True)
class Ring:
    """An explicit table: ``table[r][p]`` is the shard that keeps replica r of partition p.

    ``other`` is a second table while blocks move from one to the other.
    """

    epoch: int
    seed: int
    shards: tuple[RingShard, ...]
    table: tuple[array[int], ...]
    phase: Phase = Phase.SETTLED
    other: tuple[array[int], ...] = ()
    _homes: list[tuple[int, ...]] = field(init=False, repr=False, compare=False)
    _all: list[tuple[int, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # One tuple a combination, not one a partition: 0.5 MB instead of 4, and a lookup of 60 ns.
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        tuples = list(zip(*self.table, strict=True))
        homes = list(map(known.setdefault, tuples, tuples))
        every = homes
        if self.other:
            more = zip(*self.other, strict=True)
            pairs = zip(homes, more, strict=True)
            both = ((*home, *(n for n in far if n not in home)) for home, far in pairs)
            every = [known.setdefault(home, home) for home in both]
        object.__setattr__(self, "_homes", homes)
        object.__setattr__(self, "_all", every)

    @property
    def replicas(self) -> int:
        """Copies of each block."""
        return len(self.table)

    def shards_of(self, partition: int) -> tuple[int, ...]:
        """Return the numbers of the shards that keep a partition, one a replica."""
        return self._homes[partition]

    def reads_of(self, partition: int) -> tuple[int, ...]:
        """Return where a partition's blocks may be: its shards, then those of the other table."""
        return self._all[partition]

    def writes_of(self, partition: int) -> tuple[int, ...]:
        """Return where a block of the partition is put."""
        return (self._all if self.phase is Phase.COPYING else self._homes)[partition]

    def towards(self, table: tuple[array[int], ...]) -> Ring:
        """Return the ring of the next epoch that copies to ``table``."""
        return replace(self, epoch=self.epoch + 1, phase=Phase.COPYING, other=table)

    def moved(self) -> Ring:
        """Return the ring of the next epoch, with the tables' parts changed: all is copied."""
        assert self.phase is Phase.COPYING
        return replace(
            self, epoch=self.epoch + 1, table=self.other, other=self.table, phase=Phase.MOVED
        )

    def settled(self) -> Ring:
        """Return the ring of the next epoch with the first table alone."""
        return replace(self, epoch=self.epoch + 1, phase=Phase.SETTLED, other=())

    def partitions_of(self, shard: int) -> int:
        """Count the partitions that a shard keeps a replica of."""
        return sum(row.count(shard) for row in self.table)

    def moving_partitions(self) -> int:
        """Count the partitions that are to be, or were, at a shard of the other table alone, replicas counted."""
        # Of 65,536 in both tables few may differ.
        return sum(map(len, self._all)) - sum(map(len, self._homes)) if self.other else 0

    def encode(self) -> bytes:
        """Return the ring's bytes: magic, version and a checksum over all."""
        tables = (*self.table, *self.other)
        rows = zlib.compress(b"".join(_little(row).tobytes() for row in tables), 6)
        counts = (self.replicas, self.phase, self.epoch, self.seed, len(self.shards), len(rows))
        head = _HEAD.pack(MAGIC, MOVING_VERSION if self.phase else VERSION, *counts)
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
        magic, version, replicas, phase, epoch, seed, count, length = _HEAD.unpack_from(body)
        if magic != MAGIC:
            raise JournalCorrupt("ring has an unknown magic", magic=magic.hex())
        check_version("ring", version, MOVING_VERSION)
        if version not in (VERSION, MOVING_VERSION):
            raise JournalCorrupt("ring is of no known version", version=version)
        if phase not in ((1, 2) if version == MOVING_VERSION else (0,)):
            raise JournalCorrupt("ring is in an impossible phase", phase=phase)
        if not 1 <= replicas <= REPLICAS_MAX or not 1 <= count <= SHARDS_MAX:
            raise JournalCorrupt("ring has impossible counts", replicas=replicas, shards=count)
        at = _HEAD.size + count * _SHARD.size
        if len(body) != at + length:
            raise JournalCorrupt("ring has another length than it claims", bytes=len(data))
        shards = tuple(_shard(body, _HEAD.size + n * _SHARD.size) for n in range(count))
        rows = _table(body[at:], 2 * replicas if phase else replicas)
        ring = cls(epoch, seed, shards, rows[:replicas], Phase(phase), rows[replicas:])
        ring._check()
        return ring

    def _check(self) -> None:
        known = {shard.number for shard in self.shards}
        if len(known) != len(self.shards):
            raise JournalCorrupt("ring names a shard twice")
        others = set(zip(*self.other, strict=True)) if self.other else set()
        for home in set(self._homes) | others:
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


def _table(deflated: bytes, count: int) -> tuple[array[int], ...]:
    row_bytes = 2 * PARTITIONS
    inflate = zlib.decompressobj()
    try:
        rows = inflate.decompress(deflated, row_bytes * count + 1)
    except zlib.error as cause:
        raise JournalCorrupt("ring table does not inflate") from cause
    if len(rows) != row_bytes * count or not inflate.eof or inflate.unused_data:
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
