"""Protocols v0 and v1: refs shown, requests read. Negotiation is judged by git in interop."""

from __future__ import annotations

import pytest

from shardgit.errors import InvalidArgument, LimitExceeded, MalformedPacket
from shardgit.limits import Limits
from shardgit.oid import HashKind, ObjectId
from shardgit.protocol.deepening import Deepening
from shardgit.protocol.filter_spec import Filter, FilterKind
from shardgit.protocol.pktline import Mark, Packet, decode, encode
from shardgit.protocol.upload_pack import AdvertisedRef, Fetch, Offer
from shardgit.protocol.upload_pack_v0 import (
    AdvertisementV0,
    NegotiationV0,
    RequestV0,
    parse_v0,
    shallow_lines,
)

SHA1 = HashKind.SHA1
A, B = ObjectId(b"\xaa" * 20), ObjectId(b"\xbb" * 20)
HEX_A, HEX_B = A.hex().encode(), B.hex().encode()


def wants(capabilities: bytes, *after: Packet) -> bytes:
    return encode([b"want " + HEX_A + capabilities + b"\n", Mark.FLUSH, *after])


def test_the_first_line_carries_the_capabilities() -> None:
    writer = AdvertisementV0(SHA1, "1.2")
    first = writer.add(
        [
            AdvertisedRef(b"HEAD", A, None, b"refs/heads/main"),
            AdvertisedRef(b"refs/heads/main", A),
        ]
    )
    second = writer.add([AdvertisedRef(b"refs/tags/v1", B, A)])
    lines = decode(first + second + writer.end())
    assert lines == [
        HEX_A + b" HEAD\0multi_ack thin-pack side-band side-band-64k ofs-delta shallow"
        b" deepen-since deepen-not deepen-relative no-progress include-tag multi_ack_detailed"
        b" allow-tip-sha1-in-want allow-reachable-sha1-in-want no-done"
        b" symref=HEAD:refs/heads/main filter object-format=sha1 agent=shardgit/1.2\n",
        HEX_A + b" refs/heads/main\n",
        HEX_B + b" refs/tags/v1\n",
        HEX_A + b" refs/tags/v1^{}\n",
        Mark.FLUSH,
    ]


def test_without_refs_the_capabilities_have_a_line_of_their_own() -> None:
    writer = AdvertisementV0(HashKind.SHA256, "1.2")
    unborn = [AdvertisedRef(b"HEAD", None, None, b"refs/heads/main")]
    line, flush = decode(writer.add(unborn) + writer.end())
    assert isinstance(line, bytes)
    assert line.startswith(b"0" * 64 + b" capabilities^{}\0multi_ack ")
    assert b"symref" not in line
    assert flush is Mark.FLUSH


def test_capabilities_of_a_request() -> None:
    words = b" multi_ack_detailed no-done side-band-64k thin-pack include-tag ofs-delta agent=git/2"
    got = parse_v0(wants(words, b"have " + HEX_B + b"\n", b"done\n"), SHA1)
    assert got == Fetch(
        0,
        (A,),
        (B,),
        done=True,
        thin_pack=True,
        ofs_delta=True,
        include_tag=True,
        no_done=True,
        multi_ack=2,
        sideband=2,
    )
    plain = parse_v0(wants(b" multi_ack side-band no-progress", b"done"), SHA1)
    assert plain == Fetch(0, (A,), done=True, multi_ack=1, sideband=1, no_progress=True)


def test_the_boundary_and_a_filter_stand_among_the_wants() -> None:
    data = encode(
        [
            b"want " + HEX_A + b" deepen-relative filter session-id=s",
            b"shallow " + HEX_B,
            b"deepen 0x10",
            b"filter tree:1",
            Mark.FLUSH,
        ]
    )
    got = parse_v0(data, SHA1)
    assert got == Fetch(
        0,
        (A,),
        deepening=Deepening((B,), depth=16, relative=True),
        filters=(Filter(FilterKind.TREE_DEPTH, 1),),
        shallow_only=True,
        session_id=b"s",
    )
    more = parse_v0(data + encode([b"have " + HEX_B, b"done"]), SHA1)
    assert more is not None
    assert (more.haves, more.done, more.shallow_only) == ((B,), True, False)
    lines: list[Packet] = [
        b"want " + HEX_A,
        b"deepen-since 7",
        b"deepen-not a",
        b"deepen-not b",
        Mark.FLUSH,
    ]
    by_commits = parse_v0(encode(lines), SHA1)
    assert by_commits is not None
    assert by_commits.deepening == Deepening(since=7, without=(b"a", b"b"))
    only_told: list[Packet] = [b"want " + HEX_A, b"shallow " + HEX_B, Mark.FLUSH]
    assert parse_v0(encode(only_told), SHA1) is None


