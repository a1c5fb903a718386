"""The block: header, id, partition. See docs/formats/block.md."""

from __future__ import annotations

import enum
import os
import random
import struct
from dataclasses import dataclass

from blake3 import blake3

from shardgit import clock
from shardgit.errors import BlockCorrupt
from shardgit.oid import BlockId, HashKind, PoolId

REBIRTHS_MAX = 2_048
MAGIC = b"SGB1"
VERSION = 1
HEADER_SIZE = 64
BLOCK_MAX_BYTES = 8 << 20
_HEADER = struct.Struct("<4sBBBBQ16sQ16s8x")


class BlockKind(enum.IntEnum):
    """What a block holds."""

    SEGMENT = 1
    INDEX = 2
    GRAPH = 3
    BITMAP = 4
    MANIFEST = 5
    PART = 6
    REFS = 7


@dataclass(frozen=True, slots=True)
class BlockHeader:
    """The 64 bytes that every block starts with."""

    kind: BlockKind
    hash_kind: HashKind
    flags: int
    length: int
    pool: PoolId
    created_ms: int
    nonce: bytes

    def pack(self) -> bytes:
        """Return the header's bytes."""
        assert len(self.pool) == len(self.nonce) == 16
        return _HEADER.pack(
            MAGIC,
            VERSION,
            self.kind,
            self.hash_kind,
            self.flags,
            self.length,
            self.pool,
            self.created_ms,
            self.nonce,
        )


def new_header(
    kind: BlockKind, hash_kind: HashKind, pool: PoolId, length: int, *, flags: int = 0
) -> bytes:
    """Return the header of a block of ``length`` bytes in all, born now, with a fresh nonce."""
    assert len(pool) == 16
    nonce = _nonces.randbytes(16)
    return _HEADER.pack(MAGIC, VERSION, kind, hash_kind, flags, length, pool, clock.now_ms(), nonce)


def named(data: bytes) -> tuple[BlockId, bytes]:
    """Return the id of a block that was just born, and the block: with another nonce where it would lie badly.

    For a block that nothing names yet. Its partition follows from its id, and that from its nonce, so that a block
    keeps off shards that take none (ADR 0025).
    """
    made = block_id(data)
    for _ in range(REBIRTHS_MAX):  # in vain where all is kept off: then the put tells
        if not _lies_badly(made):
            break
        data = data[: _NONCE.start] + _nonces.randbytes(16) + data[_NONCE.stop :]
        made = block_id(data)
    return made, data


def on_its_own(block: BlockId, data: bytes) -> tuple[BlockId, bytes]:
    """Return a block that was embedded in a root until now: as it is, or born anew where it would lie badly.

    What is born now has a time of now, so that a gc beside leaves it alone until it is named.
    """
    if not _lies_badly(block):
        return block, data
    header = first_header(data)
    head = new_header(header.kind, header.hash_kind, header.pool, len(data), flags=header.flags)
    return named(head + data[HEADER_SIZE:])


def keep_off(owner: object, partitions: bytes | None) -> None:
    """Have this process give birth to no blocks of partitions whose byte of 65,536 is not 0; None lets them be again.

    Each owner's word stands by itself: what is kept off for one store is so for others that are open in the process.
    """
    if partitions is None:
        _kept_off.pop(id(owner), None)
    else:
        _kept_off[id(owner)] = partitions


def _lies_badly(block: BlockId) -> bool:
    return bool(_kept_off) and any(kept[partition_of(block)] for kept in tuple(_kept_off.values()))


def fresh_nonces() -> None:
    """Begin another row of nonces: a forked process must not go on with its parent's."""
    _nonces.seed(os.urandom(32))


# Nonces are told to nobody who could gain by knowing the next one, and asking the kernel gives up the GIL each time.
_nonces = random.Random(os.urandom(32))  # noqa: S311
os.register_at_fork(after_in_child=fresh_nonces)
_NONCE = slice(40, 56)
_kept_off: dict[int, bytes] = {}


def parse_header(data: bytes | memoryview, *, kind: BlockKind | None = None) -> BlockHeader:
    """Return the header of a whole block; BlockCorrupt when it is off or of another kind."""
    header = first_header(data)
    if header.length != len(data):
        raise BlockCorrupt("block has another length than it claims", bytes=len(data))
    if kind is not None and header.kind is not kind:
        raise BlockCorrupt("block is of another kind", kind=header.kind.name, wanted=kind.name)
    return header


def first_header(data: bytes | memoryview) -> BlockHeader:
    """Return the header that stands in a block's first bytes; BlockCorrupt when it is off."""
    if len(data) < HEADER_SIZE:
        raise BlockCorrupt("block is shorter than its header", bytes=len(data))
    magic, version, raw_kind, raw_hash, flags, length, pool, created_ms, nonce = _HEADER.unpack(
        data[:HEADER_SIZE]
    )
    if magic != MAGIC or version != VERSION:
        raise BlockCorrupt("block has an unknown magic or version", version=version)
    if length > BLOCK_MAX_BYTES:
        raise BlockCorrupt("block has another length than it claims", bytes=len(data))
    try:
        return BlockHeader(
            BlockKind(raw_kind), HashKind(raw_hash), flags, length, PoolId(pool), created_ms, nonce
        )
    except ValueError as cause:
        raise BlockCorrupt("block has an unknown kind", kind=raw_kind, hash=raw_hash) from cause


def block_id(data: bytes | memoryview) -> BlockId:
    """Return the id of a whole block: BLAKE3-256 of its bytes."""
    return BlockId(blake3(data).digest())


def partition_of(block: BlockId) -> int:
    """Return the partition of a block, 0 to 65,535: the first two bytes of its id."""
    return block[0] << 8 | block[1]


def verify_block(block: BlockId, data: bytes | memoryview) -> None:
    """Check a block's bytes against its id, and its header; BlockCorrupt when they are off."""
    if block_id(data) != block:
        raise BlockCorrupt("block does not match its id", block=block.hex())
    parse_header(data)
