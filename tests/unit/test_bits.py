"""Bitsets as bytes, against Python's integers."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from shardgit._bits import common, counts, union, without

SETS = st.binary(max_size=40)


def number(bits: bytes) -> int:
    return int.from_bytes(bits, "little")


@given(st.lists(SETS, max_size=4))
def test_a_union_holds_what_any_holds(sets: list[bytes]) -> None:
    found = 0
    for one in sets:
        found |= number(one)
    assert union(*sets) == found.to_bytes(max(map(len, sets), default=0), "little")


@given(SETS, SETS)
def test_what_both_hold_and_what_one_leaves(one: bytes, other: bytes) -> None:
    both = number(one) & number(other)
    assert common(one, other) == both.to_bytes(max(len(one), len(other)), "little")
    assert without(one, other) == (number(one) & ~number(other)).to_bytes(len(one), "little")


@given(SETS, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=8))
def test_counts_are_those_of_each_range(bits: bytes, spans: list[tuple[int, int]]) -> None:
    plain = [
        (at, (number(bits) >> first & ((1 << size) - 1)).bit_count())
        for at, (first, size) in enumerate(spans)
    ]
    firsts, sizes = (array("q", [span[n] for span in spans]) for n in (0, 1))
    assert counts(bits, firsts, sizes) == [(at, some) for at, some in plain if some]
