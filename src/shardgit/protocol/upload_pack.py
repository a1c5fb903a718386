"""git-upload-pack without I/O: what both protocol versions share.

Sources: gitprotocol-pack, gitprotocol-v2, gitprotocol-capabilities. The versions stand in
upload_pack_v0 and upload_pack_v2.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from shardgit._pktline import ids_named
from shardgit.errors import InvalidArgument, LimitExceeded, MalformedPacket
from shardgit.limits import DEFAULT, Limits
from shardgit.oid import HashKind, ObjectId, oid_of
from shardgit.protocol.deepening import AS_IT_IS, Deepening, DeepeningReader
from shardgit.protocol.filter_spec import FilterKind, parse_filter
from shardgit.protocol.pktline import PacketReader, one_line

if TYPE_CHECKING:
    from shardgit.protocol.filter_spec import Filter
    from shardgit.protocol.pktline import Packet


@dataclass(frozen=True, slots=True)
class AdvertisedRef:
    """A ref as clients see it.

    ``symbolic`` is what HEAD (or another symbolic ref) points to, ``target`` where that ends;
    a ref without a target is unborn.
    """

    name: bytes
    target: ObjectId | None
    peeled: ObjectId | None = None
    symbolic: bytes | None = None


@dataclass(frozen=True, slots=True)
class LsRefs:
    """A v2 ls-refs command."""

    peel: bool = False
    symrefs: bool = False
    unborn: bool = False
    prefixes: tuple[bytes, ...] = ()

    @property
    def wants_head(self) -> bool:
        """Whether the prefixes let HEAD pass."""
        return not self.prefixes or any(b"HEAD".startswith(each) for each in self.prefixes)


@dataclass(frozen=True, slots=True)
class Fetch:
    """What a client wants, in either protocol version; wants each once, in order.

    ``version`` is 0 or 2. ``multi_ack`` is 0, 1 or 2 (detailed); v2 knows neither that nor
    ``no_done``. ``sideband`` is 0 (none), 1 (side-band) or 2 (side-band-64k). ``want_refs`` are full
    names. ``filters`` must all let an object pass. ``shallow_only`` is a v0 request that ended behind
    its wants: it asks for the shallow lines alone.
    """

    version: int
    wants: tuple[ObjectId, ...] = ()
    haves: tuple[ObjectId, ...] = ()
    done: bool = False
    thin_pack: bool = False
    ofs_delta: bool = False
    include_tag: bool = False
    no_progress: bool = False
    wait_for_done: bool = False
    sideband_all: bool = False
    no_done: bool = False
    multi_ack: int = 0
    sideband: int = 0
    deepening: Deepening = AS_IT_IS
    filters: tuple[Filter, ...] = ()
    want_refs: tuple[bytes, ...] = ()
    shallow_only: bool = False
    session_id: bytes = b""
    uri_protocols: tuple[str, ...] = ()  # schemes of URIs that the client takes packs from


@dataclass(frozen=True, slots=True)
class Offer:
    """What a repository offers beyond what every one does; what is not offered is not taken.

    ``reachable_wants`` is how v0 says that any reachable id may be wanted, ``tip_wants`` that those
    of refs may; v2 lets them be wanted anyway. ``session_id`` and
    ``promisors`` (name=...,url=...; ...) are shown where they are not empty. ``denied`` are filters
    by git's names, "combine" among them; a ``tree_depth_max`` below 0 is none. ``unborn`` is
    "advertise", "allow" or "ignore", and tells what becomes of ls-refs' argument of that name.
    ``packfile_uris`` is an edge's to offer, one that serves files.
    """

    unborn: str = "advertise"
    filters: bool = True
    denied: frozenset[str] = frozenset()
    tree_depth_max: int = -1
    ref_in_want: bool = True
    sideband_all: bool = True
    reachable_wants: bool = True
    tip_wants: bool = True
    session_id: bytes = b""
    promisors: bytes = b""
    packfile_uris: bool = False


OFFER = Offer()


class RequestReader:
    """Reads the one request of an upload-pack body, piece by piece.

    What follows the request's end is passed over, as git does. Errors of ``receive`` and
    ``finish``: MalformedPacket, InvalidArgument, LimitExceeded.
    """

    def __init__(self, kind: HashKind, *, limits: Limits = DEFAULT, offer: Offer = OFFER) -> None:
        self.kind = kind
        self.limits = limits
        self.offer = offer
        self.ended = False
        self._digits = 2 * kind.size
        self._packets = PacketReader()
        self._lines = 0
        self._deepening = DeepeningReader(self._oid, limits)
        self._filters: tuple[Filter, ...] = ()

    def receive(self, data: bytes) -> None:
        """Take the next piece."""
        if self.ended:
            return
        packets, at = self._packets.receive(data), 0
        while at < len(packets):
            if count := self._run(packets, at):
                self._count(count)
                at += count
            elif self.take(packets[at]):
                return
            else:
                at += 1

    def take(self, packet: Packet) -> bool:
        """Take the next packet, of a stream in which more than this request comes; True at its end."""
        self._count(1)
        self.ended = self._packet(packet)
        return self.ended

    def _count(self, lines: int) -> None:
        self._lines += lines
        if self._lines > self.limits.request_lines_max:
            raise LimitExceeded("request has too many lines", limit=self.limits.request_lines_max)

    def _run(self, packets: list[Packet], at: int) -> int:
        """Take the packets from a place on that name ids and nothing else; returns how many, none where it may not.

        A request may name a million, each as its ``_packet`` would take it, in a twentieth of the time.
        """
        return 0

    def _ids(self, packets: list[Packet], at: int, word: bytes) -> list[ObjectId]:
        """Return the ids that packets name behind a word, as many as follow one another."""
        return cast("list[ObjectId]", ids_named(packets, at, word, self.kind.size))

    def _close(self) -> None:
        """Check that the bytes did not end inside a packet."""
        if not self.ended:
            self._packets.finish()

    def _packet(self, packet: Packet) -> bool:
        """Take one packet; True when it ends the request."""
        raise NotImplementedError

    def _filter(self, spec: bytes) -> None:
        """Take a filter line."""
        if self._filters:
            raise InvalidArgument("multiple filter-specs cannot be combined")
        found = parse_filter(spec, limits=self.limits)
        names = [each.kind.value for each in found]
        if spec.startswith(b"combine:"):
            names.insert(0, "combine")
        for name in names:
            if name in self.offer.denied:
                raise InvalidArgument(f"filter '{name}' not supported")
        most = self.offer.tree_depth_max
        for each in found:
            if each.kind is FilterKind.TREE_DEPTH and 0 <= most < each.number:
                words = f"max depth {most}, but got {each.number}"
                raise InvalidArgument(f"tree filter allows {words}")
        self._filters = found

    def _oid(self, text: bytes) -> ObjectId:
        """Return the id that a text is. Errors: InvalidArgument."""
        try:
            raw = binascii.unhexlify(text)
        except ValueError:
            raw = b""
        return ObjectId(raw) if 2 * len(raw) == self._digits else oid_of(text, self.kind)


def agent(version: str) -> bytes:
    """Return the agent capability."""
    return b"agent=shardgit/" + version.encode()


def text_of(packet: Packet) -> bytes:
    """Return a packet's line without its newline; MalformedPacket for a mark."""
    if not isinstance(packet, bytes):
        raise MalformedPacket("request holds an unexpected packet", packet=packet.name.lower())
    return packet.removesuffix(b"\n")


def shown(text: bytes) -> str:
    """Return a client's words for an error: bounded and printable."""
    return one_line(text[:80].decode("utf-8", "replace")).decode()


def other_format(client: bytes, kind: HashKind) -> InvalidArgument:
    """Return the error for a client that speaks another hash than the repository."""
    return InvalidArgument(
        "client and repository have different object formats",
        client=shown(client),
        repository=kind.git_name,
    )
