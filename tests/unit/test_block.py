"""The block's header, id and partition."""

from __future__ import annotations

import struct
import time

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from shardgit.blocks.block import (
    BLOCK_MAX_BYTES,
    HEADER_SIZE,
    BlockHeader,
    BlockKind,
    block_id,
    new_header,
    parse_header,
    partition_of,
    verify_block,
)
from shardgit.errors import BlockCorrupt
from shardgit.oid import BlockId, HashKind, PoolId

POOL = PoolId(bytes(range(16)))


def header_of(**changes: object) -> bytes:
    """A header made by hand from docs/formats/block.md."""
    fields: dict[str, object] = {
        "magic": b"SGB1",
        "version": 1,
        "kind": 1,
        "hash": 1,
        "flags": 0,
        "length": 64,
        "pool": POOL,
        "created": 1_700_000_000_000,
        "nonce": b"n" * 16,
    }
    fields.update(changes)
    return struct.pack("<4sBBBBQ16sQ16s8x", *fields.values())


def test_a_header_is_as_the_format_page_says() -> None:
    header = BlockHeader(
        BlockKind.SEGMENT, HashKind.SHA1, 0, 64, POOL, 1_700_000_000_000, b"n" * 16
    )
    assert header.pack() == header_of()
    assert parse_header(header_of()) == header
    assert parse_header(memoryview(header_of()), kind=BlockKind.SEGMENT) == header
    assert len(header.pack()) == HEADER_SIZE


@given(st.sampled_from(BlockKind), st.sampled_from(HashKind), st.integers(0, 255))
def test_a_header_comes_back_as_it_was_made(kind: BlockKind, hashes: HashKind, flags: int) -> None:
    data = new_header(kind, hashes, POOL, 100, flags=flags) + bytes(36)
    header = parse_header(data, kind=kind)
    assert (header.kind, header.hash_kind, header.flags) == (kind, hashes, flags)
    assert (header.length, header.pool) == (100, POOL)
    assert abs(header.created_ms - time.time_ns() // 1_000_000) < 60_000


def test_an_id_is_never_born_twice() -> None:
    made = {block_id(new_header(BlockKind.PART, HashKind.SHA1, POOL, 64)) for _ in range(100)}
    assert len(made) == 100


@pytest.mark.parametrize(
    "changes",
    [
        {"magic": b"SGB2"},
        {"version": 0},
        {"version": 2},
        {"kind": 0},
        {"kind": 8},
        {"hash": 0},
        {"hash": 3},
        {"length": 63},
        {"length": 65},
        {"length": (1 << 64) - 1},
    ],
)
def test_a_header_that_is_off_is_refused(changes: dict[str, object]) -> None:
    data = header_of(**changes)
    with pytest.raises(BlockCorrupt):
        parse_header(data)
    with pytest.raises(BlockCorrupt):
        verify_block(block_id(data), data)


def test_a_block_of_another_kind_than_wanted_is_refused() -> None:
    with pytest.raises(BlockCorrupt):
        parse_header(header_of(), kind=BlockKind.INDEX)


def test_a_block_longer_than_8_mib_is_refused() -> None:
    size = BLOCK_MAX_BYTES + 1
    with pytest.raises(BlockCorrupt):
        parse_header(header_of(length=size) + bytes(size - HEADER_SIZE))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_block_corrupt(data: bytes) -> None:
    with pytest.raises(BlockCorrupt):
        parse_header(data)


def test_an_id_is_blake3_and_its_first_two_bytes_the_partition() -> None:
    data = header_of()
    assert block_id(data) == blake3(data).digest()
    assert partition_of(BlockId(b"\x12\x34" + bytes(30))) == 0x1234
    verify_block(block_id(data), data)
    verify_block(block_id(data), memoryview(data))


@given(st.integers(0, 99), st.integers(0, 7))
def test_any_flipped_bit_is_found(at: int, bit: int) -> None:
    data = header_of(length=100) + bytes(36)
    broken = bytearray(data)
    broken[at] ^= 1 << bit
    with pytest.raises(BlockCorrupt):
        verify_block(block_id(data), bytes(broken))
