"""The pkt-line kernel against the same in plain Python, and requests read by runs against those read line by line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgit._pktline import cut, ids_named
from shardgit.errors import LimitExceeded, ShardgitError
from shardgit.limits import Limits
from shardgit.oid import HashKind
from shardgit.protocol.pktline import Mark, encode, line
from shardgit.protocol.upload_pack_v0 import RequestV0
from shardgit.protocol.upload_pack_v2 import RequestV2

if TYPE_CHECKING:
    from shardgit.protocol.upload_pack import RequestReader

MARKS = tuple(Mark)
LENGTHS = st.sampled_from([b"0000", b"0001", b"0002", b"0003", b"0004", b"0005", b"000A", b"fff0"])
WORDS = st.sampled_from([b"have ", b"want ", b"haves", b""])
HEX = st.binary(min_size=20, max_size=20).map(lambda raw: raw.hex().encode())
IDS = st.one_of(
    HEX,
    HEX.map(bytes.upper),
    HEX.map(lambda text: text[1:]),
    HEX.map(lambda text: b"g" + text[1:]),
    st.just(b"\xff" * 40),
)
LINES = st.builds(
    lambda word, oid, end: word + oid + end, WORDS, IDS, st.sampled_from([b"\n", b"", b"\n\n"])
)
PACKETS = st.lists(st.one_of(LINES, LINES, st.sampled_from([*MARKS, b"done\n"])), max_size=12)


def plainly_cut(data: bytes) -> tuple[list[bytes | Mark], int]:
    out: list[bytes | Mark] = []
    at = 0
    while len(data) - at >= 4 and all(
        byte in b"0123456789abcdefABCDEF" for byte in data[at : at + 4]
    ):
        size = int(data[at : at + 4], 16)
        if size == 3 or size > 65_520 or (size > 3 and size > len(data) - at):
            break
        out.append(MARKS[size] if size < 3 else data[at + 4 : at + size])
        at += max(size, 4)
    return out, at


@given(
    st.lists(st.one_of(LENGTHS, st.binary(max_size=9).map(line), st.binary(max_size=5))).map(
        b"".join
    )
)
def test_packets_are_cut_as_in_plain_python(data: bytes) -> None:
    for given_as in (data, bytearray(data), memoryview(data)):
        out: list[Any] = []
        at = cut(given_as, MARKS, out)
        assert (out, at) == plainly_cut(data)


@pytest.mark.parametrize(("size", "is_one"), [(65_520, True), (65_521, False)])
def test_the_longest_packet(size: int, is_one: bool) -> None:
    out: list[Any] = []
    data = b"%04x" % size + b"x" * (size - 4)
    assert cut(data, MARKS, out) == (size if is_one else 0)
    assert out == ([data[4:]] if is_one else [])


def named(packet: bytes | Mark, word: bytes) -> bytes | None:
    if isinstance(packet, Mark) or not packet.startswith(word):
        return None
    text = packet[len(word) :].removesuffix(b"\n")
    digits = all(byte in b"0123456789abcdefABCDEF" for byte in text)
    return bytes.fromhex(text.decode()) if len(text) == 40 and digits else None


@given(PACKETS, st.integers(0, 14), WORDS)
def test_ids_are_those_of_one_run(packets: list[bytes | Mark], at: int, word: bytes) -> None:
    plain = []
    for packet in packets[at:]:
        oid = named(packet, word)
        if oid is None:
            break
        plain.append(oid)
    assert ids_named(packets, at, word, 20) == plain


def test_no_place_and_no_id_are_refused() -> None:
    for at, size in ((-1, 20), (0, 0), (0, -5)):
        with pytest.raises(ValueError, match="no such place"):
            ids_named([], at, b"have ", size)


class SlowV0(RequestV0):
    """Takes each line by itself."""

    def _run(self, packets: list[bytes | Mark], at: int) -> int:
        return 0


class SlowV2(RequestV2):
    """The same."""

    def _run(self, packets: list[bytes | Mark], at: int) -> int:
        return 0


def said(reader: RequestReader, pieces: list[bytes]) -> object:
    try:
        for piece in pieces:
            reader.receive(piece)
        return reader.finish()  # type: ignore[attr-defined]
    except ShardgitError as error:
        return type(error), str(error)


@given(PACKETS, st.integers(1, 400), st.integers(1, 12), st.sampled_from([SlowV0, SlowV2]))
def test_requests_are_read_alike_by_runs_and_by_lines(
    packets: list[bytes | Mark], step: int, most: int, slow: type[SlowV0 | SlowV2]
) -> None:
    fast = RequestV0 if slow is SlowV0 else RequestV2
    oid = b"a" * 40
    heads: list[list[bytes | Mark]] = [
        [],
        [b"want " + oid + b" multi_ack\n", Mark.FLUSH],
        [b"command=fetch", Mark.DELIM],
        [b"command=object-info", Mark.DELIM, b"oid " + oid],
        [b"command=ls-refs", Mark.DELIM],
    ]
    limits = Limits(request_lines_max=most)
    for head in heads:
        data = encode([*head, *packets])
        pieces = [data[at : at + step] for at in range(0, len(data), step)]
        asked = said(fast(HashKind.SHA1, limits=limits), pieces)
        assert asked == said(slow(HashKind.SHA1, limits=limits), pieces)


def test_a_run_is_counted_by_lines() -> None:
    haves = line(b"have " + b"b" * 40) * 3
    reader = RequestV0(HashKind.SHA1, limits=Limits(request_lines_max=4))
    with pytest.raises(LimitExceeded):
        reader.receive(line(b"want " + b"a" * 40) + b"0000" + haves)
