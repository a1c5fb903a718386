"""Any bytes give packets and requests, or one typed error, however they are cut."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from hypothesis import given
from hypothesis import strategies as st

from shardgit.errors import InvalidArgument, LimitExceeded, MalformedPacket, ShardgitError
from shardgit.limits import Limits
from shardgit.oid import HashKind
from shardgit.protocol.pktline import Mark, Packet, PacketReader, band, decode, encode
from shardgit.protocol.receive_pack import PushReader, PushRequest
from shardgit.protocol.upload_pack import Fetch
from shardgit.protocol.upload_pack_v0 import RequestV0
from shardgit.protocol.upload_pack_v2 import RequestV2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardgit.protocol.upload_pack_v2 import Command

T = TypeVar("T")
LIMITS = Limits(
    request_lines_max=40,
    refs_prefixes_max=4,
    push_commands_max=9,
    push_head_max_bytes=2_000,
    push_ref_name_max_bytes=60,
    push_options_max=5,
)
OID = b"0123456789abcdef0123456789abcdef01234567"
WORDS = [
    b"command=fetch",
    b"command=ls-refs\n",
    b"command=push",
    b"agent=x",
    b"object-format=sha1",
    b"object-format=sha256",
    b"server-option=1",
    b"peel",
    b"symrefs\n",
    b"unborn",
    b"ref-prefix refs/",
    b"want " + OID,
    b"want " + OID + b" multi_ack side-band-64k",
    b"have " + OID + b"\n",
    b"have " + OID[::-1],
    b"want " + OID * 2,
    b"thin-pack",
    b"ofs-delta",
    b"wait-for-done",
    b"sideband-all",
    b"done\n",
    b"shallow " + OID,
    b"",
]
packets: st.SearchStrategy[Packet] = st.one_of(
    st.sampled_from(WORDS), st.sampled_from(list(Mark)), st.binary(max_size=40)
)
almost_requests = st.one_of(
    st.binary(max_size=200),
    st.lists(packets, max_size=50).map(encode),
    st.tuples(st.lists(packets, max_size=12).map(encode), st.binary(max_size=9)).map(b"".join),
)


def cut(data: bytes, at: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    return (data[a:b] for a, b in pairwise(edges))


def outcome(work: Callable[[], T]) -> T | tuple[type[ShardgitError], str]:
    try:
        return work()
    except (InvalidArgument, LimitExceeded) as error:
        return type(error), str(error)


@given(st.lists(st.one_of(st.binary(max_size=2_000), st.sampled_from(list(Mark))), max_size=30))
def test_packets_come_out_as_they_went_in(some: list[Packet]) -> None:
    assert decode(encode(some)) == some


@given(almost_requests, st.lists(st.integers(0, 10_000), max_size=8))
def test_packets_do_not_depend_on_the_cuts(data: bytes, at: list[int]) -> None:
    def read(pieces: Iterator[bytes]) -> list[Packet]:
        reader = PacketReader()
        out = [packet for piece in pieces for packet in reader.receive(piece)]
        reader.finish()
        return out

    whole = outcome(lambda: read(iter([data])))
    assert outcome(lambda: read(cut(data, at))) == whole
    if isinstance(whole, tuple):
        assert whole[0] is MalformedPacket
    else:
        assert encode(whole).lower() == data.lower()


@given(
    st.sampled_from([RequestV0, RequestV2]),
    st.sampled_from(list(HashKind)),
    almost_requests,
    st.lists(st.integers(0, 10_000), max_size=6),
)
def test_any_body_is_a_request_or_one_typed_error(
    version: type[RequestV0 | RequestV2], kind: HashKind, data: bytes, at: list[int]
) -> None:
    def read(pieces: Iterator[bytes]) -> Command | None:
        reader = version(kind, limits=LIMITS)
        for piece in pieces:
            reader.receive(piece)
        return reader.finish()

    whole = outcome(lambda: read(iter([data])))
    assert outcome(lambda: read(cut(data, at))) == whole
    if isinstance(whole, Fetch):
        assert len(set(whole.wants)) == len(whole.wants)
        assert all(len(oid) == kind.size for oid in (*whole.wants, *whole.haves))


PUSH_WORDS = [
    b"0" * 40 + b" " + OID + b" refs/heads/x\0report-status side-band-64k",
    b"0" * 64 + b" " + b"1" * 64 + b" refs/heads/x\0object-format=sha256",
    OID + b" " + OID + b" refs/heads/y\n",
    OID + b" " + b"0" * 40 + b" refs/heads/z\0push-options atomic",
    OID + b" " + OID + b" " + b"x" * 61,
    b"shallow " + OID,
    b"push-cert\0 report-status-v2 push-options\n",
    b"certificate version 0.1\n",
    b"nonce 1-2\n",
    b"\n",
    b"-----BEGIN PGP SIGNATURE-----\n",
    b"push-cert-end\n",
    b"option\n",
    b"ERR x",
]
push_packets: st.SearchStrategy[Packet] = st.one_of(
    st.sampled_from(PUSH_WORDS),
    st.sampled_from([Mark.FLUSH, Mark.FLUSH, Mark.DELIM]),
    st.binary(max_size=9),
)
almost_pushes = st.one_of(
    st.binary(max_size=200),
    st.tuples(st.lists(push_packets, max_size=20).map(encode), st.binary(max_size=30)).map(
        b"".join
    ),
    st.tuples(
        st.lists(st.sampled_from(PUSH_WORDS[:4]), max_size=4).map(
            lambda some: encode([*some, Mark.FLUSH, b"option", Mark.FLUSH])
        ),
        st.binary(max_size=30),
    ).map(b"".join),
)


@given(
    st.sampled_from(list(HashKind)),
    almost_pushes,
    st.lists(st.integers(0, 10_000), max_size=6),
)
def test_any_push_is_a_request_or_one_typed_error(
    kind: HashKind, data: bytes, at: list[int]
) -> None:
    def read(pieces: Iterator[bytes]) -> tuple[PushRequest | None, bytes]:
        reader = PushReader(kind, limits=LIMITS)
        rest = b"".join(reader.receive(piece) or b"" for piece in pieces)
        return reader.finish(), rest

    whole = outcome(lambda: read(iter([data])))
    assert outcome(lambda: read(cut(data, at))) == whole
    if isinstance(whole[0], PushRequest):
        assert data.endswith(whole[1])
        assert 1 <= len(whole[0].commands) <= LIMITS.push_commands_max
        ids = [oid for each in whole[0].commands for oid in (each.old, each.new)]
        assert all(oid is None or (len(oid) == kind.size and any(oid)) for oid in ids)


@given(st.binary(max_size=5_000), st.integers(1, 3), st.sampled_from([7, 995, 65_515]))
def test_side_bands_carry_their_payload(payload: bytes, number: int, room: int) -> None:
    found = decode(band(number, payload, room=room))
    assert b"".join(packet[1:] for packet in found if isinstance(packet, bytes)) == payload
    assert all(isinstance(packet, bytes) and packet[0] == number for packet in found)
