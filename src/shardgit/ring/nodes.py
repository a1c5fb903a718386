"""The ring of a cluster: its shards are nodes, and each has an address. See docs/formats/ring.md."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit.errors import InvalidArgument, JournalCorrupt
from shardgit.formats import check_version
from shardgit.ring.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Mapping

MAGIC = b"SGNR"
VERSION = 1
ADDRESS_MAX_BYTES = 255
_HEAD = struct.Struct("<4sHHII")
_ROW = struct.Struct("<HB")
_CHECKSUM_BYTES = 32
# A name, an IPv4 address, or an IPv6 address in brackets; and a port.
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class NodeRing:
    """A ring whose shards are nodes, and where each node's peers reach it: ``host:port`` by number.

    Errors: InvalidArgument when a node has no address, or one that is none.
    """

    ring: Ring
    addresses: Mapping[int, str]

    def __post_init__(self) -> None:
        if {shard.number for shard in self.ring.shards} != set(self.addresses):
            raise InvalidArgument("ring of nodes has other addresses than nodes")
        for number, address in self.addresses.items():
            if not is_address(address):
                raise InvalidArgument("node has no address", node=number, address=address)
        object.__setattr__(self, "addresses", MappingProxyType(dict(self.addresses)))

    @property
    def epoch(self) -> int:
        """The ring's epoch, which also changes with an address."""
        return self.ring.epoch

    def encode(self) -> bytes:
        """Return the bytes of both: magic, version and a checksum over all."""
        ring = self.ring.encode()
        rows = [
            _ROW.pack(number, len(address)) + address.encode("ascii")
            for number, address in sorted(self.addresses.items())
        ]
        body = _HEAD.pack(MAGIC, VERSION, 0, len(rows), len(ring)) + b"".join(rows) + ring
        return body + blake3(body).digest()

    @classmethod
    def decode(cls, data: bytes) -> NodeRing:
        """Return what ``data`` holds.

        Errors: JournalCorrupt when a byte is off, StoreFormatUnknown for another version.
        """
        if len(data) < _HEAD.size + _CHECKSUM_BYTES:
            raise JournalCorrupt("ring of nodes is too short", bytes=len(data))
        body = data[:-_CHECKSUM_BYTES]
        if blake3(body).digest() != data[-_CHECKSUM_BYTES:]:
            raise JournalCorrupt("ring of nodes does not match its checksum")
        magic, version, zero, count, length = _HEAD.unpack_from(body)
        if magic != MAGIC:
            raise JournalCorrupt("ring of nodes has an unknown magic", magic=magic.hex())
        check_version("ring of nodes", version, VERSION)
        if version != VERSION:
            raise JournalCorrupt("ring of nodes is of no known version", version=version)
        addresses: dict[int, str] = {}
        at, end, last = _HEAD.size, len(body) - length, -1
        for _ in range(count):
            if at + _ROW.size > end:
                raise JournalCorrupt("ring of nodes is cut short")
            number, size = _ROW.unpack_from(body, at)
            at += _ROW.size
            if number <= last or at + size > end:
                raise JournalCorrupt("ring of nodes has an impossible address", node=number)
            addresses[number] = body[at : at + size].decode("ascii", "replace")
            at, last = at + size, number
        if zero or at != end:
            raise JournalCorrupt("ring of nodes has another length than it claims")
        try:
            return cls(Ring.decode(body[at:]), addresses)
        except InvalidArgument as cause:
            raise JournalCorrupt("ring of nodes has impossible addresses") from cause


def is_address(text: str) -> bool:
    """Say whether a text is ``host:port``, with an IPv6 address in brackets."""
    if len(text) > ADDRESS_MAX_BYTES or not _ADDRESS.fullmatch(text):
        return False
    return 0 < int(text.rpartition(":")[2]) < 65_536