def test_a_filter_is_not_negotiated_where_none_is_offered() -> None:
    data = encode([b"want " + HEX_A + b" filter", b"filter tree:0", Mark.FLUSH, b"done"])
    reader = RequestV0(SHA1, offer=Offer(filters=False))
    with pytest.raises(InvalidArgument, match="filtering capability not negotiated"):
        reader.receive(data)


def test_a_moved_boundary_is_told_in_lines() -> None:
    assert decode(shallow_lines([A], [B])) == [
        b"shallow " + HEX_A,
        b"unshallow " + HEX_B,
        Mark.FLUSH,
    ]


def test_capabilities_stand_on_any_want() -> None:
    data = encode([b"want " + HEX_A, b"want " + HEX_B + b" ofs-delta", Mark.FLUSH, b"done"])
    assert parse_v0(data, SHA1) == Fetch(0, (A, B), done=True, ofs_delta=True)


def test_a_request_is_one_round() -> None:
    data = wants(b"", b"have " + HEX_A, Mark.FLUSH, b"have " + HEX_B, b"done")
    assert parse_v0(data, SHA1) == Fetch(0, (A,), (A,))


@pytest.mark.parametrize("data", [b"", b"0000", b"0000garbage", wants(b"")])
def test_a_client_that_wants_nothing_or_no_more_gets_nothing(data: bytes) -> None:
    assert parse_v0(data, SHA1) is None


@pytest.mark.parametrize(
    "data",
    [
        encode([b"have " + HEX_A, Mark.FLUSH]),
        encode([b"deepen 0", Mark.FLUSH]),
        encode([b"deepen -1", Mark.FLUSH]),
        encode([b"deepen 1x", Mark.FLUSH]),
        encode([b"deepen-since -1", Mark.FLUSH]),
        encode([b"deepen-since tomorrow", Mark.FLUSH]),
        encode([b"shallow " + HEX_A[1:], Mark.FLUSH]),
        encode([b"want " + HEX_A, b"filter blob:none", Mark.FLUSH]),
        encode([b"want " + HEX_A, b"deepen 1", b"deepen-not main", Mark.FLUSH]),
        encode([b"want " + HEX_A + b" filter", b"filter blob:nix", Mark.FLUSH]),
        encode([b"want " + HEX_A + b" filter", *[b"filter tree:0"] * 2, Mark.FLUSH]),
        encode([b"want", Mark.FLUSH]),
        encode([b"want " + HEX_A[:-2], Mark.FLUSH]),
        wants(b"x", b"done"),
        wants(b" object-format=sha256", b"done"),
        wants(b"", b"have x"),
        wants(b"", b"want " + HEX_A),
        wants(b"", b"shallow " + HEX_A),
    ],
)
def test_words_that_are_off_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_v0(data, SHA1)


@pytest.mark.parametrize(
    "data",
    [
        encode([b"want " + HEX_A]),
        wants(b"", b"have " + HEX_B),
        wants(b"", b"have " + HEX_B)[:-3],
        wants(b"", Mark.DELIM),
        encode([Mark.RESPONSE_END]),
    ],
)
def test_broken_framing_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedPacket):
        parse_v0(data, SHA1)


def test_lines_are_bounded() -> None:
    reader = RequestV0(SHA1, limits=Limits(request_lines_max=5))
    with pytest.raises(LimitExceeded):
        reader.receive(encode([b"want " + HEX_A] * 6))


def test_without_multi_ack_one_common_is_acknowledged_once() -> None:
    talk = NegotiationV0(Fetch(0, (A,)), lambda: True)
    assert talk.have(B, known=False, news=False) == b""
    assert decode(talk.have(A, known=True, news=True)) == [b"ACK " + HEX_A + b"\n"]
    assert talk.have(B, known=True, news=True) == b""
    assert talk.done() == (b"", True)
