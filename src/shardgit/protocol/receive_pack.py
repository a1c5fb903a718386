"""git-receive-pack without I/O: refs shown, commands read, results reported.

Sources: gitprotocol-pack, gitprotocol-capabilities; where they are silent, what git does. Pushes
know protocols v0 and v1 only: a client that asks for v2 is answered in v0.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardgit.errors import LimitExceeded, MalformedPacket, ShardgitError
from shardgit.limits import DEFAULT, Limits
from shardgit.oid import ObjectId
from shardgit.protocol.pktline import FLUSH_BYTES, Mark, PacketCursor, band, line, one_line
from shardgit.protocol.push_certificate import parse_certificate
from shardgit.protocol.upload_pack import agent, other_format, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shardgit.oid import HashKind
    from shardgit.protocol.pktline import Packet
    from shardgit.protocol.upload_pack import AdvertisedRef

SERVICE_LINE = line(b"# service=git-receive-pack\n") + FLUSH_BYTES
_WORDS = frozenset(
    b"report-status report-status-v2 side-band-64k quiet atomic push-options object-format"
    b" agent session-id".split()
)
UNPACKER_ERROR = "unpacker error"  # what git says of each command when the pack was refused


@dataclass(frozen=True, slots=True)
class PushCapabilities:
    """What a server offers. ``nonce`` and ``session_id`` are left out when empty.

    Always offered: report-status, report-status-v2, delete-refs, side-band-64k, quiet, ofs-delta,
    object-format, agent.
    """

    atomic: bool = True
    push_options: bool = True
    nonce: bytes = b""  # signed pushes are asked for
    session_id: bytes = b""


@dataclass(frozen=True, slots=True)
class Command:
    """A client's wish for one ref. ``old`` or ``new`` is None for the id of all zeros."""

    name: bytes
    old: ObjectId | None
    new: ObjectId | None


@dataclass(frozen=True, slots=True)
class PushRequest:
    """What a client asks for before its pack. Commands come in the client's order, at least one.

    ``report`` is 0 (none), 1 (report-status) or 2 (report-status-v2); ``sideband`` 0 or 2
    (side-band-64k). With a certificate the commands are those that it holds.
    """

    commands: tuple[Command, ...]
    report: int = 0
    sideband: int = 0
    atomic: bool = False
    quiet: bool = False
    options: tuple[bytes, ...] = ()
    shallow: tuple[ObjectId, ...] = ()
    certificate: bytes = b""
    agent: bytes = b""
    session_id: bytes = b""
    object_format: bytes = b""

    @property
    def has_pack(self) -> bool:
        """Whether a pack follows: not when all that is asked for is to delete refs."""
        return any(command.new is not None for command in self.commands)


