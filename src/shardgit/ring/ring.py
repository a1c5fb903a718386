"""The ring at run time: which shards keep a partition. See docs/formats/ring.md; ring/builder.py makes rings."""

from __future__ import annotations

import struct
import zlib
from array import array
from dataclasses import dataclass

from blake3 import blake3

from shardgit.errors import MalformedInput

PARTITIONS = 65_536
MAGIC = b"SGRG"
VERSION = 1
REPLICAS_MAX = 3
SHARDS_MAX = 4_096
_HEAD = struct.Struct("<4sHBxQQII")
_SHARD = struct.Struct("<HHdB3x")
_CHECKSUM_BYTES = 32


@dataclass(frozen=True, slots=True)
class RingShard:
    """A shard as the ring knows it. ``weight`` 0 means that it is drained."""

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

    @property
    def replicas(self) -> int:
        """Copies of each block."""
        return len(self.table)

    def shards_of(self, partition: int) -> tuple[int, ...]:
        """Return the numbers of the shards that keep a partition, the first to be read from first."""
        return tuple(row[partition] for row in self.table)

    def encode(self) -> bytes:
        """Return the ring's bytes: magic, version and a checksum over all."""
        rows = zlib.compress(b"".join(row.tobytes() for row in self.table), 6)
        head = _HEAD.pack(MAGIC, VERSION, self.replicas, self.epoch, self.seed, len(self.shards), len(rows))
        shards = b"".join(_SHARD.pack(s.number, s.zone, s.weight, 0) for s in self.shards)
        body = head + shards + rows
        return body + blake3(body).digest()

    @classmethod
    def decode(cls, data: bytes) -> Ring:
        """Return the ring that ``data`` holds; MalformedInput when a byte is off."""
        if len(data) < _HEAD.size + _CHECKSUM_BYTES:
            raise MalformedInput("ring is too short", bytes=len(data))
        body = data[:-_CHECKSUM_BYTES]
        if blake3(body).digest() != data[-_CHECKSUM_BYTES:]:
            raise MalformedInput("ring checksum does not match")
        magic, version, replicas, epoch, seed, count, length = _HEAD.unpack_from(body)
        if magic != MAGIC or version != VERSION:
            raise MalformedInput("ring has an unknown magic or version", version=version)
        if not 1 <= replicas <= REPLICAS_MAX or not 1 <= count <= SHARDS_MAX:
            raise MalformedInput("ring has impossible counts", replicas=replicas, shards=count)
        at = _HEAD.size + count * _SHARD.size
        if len(body) != at + length:
            raise MalformedInput("ring has another length than it claims", bytes=len(data))
        shards = tuple(
            RingShard(*_SHARD.unpack_from(body, _HEAD.size + number * _SHARD.size)[:3]) for number in range(count)
        )
        size = 2 * PARTITIONS * replicas
        inflate = zlib.decompressobj()
        try:
            rows = inflate.decompress(body[at:], size + 1)
        except zlib.error as cause:
            raise MalformedInput("ring table does not inflate") from cause
        if len(rows) != size:
            raise MalformedInput("ring table has another size", bytes=len(rows))
        table = tuple(array("H", rows[r * 2 * PARTITIONS : (r + 1) * 2 * PARTITIONS]) for r in range(replicas))
        known = {shard.number for shard in shards}
        if len(known) != count or any(set(row) - known for row in table):
            raise MalformedInput("ring table names an unknown shard")
        return cls(epoch, seed, shards, table)
