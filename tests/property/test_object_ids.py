"""Ids of objects hashed side by side are those of objects hashed alone."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgit._fastpack import object_ids
from shardgit.errors import Internal
from shardgit.oid import HashKind

NAMES = {1: b"commit", 2: b"tree", 3: b"blob", 4: b"tag"}
LANES = (0, 1, 3, 8)  # what the machine lacks falls back to none
# With its header of 6 to 15 bytes an object ends just before, at, or behind the edges of 64-byte blocks.
SIZES = st.one_of(st.integers(0, 200), st.integers(0, 5_000))


def alone(kind: HashKind, type_: int, data: bytes) -> bytes:
    made = hashlib.sha1() if kind is HashKind.SHA1 else hashlib.sha256()
    made.update(b"%s %d\0" % (NAMES[type_], len(data)) + data)
    return made.digest()


@given(
    st.lists(st.tuples(st.sampled_from(sorted(NAMES)), SIZES), max_size=40),
    st.integers(0, 1 << 32),
    st.sampled_from(HashKind),
)
def test_ids_are_those_of_objects_hashed_alone(
    shapes: list[tuple[int, int]], seed: int, kind: HashKind
) -> None:
    rand = random.Random(seed)
    types = [type_ for type_, _ in shapes]
    objects = [rand.randbytes(size) for _, size in shapes]
    wanted = [alone(kind, type_, data) for type_, data in zip(types, objects, strict=True)]
    for lanes in LANES:
        attacks: list[int] = []
        assert object_ids(kind, types, objects, lanes) == wanted
        assert object_ids(kind, types, objects, lanes, attacks) == wanted
        assert attacks == []


@pytest.mark.parametrize("lanes", LANES)
def test_every_size_around_the_edges_of_blocks(lanes: int) -> None:
    objects = [bytes([size & 255]) * size for size in range(400)]
    wanted = [alone(HashKind.SHA1, 3, data) for data in objects]
    assert object_ids(HashKind.SHA1, [3] * 400, objects, lanes) == wanted
    assert object_ids(HashKind.SHA1, [3] * 400, objects, lanes, []) == wanted


@pytest.mark.parametrize("lanes", LANES)
def test_a_long_object_among_many_short_ones(lanes: int) -> None:
    objects = [b"short %d" % number for number in range(50)]
    objects.insert(7, random.Random(7).randbytes(3_000_000))
    wanted = [alone(HashKind.SHA1, 3, data) for data in objects]
    assert object_ids(HashKind.SHA1, [3] * 51, objects, lanes) == wanted
    assert object_ids(HashKind.SHA1, [3] * 51, objects, lanes, []) == wanted


def test_a_type_that_is_none_is_refused() -> None:
    for type_ in (0, 5, -1):
        with pytest.raises(Internal):
            object_ids(HashKind.SHA1, [1, type_], [b"", b""])
    with pytest.raises(Internal):
        object_ids(HashKind.SHA1, [1], [b"", b""])