@dataclass(frozen=True, slots=True)
class ReportOption:
    """What really happened to a command's ref, where that is not what was asked for."""

    refname: bytes | None = None
    old: ObjectId | None = None
    new: ObjectId | None = None
    forced_update: bool = False


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended: ``error`` None for well. ``options`` are for report-status-v2 only."""

    command: Command
    error: str | None = None
    options: tuple[ReportOption, ...] = ()


class PushAdvertisement:
    """Writes the ref advertisement, some refs at a time; the first line has the capabilities.

    Git shows refs under refs/ by name, without HEAD and without peeled tags; so does ``add``,
    whatever it is given. Over HTTP it stands behind SERVICE_LINE, in protocol v1 behind
    upload_pack_v0.VERSION_1_LINE.
    """

    def __init__(self, kind: HashKind, version: str, offered: PushCapabilities) -> None:
        self._kind = kind
        self._version = version
        self._offered = offered
        self._begun = False

    def add(self, refs: Sequence[AdvertisedRef]) -> bytes:
        """Return the lines of refs. Unborn ones have none."""
        out = []
        for ref in refs:
            if ref.target is None or not ref.name.startswith(b"refs/"):
                continue
            text = ref.target.hex().encode() + b" " + ref.name
            out.append(line(text + (b"" if self._begun else self._capabilities()) + b"\n"))
            self._begun = True
        return b"".join(out)

    def end(self, shallow: Iterable[ObjectId] = ()) -> bytes:
        """Return what ends it; without any ref the capabilities get a line of their own.

        ``shallow`` are the commits at which the repository's own history ends.
        """
        ends = b"".join(line(b"shallow " + oid.hex().encode()) for oid in shallow) + FLUSH_BYTES
        if self._begun:
            return ends
        text = self._kind.null.hex().encode() + b" capabilities^{}" + self._capabilities()
        return line(text + b"\n") + ends

    def _capabilities(self) -> bytes:
        offered = self._offered
        words = [b"report-status report-status-v2 delete-refs side-band-64k quiet"]
        if offered.atomic:
            words.append(b"atomic")
        words.append(b"ofs-delta")
        if offered.nonce:
            words.append(b"push-cert=" + offered.nonce)
        if offered.push_options:
            words.append(b"push-options")
        if offered.session_id:
            words.append(b"session-id=" + offered.session_id)
        words += [b"object-format=" + self._kind.git_name.encode(), agent(self._version)]
        return b"\0" + b" ".join(words)


@dataclass(slots=True)
class _Head:
    """A request while it is read."""

    commands: list[Command] = field(default_factory=list)
    shallow: list[ObjectId] = field(default_factory=list)
    options: list[bytes] = field(default_factory=list)
    certificate: bytearray = field(default_factory=bytearray)
    words: dict[bytes, bytes] = field(default_factory=dict)


class PushReader:
    """Reads commands, certificate and push options; hands on what follows them.

    ``offered`` is what the advertisement offered: atomic and push-options count only then, as
    with git. ``request`` is None until all is read, and stays None when the client asked for
    nothing. Errors of ``receive`` and ``finish``: MalformedPacket, InvalidArgument,
    LimitExceeded; they do not depend on how the bytes are cut.
    """

    def __init__(
        self,
        kind: HashKind,
        *,
        limits: Limits = DEFAULT,
        offered: PushCapabilities | None = None,
    ) -> None:
        self.kind = kind
        self.limits = limits
        self.offered = offered or PushCapabilities()
        self.request: PushRequest | None = None
        self.ended = False
        self._packets = PacketCursor()
        self._head = _Head()
        self._take = self._command_line
        self._error: ShardgitError | None = None
        self._begun = False
        self._bytes = 0
        self._digits = 2 * kind.size

    def receive(self, data: bytes) -> bytes | None:
        """Take the next piece; None until the request is whole, then the bytes that follow it."""
        if self._error is not None:
            raise self._error
        if self.ended:
            return data
        self._begun |= bool(data)
        self._packets.feed(data)
        try:
            while (packet := self._packets.next()) is not None:
                self._bytes += len(packet) + 4 if isinstance(packet, bytes) else 4
                if self._bytes > self.limits.push_head_max_bytes:
                    raise LimitExceeded(
                        "push names too much before its pack",
                        limit_bytes=self.limits.push_head_max_bytes,
                    )
                if isinstance(packet, bytes) and packet.startswith(b"ERR "):
                    raise MalformedPacket("client reports an error", text=shown(packet[4:]))
                if self._take(packet):
                    self.ended = True
                    return self._packets.rest()
        except ShardgitError as error:
            self._error = error
            raise
        return None

    def finish(self) -> PushRequest | None:
        """Return the request; None when the client asked for nothing, or never said a word."""
        if self._error is not None:
            raise self._error
        if not self.ended and self._begun:
            raise MalformedPacket("push ends before its commands are whole")
        return self.request

    def _command_line(self, packet: Packet) -> bool:
        """Take a line of the commands, which a flush ends; True when it ends the request."""
        if not isinstance(packet, bytes):
            return self._end_of_commands(packet)
        text, nul, words = packet.removesuffix(b"\n").partition(b"\0")
        # Some clients send the shallow line's end inside it; git reads the id and looks no further.
        if text.startswith(b"shallow ") and len(text) > 8:
            oid = self._oid(text[8 : 8 + self._digits])
            if oid is None:
                raise MalformedPacket("shallow line names no object", line=shown(text))
            self._head.shallow.append(oid)
            if len(self._head.shallow) > self.limits.request_lines_max:
                raise LimitExceeded(
                    "push has too many shallow lines", limit=self.limits.request_lines_max
                )
            return False
        if nul:
            self._read_words(words)
        if text == b"push-cert":
            self._take = self._certificate_line
        else:
            self._add(text)
        return False

    def _certificate_line(self, packet: Packet) -> bool:
        """Take a line of the certificate; "push-cert-end" ends it, a flush ends all commands."""
        if packet is Mark.FLUSH:
            return self._end_of_commands(packet)
        if not isinstance(packet, bytes):
            raise MalformedPacket("unexpected packet in a push certificate")
        if packet == b"push-cert-end\n":
            self._take = self._command_line
        else:
            self._head.certificate += packet.partition(b"\0")[0]
        return False

    def _option_line(self, packet: Packet) -> bool:
        """Take a push option; a flush ends them."""
        if not isinstance(packet, bytes):
            if packet is not Mark.FLUSH:
                raise MalformedPacket("push options do not end in a flush")
            self._finished()
            return True
        options, limits = self._head.options, self.limits
        options.append(packet.removesuffix(b"\n").partition(b"\0")[0])
        if len(options) > limits.push_options_max:
            raise LimitExceeded("push has too many options", limit=limits.push_options_max)
        if sum(map(len, options)) > limits.push_options_max_bytes:
            raise LimitExceeded(
                "push options are too long", limit_bytes=limits.push_options_max_bytes
            )
        return False

    def _read_words(self, words: bytes) -> None:
        found: dict[bytes, bytes] = {}
        for word in words.split():
            key, _, value = word.partition(b"=")
            if key in _WORDS:  # what was not offered is passed over, as git does
                found.setdefault(key, value)
        theirs = found.get(b"object-format") or b"sha1"  # a client that is silent speaks SHA-1
        if theirs != self.kind.git_name.encode():
            raise other_format(theirs, self.kind)
        self._head.words.update(found)

    def _end_of_commands(self, mark: Packet) -> bool:
        if mark is not Mark.FLUSH:
            raise MalformedPacket("commands do not end in a flush")
        head = self._head
        if head.certificate:
            if head.commands:
                raise MalformedPacket("push has both a certificate and unsigned commands")
            for text in parse_certificate(bytes(head.certificate)).commands:
                self._add(text)
        if head.commands and self.offered.push_options and b"push-options" in head.words:
            self._take = self._option_line
            return False
        self._finished()
        return True

    def _finished(self) -> None:
        head, words = self._head, self._head.words
        if not head.commands:
            return
        self.request = PushRequest(
            commands=tuple(head.commands),
            report=2 if b"report-status-v2" in words else int(b"report-status" in words),
            sideband=2 if b"side-band-64k" in words else 0,
            atomic=self.offered.atomic and b"atomic" in words,
            quiet=b"quiet" in words,
            options=tuple(head.options),
            shallow=tuple(head.shallow),
            certificate=bytes(head.certificate),
            agent=words.get(b"agent", b""),
            session_id=words.get(b"session-id", b""),
            object_format=words.get(b"object-format", b""),
        )

    def _add(self, text: bytes) -> None:
        limits, null = self.limits, self.kind.null
        words = text.split(b" ", 2)
        old, new = (self._oid(word) for word in [*words, b"", b""][:2])
        if old is None or new is None or len(words) < 3:
            raise MalformedPacket("expected an old id, a new id and a ref", line=shown(text))
        name = words[2]
        if len(name) > limits.push_ref_name_max_bytes:
            raise LimitExceeded(
                "ref name is too long", bytes=len(name), limit=limits.push_ref_name_max_bytes
            )
        if len(self._head.commands) >= limits.push_commands_max:
            raise LimitExceeded("push names too many refs", limit=limits.push_commands_max)
        self._head.commands.append(
            Command(name, None if old == null else old, None if new == null else new)
        )

    def _oid(self, text: bytes) -> ObjectId | None:
        if len(text) != self._digits:
            return None
        try:
            return ObjectId(binascii.unhexlify(text))
        except ValueError:
            return None


def report(
    request: PushRequest, unpack_error: str | None, results: Sequence[CommandResult]
) -> bytes:
    """Return the status report as pkt-lines with its flush; b"" for a client that wants none."""
    if not request.report:
        return b""
    out = [line(b"unpack " + (one_line(unpack_error) if unpack_error else b"ok") + b"\n")]
    for result in results:
        name = result.command.name
        if result.error is not None:
            out.append(line(b"ng " + name + b" " + one_line(result.error) + b"\n"))
            continue
        well = line(b"ok " + name + b"\n")
        if request.report == 1 or not result.options:
            out.append(well)
            continue
        for option in result.options:
            out.append(well)
            out += [line(b"option " + text + b"\n") for text in _option_lines(option)]
    return b"".join(out) + FLUSH_BYTES


def _option_lines(option: ReportOption) -> list[bytes]:
    out = []
    if option.refname is not None:
        out.append(b"refname " + option.refname)
    if option.old is not None:
        out.append(b"old-oid " + option.old.hex().encode())
    if option.new is not None:
        out.append(b"new-oid " + option.new.hex().encode())
    if option.forced_update:
        out.append(b"forced-update")
    return out


def end_of_answer(request: PushRequest, told: bytes) -> bytes:
    """Return a report as it goes over the wire, with what ends the answer: on band 1 when the
    client knows side-bands.
    """
    if not request.sideband:
        return told
    return (band(1, told) if told else b"") + FLUSH_BYTES


def parse_push(
    data: bytes, kind: HashKind, *, limits: Limits = DEFAULT
) -> tuple[PushRequest | None, bytes]:
    """Return the request in a whole body, and the pack behind it. Errors as PushReader."""
    reader = PushReader(kind, limits=limits)
    rest = reader.receive(data)
    return reader.finish(), rest or b""
