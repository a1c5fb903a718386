"""git-upload-pack, protocol v2, without I/O: requests read, answers written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument, MalformedPacket
from shardgit.limits import DEFAULT, Limits
from shardgit.protocol.bundle_uri import CAPABILITY as BUNDLE_URI
from shardgit.protocol.bundle_uri import BundleUriRequest, refuse_argument
from shardgit.protocol.object_info import CAPABILITY as OBJECT_INFO
from shardgit.protocol.object_info import ObjectInfoArguments, ObjectInfoRequest
from shardgit.protocol.packfile_uris import FEATURE as PACKFILE_URIS
from shardgit.protocol.packfile_uris import parse_protocols
from shardgit.protocol.pktline import DELIM_BYTES, FLUSH_BYTES, Mark, line
from shardgit.protocol.upload_pack import (
    OFFER,
    Fetch,
    LsRefs,
    Offer,
    RequestReader,
    agent,
    other_format,
    shown,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shardgit.oid import HashKind, ObjectId
    from shardgit.protocol.pktline import Packet
    from shardgit.protocol.upload_pack import AdvertisedRef

Command = LsRefs | Fetch | ObjectInfoRequest | BundleUriRequest
"""What a client may ask for in one request."""

_CAPABILITIES = (b"agent", b"server-option")
_COMMANDS = (b"ls-refs", b"fetch", b"object-info", b"bundle-uri")
_LS_REFS_FLAGS = {b"peel": "peel", b"symrefs": "symrefs", b"unborn": "unborn"}
_FETCH_FLAGS = {
    b"done": "done",
    b"thin-pack": "thin_pack",
    b"ofs-delta": "ofs_delta",
    b"include-tag": "include_tag",
    b"no-progress": "no_progress",
    b"wait-for-done": "wait_for_done",
    b"sideband-all": "sideband_all",
}
_DEEPEN_RELATIVE = b"deepen-relative"


def advertise_v2(
    kind: HashKind, version: str, offer: Offer = OFFER, *, bundle_uri: bool = False
) -> bytes:
    """Return the capability advertisement: what is served, and nothing else."""
    fetch = b"fetch=shallow wait-for-done"
    fetch += b" filter" if offer.filters else b""
    fetch += b" ref-in-want" if offer.ref_in_want else b""
    fetch += b" sideband-all" if offer.sideband_all else b""
    fetch += b" " + PACKFILE_URIS if offer.packfile_uris else b""
    lines = [
        b"version 2\n",
        agent(version) + b"\n",
        b"ls-refs=unborn\n" if offer.unborn == "advertise" else b"ls-refs\n",
        fetch + b"\n",
        b"server-option\n",
        b"object-format=" + kind.git_name.encode() + b"\n",
        OBJECT_INFO + b"\n",
    ]
    if bundle_uri:
        lines.append(BUNDLE_URI + b"\n")
    if offer.session_id:
        lines.append(b"session-id=" + offer.session_id + b"\n")
    if offer.promisors:
        lines.append(b"promisor-remote=" + offer.promisors + b"\n")
    return b"".join(map(line, lines)) + FLUSH_BYTES


class RequestV2(RequestReader):
    """Reads one v2 command. ``finish`` returns it; None for the empty request, a good-bye."""

    def __init__(self, kind: HashKind, *, limits: Limits = DEFAULT, offer: Offer = OFFER) -> None:
        super().__init__(kind, limits=limits, offer=offer)
        self._session_id = b""
        self._want_refs: dict[bytes, None] = {}
        self._command = b""
        self._format = b"sha1"  # what a client that names none speaks
        self._seen = False
        self._in_arguments = False
        self._flags: set[bytes] = set()
        self._prefixes: list[bytes] = []
        self._wants: dict[ObjectId, None] = {}
        self._haves: dict[ObjectId, None] = {}
        self._object_info = ObjectInfoArguments(self._oid)
        self._uri_protocols: tuple[str, ...] = ()

    def _packet(self, packet: Packet) -> bool:
        if packet is Mark.FLUSH:
            if self._seen and not self._in_arguments:
                self._begin()
            return True
        if packet is Mark.DELIM and not self._in_arguments:
            self._begin()
            return False
        text = text_of(packet)
        if not self._in_arguments:
            self._capability(text)
        elif self._command == b"ls-refs":
            self._ls_refs(text)
        elif self._command == b"object-info":
            self._object_info.add(text)
        elif self._command == b"bundle-uri":
            raise refuse_argument(text)
        else:
            self._fetch(text)
        return False

    def _run(self, packets: list[Packet], at: int) -> int:
        if not self._in_arguments or self._command != b"fetch":
            return 0
        for word, named in ((b"have ", self._haves), (b"want ", self._wants)):
            if ids := self._ids(packets, at, word):
                named.update(dict.fromkeys(ids))
                return len(ids)
        return 0

    def _capability(self, text: bytes) -> None:
        self._seen = True
        key, equals, value = text.partition(b"=")
        if key == b"command" and equals:
            if self._command:
                raise InvalidArgument("request names two commands", command=shown(value))
            if value not in _COMMANDS:
                raise InvalidArgument("unknown command", command=shown(value))
            self._command = value
        elif key == b"object-format" and equals:
            self._format = value
        elif key == b"session-id":
            self._session_id = value
        elif key not in _CAPABILITIES and not (key == b"promisor-remote" and self.offer.promisors):
            raise InvalidArgument("unknown capability", capability=shown(text))

    def _begin(self) -> None:
        """Check the head of the request before its arguments."""
        if not self._command:
            raise InvalidArgument("request names no command")
        if self._format != self.kind.git_name.encode():
            raise other_format(self._format, self.kind)
        self._in_arguments = True

    def _ls_refs(self, text: bytes) -> None:
        if text == b"unborn" and self.offer.unborn == "ignore":
            pass
        elif text in _LS_REFS_FLAGS:
            self._flags.add(text)
        elif text.startswith(b"ref-prefix "):
            if len(self._prefixes) < self.limits.refs_prefixes_max:
                self._prefixes.append(text[11:])
        else:
            raise InvalidArgument("unknown ls-refs argument", argument=shown(text))

    def _fetch(self, text: bytes) -> None:
        if text.startswith(b"have "):
            self._haves[self._oid(text[5:])] = None
        elif text.startswith(b"want "):
            self._wants[self._oid(text[5:])] = None
        elif text == b"sideband-all" and not self.offer.sideband_all:
            raise _unexpected(text)
        elif text in _FETCH_FLAGS or text == _DEEPEN_RELATIVE:
            self._flags.add(text)
        elif self._deepening.take(text):
            pass
        elif text.startswith(b"filter ") and self.offer.filters:
            self._filter(text[7:])
        elif text.startswith(b"want-ref ") and self.offer.ref_in_want:
            self._want_ref(text[9:])
        elif text.startswith(b"packfile-uris ") and self.offer.packfile_uris:
            if self._uri_protocols:
                raise InvalidArgument("multiple packfile-uris lines forbidden")
            self._uri_protocols = parse_protocols(text[14:])
        else:
            raise _unexpected(text)

    def _want_ref(self, name: bytes) -> None:
        if name in self._want_refs:
            raise InvalidArgument(f"duplicate want-ref {shown(name)}")
        self._want_refs[name] = None

    def finish(self) -> Command | None:
        """Return the request."""
        self._close()
        if not self.ended:
            if not self._lines:
                return None  # as git: a body without a byte is a good-bye, too
            raise MalformedPacket("request does not end in a flush")
        if not self._command:
            return None
        if self._command == b"ls-refs":
            # Too many prefixes are none: the client sorts out what it did not ask for.
            full = len(self._prefixes) >= self.limits.refs_prefixes_max
            return LsRefs(
                prefixes=() if full else tuple(self._prefixes),
                **{_LS_REFS_FLAGS[flag]: True for flag in self._flags},
            )
        if self._command == b"object-info":
            return self._object_info.finish()
        if self._command == b"bundle-uri":
            return BundleUriRequest()
        relative = _DEEPEN_RELATIVE in self._flags
        return Fetch(
            2,
            tuple(self._wants),
            tuple(self._haves),
            sideband=2,
            want_refs=tuple(self._want_refs),
            deepening=self._deepening.finish(relative=relative),
            filters=self._filters,
            session_id=self._session_id,
            uri_protocols=self._uri_protocols,
            **{_FETCH_FLAGS[flag]: True for flag in self._flags if flag in _FETCH_FLAGS},
        )


def _unexpected(text: bytes) -> InvalidArgument:
    return InvalidArgument(f"unexpected line: '{shown(text)}'")


def parse_v2(data: bytes, kind: HashKind, *, limits: Limits = DEFAULT) -> Command | None:
    """Return the command in a whole request body. Errors as RequestReader."""
    reader = RequestV2(kind, limits=limits)
    reader.receive(data)
    return reader.finish()


def ls_refs_lines(refs: Iterable[AdvertisedRef], request: LsRefs) -> bytes:
    """Return the lines of an answer to ls-refs, without the flush that ends it."""
    out = []
    for ref in refs:
        if ref.target is not None:
            text = ref.target.hex().encode() + b" " + ref.name
        elif request.unborn and request.symrefs and ref.name == b"HEAD" and ref.symbolic:
            text = b"unborn HEAD"
        else:
            continue
        if request.symrefs and ref.symbolic is not None:
            text += b" symref-target:" + ref.symbolic
        if request.peel and ref.peeled is not None:
            text += b" peeled:" + ref.peeled.hex().encode()
        out.append(line(text + b"\n"))
    return b"".join(out)


def acknowledgments(common: Sequence[ObjectId], *, ready: bool, sideband_all: bool) -> bytes:
    """Return the acknowledgments section and the mark behind it: a delimiter when ready."""
    lines = [b"acknowledgments\n"]
    lines += [b"ACK " + oid.hex().encode() + b"\n" for oid in common] or [b"NAK\n"]
    if ready:
        lines.append(b"ready\n")
    end = DELIM_BYTES if ready else FLUSH_BYTES
    return b"".join(section_line(text, sideband_all=sideband_all) for text in lines) + end


def wanted_refs(refs: Sequence[tuple[bytes, ObjectId]], *, sideband_all: bool) -> bytes:
    """Return the wanted-refs section, b"" when none was wanted by name."""
    if not refs:
        return b""
    lines = [b"wanted-refs\n", *(oid.hex().encode() + b" " + name + b"\n" for name, oid in refs)]
    return b"".join(section_line(text, sideband_all=sideband_all) for text in lines) + DELIM_BYTES


def shallow_info(
    shallow: Iterable[ObjectId], unshallow: Iterable[ObjectId], *, sideband_all: bool
) -> bytes:
    """Return the shallow-info section."""
    lines = [b"shallow-info\n"]
    lines += [b"shallow " + oid.hex().encode() for oid in shallow]
    lines += [b"unshallow " + oid.hex().encode() for oid in unshallow]
    return b"".join(section_line(text, sideband_all=sideband_all) for text in lines) + DELIM_BYTES


def section_line(text: bytes, *, sideband_all: bool) -> bytes:
    """Return a line of an answer; under sideband-all it travels on band 1."""
    return line(b"\x01" + text if sideband_all else text)
