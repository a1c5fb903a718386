"""The list of an LFS object's parts. See docs/formats/lfs.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shardgit.blocks.block import BLOCK_MAX_BYTES, HEADER_SIZE, BlockKind, new_header, parse_header
from shardgit.errors import BlockCorrupt
from shardgit.oid import BlockId, HashKind, PoolId

MAGIC = b"SGLF"
VERSION = 1
LIST = 1  # flag of a part block that lists others
_HEAD = struct.Struct("<4sHHIIQ32s8x")
_ID_BYTES = 32
PARTS_MAX = (BLOCK_MAX_BYTES - HEADER_SIZE - _HEAD.size) // _ID_BYTES


def new_part(pool: PoolId, data: bytes) -> bytes:
    """Return a part block with a piece of an object."""
    length = HEADER_SIZE + len(data)
    return new_header(BlockKind.PART, HashKind.SHA256, pool, length) + data


@dataclass(frozen=True, slots=True)
class PartList:
    """An object's parts in order; each holds ``piece`` bytes, the last what is left."""

    oid: bytes
    size: int
    piece: int
    parts: tuple[BlockId, ...]

    def encode(self, pool: PoolId) -> bytes:
        """Return the list's block."""
        assert len(self.parts) == -(-self.size // self.piece) > 1
        head = _HEAD.pack(MAGIC, VERSION, 0, self.piece, len(self.parts), self.size, self.oid)
        data = head + b"".join(self.parts)
        length = HEADER_SIZE + len(data)
        header = new_header(BlockKind.PART, HashKind.SHA256, pool, length, flags=LIST)
        return header + data


def decode_parts(block: bytes) -> PartList:
    """Return the list in a block; BlockCorrupt when it is off."""
    header = parse_header(block, kind=BlockKind.PART)
    if header.flags != LIST or len(block) < HEADER_SIZE + _HEAD.size:
        raise BlockCorrupt("part block is no list", bytes=len(block))
    magic, version, _, piece, count, size, oid = _HEAD.unpack_from(block, HEADER_SIZE)
    start = HEADER_SIZE + _HEAD.size
    if magic != MAGIC or version != VERSION:
        raise BlockCorrupt("part list has an unknown magic or version", version=version)
    if not piece or count < 2 or count != -(-size // piece):
        raise BlockCorrupt("part list has an impossible count", parts=count, size=size)
    if len(block) != start + count * _ID_BYTES:
        raise BlockCorrupt("part list has another length than it claims", bytes=len(block))
    ids = (BlockId(block[at : at + _ID_BYTES]) for at in range(start, len(block), _ID_BYTES))
    return PartList(oid, size, piece, tuple(ids))


def part_payload(block: memoryview, low: int, high: int, *, length: int) -> bytes:
    """Return bytes of a part that holds ``length``; BlockCorrupt when it is another."""
    header = parse_header(block, kind=BlockKind.PART)
    if header.flags or len(block) != HEADER_SIZE + length:
        raise BlockCorrupt("part has another length than its list says", bytes=len(block))
    return bytes(block[HEADER_SIZE + low : HEADER_SIZE + high])
