"""Pkt-lines: what goes in comes out, and broken framing is one typed error."""

from __future__ import annotations

import pytest

from shardgit.errors import LimitExceeded, MalformedPacket
from shardgit.protocol.pktline import (
    DELIM_BYTES,
    FLUSH_BYTES,
    PACKET_MAX_BYTES,
    PAYLOAD_MAX_BYTES,
    RESPONSE_END_BYTES,
    SIDEBAND,
    SIDEBAND_64K,
    Mark,
    PacketReader,
    band,
    decode,
    encode,
    error_line,
    line,
)


def test_lines_of_the_documentation() -> None:
    # The examples of gitprotocol-common.
    assert line(b"a\n") == b"0006a\n"
    assert line(b"a") == b"0005a"
    assert line(b"foobar\n") == b"000bfoobar\n"
    assert line(b"") == b"0004"


def test_marks_and_data_are_told_apart() -> None:
    data = FLUSH_BYTES + DELIM_BYTES + RESPONSE_END_BYTES + b"0004" + b"0005x"
    assert decode(data) == [Mark.FLUSH, Mark.DELIM, Mark.RESPONSE_END, b"", b"x"]
    assert encode(decode(data)) == data


def test_the_longest_packet_passes_and_a_longer_one_does_not() -> None:
    longest = line(b"x" * PAYLOAD_MAX_BYTES)
    assert len(longest) == PACKET_MAX_BYTES
    assert decode(longest) == [b"x" * PAYLOAD_MAX_BYTES]
    with pytest.raises(LimitExceeded):
        line(b"x" * (PAYLOAD_MAX_BYTES + 1))
    with pytest.raises(MalformedPacket):
        decode(b"%04x" % (PACKET_MAX_BYTES + 1) + b"x" * PAYLOAD_MAX_BYTES)


@pytest.mark.parametrize(
    "head",
    [b"0003", b"ffff", b"fff1", b"000g", b"0x05", b" 005", b"+005", b"0_05", b"-001", b"\0\0\0\5"],
)
def test_an_impossible_length_is_refused_at_once(head: bytes) -> None:
    reader = PacketReader()
    with pytest.raises(MalformedPacket):
        reader.receive(head)


@pytest.mark.parametrize("data", [b"0", b"000", b"0005", b"0006a", b"000000"])
def test_an_end_inside_a_packet_is_refused(data: bytes) -> None:
    reader = PacketReader()
    reader.receive(data)
    with pytest.raises(MalformedPacket):
        reader.finish()


def test_upper_case_lengths_are_read_as_git_reads_them() -> None:
    assert decode(b"000Aabcdef") == [b"abcdef"]


def test_a_packet_that_comes_byte_by_byte_is_not_copied_each_time() -> None:
    reader = PacketReader()
    packet = line(b"y" * PAYLOAD_MAX_BYTES)
    found = [event for at in range(len(packet)) for event in reader.receive(packet[at : at + 1])]
    assert found == [b"y" * PAYLOAD_MAX_BYTES]
    reader.finish()


@pytest.mark.parametrize("room", [SIDEBAND, SIDEBAND_64K])
def test_side_band_packets_are_full_and_in_order(room: int) -> None:
    payload = bytes(range(256)) * 1000
    packets = decode(band(1, payload, room=room))
    assert all(isinstance(packet, bytes) and packet[0] == 1 for packet in packets)
    pieces = [packet[1:] for packet in packets if isinstance(packet, bytes)]
    assert b"".join(pieces) == payload
    assert {len(piece) for piece in pieces[:-1]} == {room}
    assert max(len(line(b"\1" + piece)) for piece in pieces) <= room + 5


def test_an_error_is_one_bounded_line() -> None:
    (packet,) = decode(error_line("two\nlines\x1b[31m \udcff" + "x" * 100_000))
    assert isinstance(packet, bytes)
    assert packet.startswith(b"ERR two lines [31m")
    assert packet.count(b"\n") == 1
    assert len(packet) < 5_000
