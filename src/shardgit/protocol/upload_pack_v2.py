"""git-upload-pack, protocol v2, without I/O: requests read, answers written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument, MalformedPacket
from shardgit.limits import DEFAULT, Limits
from shardgit.protocol.bundle_uri import CAPABILITY as BUNDLE_URI
from shardgit.protocol.bundle_uri import BundleUriRequest, refuse_argument
from shardgit.protocol.object_info import CAPABILITY as OBJECT_INFO
from shardgit.protocol.object_info import ObjectInfoArguments, ObjectInfoRequest
from shardgit.protocol.pktline import DELIM_BYTES, FLUSH_BYTES, Mark, line
from shardgit.protocol.upload_pack import (
    Fetch,
    LsRefs,
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


def advertise_v2(kind: HashKind, version: str, *, bundle_uri: bool = False) -> bytes:
    """Return the capability advertisement: what this release serves, and nothing else."""
    lines = [
        b"version 2\n",
        agent(version) + b"\n",
        b"ls-refs=unborn\n",
        b"fetch=wait-for-done\n",
        b"server-option\n",
        b"object-format=" + kind.git_name.encode() + b"\n",
        OBJECT_INFO + b"\n",
    ]
    if bundle_uri:
        lines.append(BUNDLE_URI + b"\n")
    return b"".join(map(line, lines)) + FLUSH_BYTES


class RequestV2(RequestReader):
    """Reads one v2 command. ``finish`` returns it; None for the empty request, a good-bye."""

    def __init__(self, kind: HashKind, *, limits: Limits = DEFAULT) -> None:
        super().__init__(kind, limits=limits)
        self._command = b""
        self._format = b"sha1"  # what a client that names none speaks
        self._seen = False
        self._in_arguments = False
        self._flags: set[bytes] = set()
        self._prefixes: list[bytes] = []
        self._wants: dict[ObjectId, None] = {}
        self._haves: dict[ObjectId, None] = {}
        self._object_info = ObjectInfoArguments(self._oid)

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
        elif key not in _CAPABILITIES:
            raise InvalidArgument("unknown capability", capability=shown(text))

    def _begin(self) -> None:
        """Check the head of the request before its arguments."""
        if not self._command:
            raise InvalidArgument("request names no command")
        if self._format != self.kind.git_name.encode():
            raise other_format(self._format, self.kind)
        self._in_arguments = True

    def _ls_refs(self, text: bytes) -> None:
        if text in _LS_REFS_FLAGS:
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
        elif text in _FETCH_FLAGS:
            self._flags.add(text)
        else:
            raise InvalidArgument("unknown fetch argument", argument=shown(text))

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
        return Fetch(
            2,
            tuple(self._wants),
            tuple(self._haves),
            sideband=2,
            **{_FETCH_FLAGS[flag]: True for flag in self._flags},
        )


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


def section_line(text: bytes, *, sideband_all: bool) -> bytes:
    """Return a line of an answer; under sideband-all it travels on band 1."""
    return line(b"\x01" + text if sideband_all else text)
