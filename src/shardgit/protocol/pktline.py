"""Pkt-lines: Git's framing. Bytes in, packets out; no I/O."""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

from shardgit._pktline import cut
from shardgit.errors import LimitExceeded, MalformedPacket

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKET_MAX_BYTES = 65_520
PAYLOAD_MAX_BYTES = PACKET_MAX_BYTES - 4
FLUSH_BYTES = b"0000"
DELIM_BYTES = b"0001"
RESPONSE_END_BYTES = b"0002"
SIDEBAND_64K = 65_515  # bytes of data in one side-band-64k packet
SIDEBAND = 995  # the same for side-band
ERROR_MAX_BYTES = 4_000  # of an error's text: old clients take no more in one line
_HEX = re.compile(rb"[0-9a-fA-F]{4}")


class Mark(enum.Enum):
    """A packet without payload."""

    FLUSH = 0
    DELIM = 1
    RESPONSE_END = 2


Packet = bytes | Mark
_MARKS = (Mark.FLUSH, Mark.DELIM, Mark.RESPONSE_END)


def line(payload: bytes) -> bytes:
    """Return one packet; the payload is at most 65,516 bytes."""
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise LimitExceeded(
            "packet payload is too large", bytes=len(payload), limit=PAYLOAD_MAX_BYTES
        )
    return b"%04x" % (len(payload) + 4) + payload


def encode(packets: Iterable[Packet]) -> bytes:
    """Return packets and marks as they go over the wire."""
    return b"".join(
        line(packet) if isinstance(packet, bytes) else b"%04x" % packet.value for packet in packets
    )


def band(number: int, payload: bytes, *, room: int = SIDEBAND_64K) -> bytes:
    """Return payload as side-band packets: 1 pack data, 2 progress, 3 fatal error."""
    head = bytes([number])
    if len(payload) <= room:
        return line(head + payload)
    pieces = range(0, len(payload), room)
    return b"".join(line(head + payload[at : at + room]) for at in pieces)


def error_line(text: str) -> bytes:
    """Return an ERR packet, which every client shows and dies of."""
    return line(b"ERR " + one_line(text) + b"\n")


def one_line(text: str) -> bytes:
    """Return an error's text as one bounded line of bytes, without control characters."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return flat.encode("utf-8", "replace")[:ERROR_MAX_BYTES]


class PacketReader:
    """Cuts bytes into packets. ``receive`` takes any pieces; ``finish`` says that no more come.

    An impossible length is MalformedPacket once the packets before it were handed out, so what
    comes out does not depend on the cuts. It holds less than one packet (65,520 bytes) between
    calls.
    """

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._missing = 0  # bytes until the waiting packet is whole, as far as is known
        self._broken: MalformedPacket | None = None

    def receive(self, data: bytes) -> list[Packet]:
        """Return the packets that are whole by now. Errors: MalformedPacket."""
        if self._broken is not None:
            raise self._broken
        if self._waiting:
            self._waiting += data
            self._missing -= len(data)
            if self._missing > 0:
                return []
            data = bytes(self._waiting)
            self._waiting.clear()
        out: list[Packet] = []
        at, end = cut(data, _MARKS, out), len(data)
        self._missing = 4
        if end - at >= 4:
            length = _length(data, at)
            if isinstance(length, MalformedPacket):
                self._broken = length
                if out:
                    return out
                raise length
            self._missing = length
        if at < end:
            self._waiting += data[at:]
            self._missing -= end - at
        return out

    def finish(self) -> None:
        """Raise MalformedPacket when the bytes ended inside a packet, or were broken."""
        if self._broken is not None:
            raise self._broken
        if self._waiting:
            raise MalformedPacket("request ends inside a packet", bytes=len(self._waiting))


class PacketCursor:
    """Hands out packets one at a time, so that what follows the last one stays bytes (a pack).

    ``feed`` gives it bytes, ``next`` takes a packet off, ``rest`` all that is left. It holds what
    was fed and not taken; a packet is at most 65,520 bytes, whatever the cuts.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        if self._at:
            del self._data[: self._at]
            self._at = 0
        self._data += data

    def next(self) -> Packet | None:
        """Return the next packet, None while it is not whole. Errors: MalformedPacket."""
        at = self._at
        left = len(self._data) - at
        if left < 4:
            return None
        length = _length(self._data, at)
        if isinstance(length, MalformedPacket):
            raise length
        if length < 3:
            self._at += 4
            return _MARKS[length]
        if left < length:
            return None
        self._at += length
        return bytes(self._data[at + 4 : at + length])

    def rest(self) -> bytes:
        """Return what was not taken, and forget it."""
        left = bytes(self._data[self._at :])
        self._data.clear()
        self._at = 0
        return left


def _length(data: bytes | bytearray, at: int) -> int | MalformedPacket:
    if _HEX.match(data, at) is None:
        text = ascii(data[at : at + 4].decode("latin-1"))
        return MalformedPacket("packet length is not hex", length=text)
    length = int(data[at : at + 4], 16)
    if length == 3 or length > PACKET_MAX_BYTES:
        return MalformedPacket("packet length is impossible", length=length)
    return length


def decode(data: bytes) -> list[Packet]:
    """Return the packets of a whole message; MalformedPacket when it is cut or broken."""
    reader = PacketReader()
    found = reader.receive(data)
    reader.finish()
    return found
