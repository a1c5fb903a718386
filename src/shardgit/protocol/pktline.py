"""Pkt-lines: Git's framing. Bytes in, packets out; no I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardgit.errors import LimitExceeded, MalformedPacket

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKET_MAX_BYTES = 65_520
PAYLOAD_MAX_BYTES = PACKET_MAX_BYTES - 4
FLUSH_BYTES = b"0000"
DELIM_BYTES = b"0001"
RESPONSE_END_BYTES = b"0002"
SIDEBAND_64K = 65_515  # bytes of data in one side-band-64k packet
SIDEBAND = 995  # the same for side-band


class Mark(enum.Enum):
    """A packet without payload."""

    FLUSH = 0
    DELIM = 1
    RESPONSE_END = 2


Packet = bytes | Mark


def line(payload: bytes) -> bytes:
    """Return one packet; the payload is at most 65,516 bytes."""
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise LimitExceeded("packet payload is too large", bytes=len(payload), limit=PAYLOAD_MAX_BYTES)
    return b"%04x" % (len(payload) + 4) + payload


def band(number: int, payload: bytes, *, room: int = SIDEBAND_64K) -> bytes:
    """Return payload as side-band packets of a band: 1 pack data, 2 progress, 3 fatal error."""
    head = bytes([number])
    return b"".join(line(head + payload[at : at + room]) for at in range(0, len(payload), room))


def error_line(text: str) -> bytes:
    """Return an ERR packet, which every client shows and dies of."""
    flat = " ".join(text.split())
    return line(b"ERR " + flat.encode()[: PAYLOAD_MAX_BYTES - 5] + b"\n")


@dataclass(slots=True)
class PacketReader:
    """Cuts bytes into packets. ``receive`` takes any pieces; ``finish`` says that no more come."""

    _waiting: bytearray = field(default_factory=bytearray)

    def receive(self, data: bytes) -> Iterator[Packet]:
        """Return the packets that are whole by now; MalformedPacket for a length that cannot be."""
        self._waiting += data
        at = 0
        try:
            while len(self._waiting) - at >= 4:
                length = _length(bytes(self._waiting[at : at + 4]))
                if length < 4:
                    at += 4
                    yield Mark(length)
                    continue
                if len(self._waiting) - at < length:
                    return
                payload = bytes(self._waiting[at + 4 : at + length])
                at += length
                yield payload
        finally:
            del self._waiting[:at]

    def finish(self) -> None:
        """Raise MalformedPacket when the bytes ended inside a packet."""
        if self._waiting:
            raise MalformedPacket("request ends inside a packet", bytes=len(self._waiting))


def packets(data: bytes) -> Iterator[Packet]:
    """Return the packets of a whole request."""
    reader = PacketReader()
    yield from reader.receive(data)
    reader.finish()


def _length(digits: bytes) -> int:
    if not all(c in b"0123456789abcdefABCDEF" for c in digits):
        raise MalformedPacket("packet length is not hex", length=digits.decode("latin-1"))
    length = int(digits, 16)
    if length == 3 or length > PACKET_MAX_BYTES:
        raise MalformedPacket("packet length is impossible", length=length)
    return length
