"""Filter specs and numbers in requests."""

from __future__ import annotations

import pytest

from shardgit.errors import InvalidArgument, LimitExceeded
from shardgit.limits import Limits
from shardgit.protocol.filter_spec import Filter, FilterKind, parse_filter
from shardgit.protocol.numbers import parse_int, parse_size, parse_time

NONE = Filter(FilterKind.BLOB_NONE)


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        (b"blob:none", (NONE,)),
        (b"blob:limit=0", (Filter(FilterKind.BLOB_LIMIT, 0),)),
        (b"blob:limit=10M", (Filter(FilterKind.BLOB_LIMIT, 10 << 20),)),
        (b"blob:limit=0x10g", (Filter(FilterKind.BLOB_LIMIT, 16 << 30),)),
        (b"tree:1k", (Filter(FilterKind.TREE_DEPTH, 1024),)),
        (b"object:type=tag", (Filter(FilterKind.OBJECT_TYPE, 4),)),
        (b"sparse:oid=main:a=b", (Filter(FilterKind.SPARSE, name=b"main:a=b"),)),
        (b"combine:blob:none", (NONE,)),
        (b"combine:+blob:none+", (NONE,)),
        (b"combine:tree%3A2+blob:none", (Filter(FilterKind.TREE_DEPTH, 2), NONE)),
        (
            b"combine:sparse:oid=a%2bb%25+combine:tree:1%2Bcombine:blob:none",
            (
                Filter(FilterKind.SPARSE, name=b"a+b%"),
                Filter(FilterKind.TREE_DEPTH, 1),
                NONE,
            ),
        ),
        (b"combine:sparse:oid=a%zz%0", (Filter(FilterKind.SPARSE, name=b"a%zz%0"),)),
    ],
)
def test_a_spec_names_filters(spec: bytes, want: tuple[Filter, ...]) -> None:
    assert parse_filter(spec) == want


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (b"", "invalid filter-spec ''"),
        (b"blob:some", "invalid filter-spec 'blob:some'"),
        (b"blob:limit=", "invalid filter-spec 'blob:limit='"),
        (b"blob:limit=-1", "invalid filter-spec"),
        (b"blob:limit=99999999999999999999", "invalid filter-spec"),
        (b"blob:limit=18446744073709551615k", "invalid filter-spec"),
        (b"tree:", "expected 'tree:<depth>'"),
        (b"tree:x", "expected 'tree:<depth>'"),
        (b"object:type=commits", "'commits' for 'object:type=<type>' is not a valid object type"),
        (b"sparse:path=x", "sparse:path filters support has been dropped"),
        (b"auto", "'auto' filter not supported by this command"),
        (b"combine:", "expected something after combine:"),
        (b"combine:+", "expected something after combine:"),
        (b"combine:tree:1 +blob:none", "must escape char in sub-filter-spec: ' '"),
        (b"combine:sparse:oid=a@b", "must escape char in sub-filter-spec: '@'"),
    ],
)
def test_what_is_no_filter_is_refused_in_gits_words(spec: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_filter(spec)
    assert words in str(caught.value)


def test_nesting_and_parts_are_bounded() -> None:
    limits = Limits(filters_max=4, filter_depth_max=2)
    assert len(parse_filter(b"combine:" + b"+".join([b"tree:1"] * 4), limits=limits)) == 4
    for spec in (b"combine:" + b"+".join([b"tree:1"] * 5), b"combine:" * 3 + b"tree:1"):
        with pytest.raises(LimitExceeded):
            parse_filter(spec, limits=limits)
    with pytest.raises(LimitExceeded):
        parse_filter(b"combine:" * 8_000)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (b"1", 1),
        (b" +7", 7),
        (b"-3", -3),
        (b"0x1F", 31),
        (b"010", 8),
        (b"2147483647", 0x7FFFFFFF),
        (b"4294967297", 1),  # as a C int
        (b"9" * 100, -1),
        (b"", None),
        (b"x", None),
        (b"1 ", None),
        (b"08", None),
    ],
)
def test_depths_are_read_as_c_reads_them(text: bytes, want: int | None) -> None:
    assert parse_int(text) == want


def test_times_and_sizes() -> None:
    assert parse_time(b"1700000000") == 1_700_000_000
    assert parse_time(b"-1") == (1 << 64) - 1
    assert parse_time(b"9" * 30) == (1 << 64) - 1
    assert parse_time(b"yesterday") is None
    assert [parse_size(text) for text in (b"1", b"2k", b"3 k", b"1t", b"k")] == [
        1,
        2048,
        None,
        None,
        None,
    ]
