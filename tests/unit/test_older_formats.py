"""Blocks as older versions wrote them are read as ever."""

from __future__ import annotations

import random
import struct
from array import array

import pytest

from shardgit import _graph, _segment
from shardgit.errors import BlockCorrupt

TRAILER = 48


def test_an_index_piece_of_version_1_and_one_of_version_2_answer_alike() -> None:
    rand = random.Random(3)
    for count in (1, 2, 40, 5_000):
        ids = sorted(rand.randbytes(20) for _ in range(count))
        places = [rand.randrange(1 << rand.choice([4, 20, 31])) for _ in ids]
        positions = struct.pack(f"<{count}I", *places)
        old = b"".join(oid[:8] for oid in ids) + positions
        old = bytes(64) + old + struct.pack("<I8x4s", count, b"SGIX")
        new = bytes(64) + _segment.index_payload(b"".join(ids), positions, 20)
        asked = [*ids[:200], *(rand.randbytes(20) for _ in range(200))]
        for piece in (old, new):
            assert _segment.check_index(piece) == count
            assert _segment.index_rows(piece, 0, (1 << 64) - 1, count + 1) == places
            found = array("q", bytes(8 * len(asked)))
            _segment.index_find(piece, b"".join(asked), 20, array("q", range(len(asked))), found)
            for oid, at in zip(ids[:200], found, strict=False):
                key = int.from_bytes(oid[:8], "big")
                rows = [at] if at >= 0 else _segment.index_rows(piece, key, key, 100)
                assert places[ids.index(oid)] in rows
            low, high = sorted(rand.randrange(1 << 64) for _ in range(2))
            inside = [
                at
                for oid, at in zip(ids, places, strict=True)
                if low <= int.from_bytes(oid[:8], "big") <= high
            ]
            rows = _segment.index_rows(piece, low, high, count)
            # A row of version 2 knows a part of its key: those at the ends may lie outside.
            assert set(inside) <= set(rows)
            assert len(rows) <= len(inside) + 2


def test_ids_that_share_their_first_bytes_are_all_found() -> None:
    rand = random.Random(4)
    ids = sorted(b"\xab\xcd" * 4 + rand.randbytes(12) for _ in range(300))
    ids = sorted([*ids, bytes(20), b"\xff" * 20])
    piece = bytes(64) + _segment.index_payload(
        b"".join(ids), struct.pack(f"<{len(ids)}I", *range(len(ids))), 20
    )
    assert _segment.check_index(piece) == len(ids)
    key = int.from_bytes(b"\xab\xcd" * 4, "big")
    assert set(_segment.index_rows(piece, key, key, 1_000)) >= set(range(1, 301))
    assert _segment.index_rows(piece, 0, 0, 10) == [0]
    assert len(ids) - 1 in _segment.index_rows(piece, (1 << 64) - 1, (1 << 64) - 1, 10)


def widened(segment: bytes, hash_size: int) -> bytes:
    """Return a segment as the first version wrote it: 4 bytes a number, and the ordinals sorted by id."""
    trailer = bytearray(segment[-TRAILER:])
    end, count, big, _, _ = struct.unpack_from("<5I", trailer)
    offset_width, size_width = trailer[23] & 7, trailer[23] >> 3
    at = end + count * hash_size
    ids = [segment[end + k * hash_size : end + (k + 1) * hash_size] for k in range(count)]
    offsets = [
        int.from_bytes(segment[at + k * offset_width : at + (k + 1) * offset_width], "little")
        for k in range(count)
    ]
    at += count * offset_width
    sizes = [
        int.from_bytes(segment[at + k * size_width : at + (k + 1) * size_width], "little")
        for k in range(count)
    ]
    at += count * size_width
    assert not big
    order = sorted(range(count), key=lambda k: ids[k])
    trailer[23] = 0
    return b"".join(
        (
            segment[: end + count * hash_size],
            struct.pack(f"<{count}I", *offsets),
            struct.pack(f"<{count}I", *sizes),
            struct.pack(f"<{count}H", *order),
            segment[at:-TRAILER],
            trailer,
        )
    )


@pytest.fixture(scope="module")
def segments() -> list[bytes]:
    from fuzz.targets import segments as made

    return made()


def test_a_segment_of_version_1_is_read_as_one_of_today(segments: list[bytes]) -> None:
    for segment in segments:
        old = widened(segment, 20)
        count = _segment.check(segment, 20)
        assert _segment.check(old, 20) == count
        some = range(count)
        assert _segment.sizes_at(old, 20, some) == _segment.sizes_at(segment, 20, some)
        assert _segment.offsets_of(old, 20) == _segment.offsets_of(segment, 20)
        assert _segment.ids_of(old, 20) == _segment.ids_of(segment, 20)
        assert _segment.find(old, 20, _segment.ids_at(old, 20, [count - 1])[0]) == count - 1
        swapped = bytearray(old)
        if count > 1:  # the ordinals of version 1 are held to the order of ids
            at = struct.unpack_from("<I", old, len(old) - TRAILER)[0] + count * 28
            swapped[at : at + 4] = old[at + 2 : at + 4] + old[at : at + 2]
            with pytest.raises(BlockCorrupt):
                _segment.check(bytes(swapped), 20)


def stream(commits: int, rand: random.Random) -> bytes:
    head = struct.pack("<4sHHIIIIIII", b"SGGR", 1, 1, commits, 1, 2, 3, commits, 5, 1)
    words = [rand.randrange(-(1 << 40), 1 << 40) for _ in range(commits)]
    rest = commits * 2 + commits + 1 + commits + 1 + 2 + 3 + 5
    numbers = [rand.choice([0, 1, 5, 1 << 31, 0xFFFFFFFF]) for _ in range(rest)]
    return b"".join(
        (
            head.ljust(64, b"\0"),
            struct.pack(f"<{commits}q", *words),
            struct.pack(f"<{rest}I", *numbers),
            rand.randbytes(20),
        )
    )


def test_a_packed_graph_stream_is_the_one_that_was_packed() -> None:
    rand = random.Random(5)
    for commits in (0, 1, 300):
        plain = stream(commits, rand)
        packed = _graph.pack_stream(plain)
        assert packed != plain
        assert _graph.unpack_stream(packed) == plain
        assert _graph.unpack_stream(plain) == plain


def test_a_damaged_packed_graph_stream_is_refused() -> None:
    packed = _graph.pack_stream(stream(40, random.Random(6)))
    for damaged in (
        packed[:100],
        packed[:70] + bytes([packed[70] ^ 1]) + packed[71:],
        packed[:36] + struct.pack("<Q", 1 << 60) + packed[44:],
        packed[:44] + struct.pack("<Q", 1 << 60) + packed[52:],
        packed[:8] + struct.pack("<I", 0xFFFFFFFF) + packed[12:],
        packed[:8] + struct.pack("<I", 41) + packed[12:],
    ):
        with pytest.raises(BlockCorrupt):
            _graph.unpack_stream(damaged)
