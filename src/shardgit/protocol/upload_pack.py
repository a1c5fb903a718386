"""git-upload-pack, protocols v0 and v2, without I/O: requests parsed, answers encoded.

Sources: gitprotocol-pack, gitprotocol-v2, gitprotocol-capabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument, LimitExceeded, MalformedPacket
from shardgit.limits import DEFAULT, Limits
from shardgit.oid import HashKind, ObjectId, oid_of
from shardgit.protocol.pktline import FLUSH_BYTES, Mark, line, packets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.protocol.pktline import Packet

V0_CAPABILITIES = (
    b"multi_ack thin-pack side-band side-band-64k ofs-delta no-progress include-tag multi_ack_detailed no-done"
)


@dataclass(frozen=True, slots=True)
class AdvertisedRef:
    """A ref as clients see it; ``symbolic`` is what HEAD (or another symbolic ref) points to, resolved once."""

    name: bytes
    target: ObjectId | None  # None: unborn
    peeled: ObjectId | None = None
    symbolic: bytes | None = None


@dataclass(frozen=True, slots=True)
class LsRefs:
    """A v2 ls-refs command."""

    peel: bool
    symrefs: bool
    unborn: bool
    prefixes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """What a client wants, of either protocol. ``multi_ack`` is 0, 1 or 2 (detailed); v2 does not use it.

    ``rounds`` are the haves between flushes, in order; v2 has one.
    """

    wants: tuple[ObjectId, ...]
    haves: tuple[ObjectId, ...]
    done: bool
    rounds: tuple[tuple[ObjectId, ...], ...] = ()
    thin_pack: bool = False
    ofs_delta: bool = False
    include_tag: bool = False
    no_progress: bool = False
    wait_for_done: bool = False
    no_done: bool = False
    multi_ack: int = 0
    sideband: int = 0  # 0 none, 1 side-band, 2 side-band-64k


def agent(version: str) -> bytes:
    """Return the agent capability."""
    return b"agent=shardgit/" + version.encode()


# ---- advertisements ----


def advertise_v2(kind: HashKind, version: str) -> bytes:
    """Return the v2 capability advertisement."""
    lines = [
        b"version 2\n",
        agent(version) + b"\n",
        b"ls-refs=unborn\n",
        b"fetch=wait-for-done\n",
        b"server-option\n",
        b"object-format=" + kind.git_name.encode() + b"\n",
    ]
    return b"".join(map(line, lines)) + FLUSH_BYTES


def advertise_v0(refs: Sequence[AdvertisedRef], kind: HashKind, version: str, *, v1: bool = False) -> bytes:
    """Return the v0 ref advertisement behind its service line (v1: with the version line)."""
    out = [line(b"# service=git-upload-pack\n"), FLUSH_BYTES]
    if v1:
        out.append(line(b"version 1\n"))
    capabilities = [V0_CAPABILITIES]
    for ref in refs:
        if ref.name == b"HEAD" and ref.symbolic is not None and ref.target is not None:
            capabilities.append(b"symref=HEAD:" + ref.symbolic)
    capabilities += [b"object-format=" + kind.git_name.encode(), agent(version)]
    tail = b"\0" + b" ".join(capabilities)
    born = [ref for ref in refs if ref.target is not None]
    if not born:
        out.append(line(kind.null.hex().encode() + b" capabilities^{}" + tail + b"\n"))
    for ref in born:
        assert ref.target is not None
        out.append(line(ref.target.hex().encode() + b" " + ref.name + tail + b"\n"))
        tail = b""
        if ref.peeled is not None:
            out.append(line(ref.peeled.hex().encode() + b" " + ref.name + b"^{}\n"))
    out.append(FLUSH_BYTES)
    return b"".join(out)


def answer_ls_refs(refs: Sequence[AdvertisedRef], request: LsRefs) -> bytes:
    """Return the answer to ls-refs, without refs outside the request's prefixes."""
    out = []
    for ref in refs:
        if ref.target is None:
            if not (request.unborn and ref.name == b"HEAD" and ref.symbolic is not None):
                continue
            text = b"unborn HEAD"
        else:
            text = ref.target.hex().encode() + b" " + ref.name
        if request.symrefs and ref.symbolic is not None:
            text += b" symref-target:" + ref.symbolic
        if request.peel and ref.peeled is not None:
            text += b" peeled:" + ref.peeled.hex().encode()
        out.append(line(text + b"\n"))
    out.append(FLUSH_BYTES)
    return b"".join(out)


# ---- v2 requests ----


def parse_v2(data: bytes, kind: HashKind, *, limits: Limits = DEFAULT) -> LsRefs | Fetch | None:
    """Return the command in a v2 request body, None for a lone flush (the client says good-bye).

    Errors: MalformedPacket; InvalidArgument for an unknown command, argument or object format; LimitExceeded.
    """
    stream = packets(data)
    command = b""
    capabilities: list[bytes] = []
    arguments: list[bytes] = []
    ended = False
    section = capabilities
    for number, packet in enumerate(stream):
        if number > limits.request_lines_max:
            raise LimitExceeded("request has too many lines", limit=limits.request_lines_max)
        if packet is Mark.FLUSH:
            ended = True
            break
        if packet is Mark.DELIM:
            if section is arguments:
                raise MalformedPacket("request has two delimiters")
            section = arguments
        elif isinstance(packet, bytes):
            text = packet.removesuffix(b"\n")
            if section is capabilities and text.startswith(b"command="):
                if command:
                    raise InvalidArgument("request names two commands")
                command = text[8:]
            else:
                section.append(text)
        else:
            raise MalformedPacket("request holds an unexpected packet")
    if not ended:
        raise MalformedPacket("request does not end in a flush")
    if not command and not capabilities and not arguments:
        return None
    _check_capabilities(capabilities, kind)
    if command == b"ls-refs":
        return _ls_refs(arguments, limits)
    if command == b"fetch":
        return _fetch(arguments, kind)
    raise InvalidArgument("unknown command", command=command[:80].decode("utf-8", "replace"))


def _check_capabilities(capabilities: Sequence[bytes], kind: HashKind) -> None:
    for text in capabilities:
        key, _, value = text.partition(b"=")
        if key == b"object-format":
            if value != kind.git_name.encode():
                raise InvalidArgument(
                    "client and repository have different object formats",
                    client=value[:20].decode("utf-8", "replace"),
                    repository=kind.git_name,
                )
        elif key not in (b"agent", b"server-option", b"session-id"):
            raise InvalidArgument("unknown capability", capability=key[:80].decode("utf-8", "replace"))


def _ls_refs(arguments: Sequence[bytes], limits: Limits) -> LsRefs:
    flags = {b"peel": False, b"symrefs": False, b"unborn": False}
    prefixes: list[bytes] = []
    for text in arguments:
        if text in flags:
            flags[text] = True
        elif text.startswith(b"ref-prefix "):
            prefixes.append(text[11:])
        else:
            raise InvalidArgument("unknown ls-refs argument", argument=text[:80].decode("utf-8", "replace"))
    if len(prefixes) > limits.refs_prefixes_max:
        prefixes = []  # as git does: too many prefixes are none
    return LsRefs(flags[b"peel"], flags[b"symrefs"], flags[b"unborn"], tuple(prefixes))


_FLAGS = {
    b"thin-pack": "thin_pack",
    b"ofs-delta": "ofs_delta",
    b"include-tag": "include_tag",
    b"no-progress": "no_progress",
    b"wait-for-done": "wait_for_done",
    b"done": "done",
}


def _fetch(arguments: Sequence[bytes], kind: HashKind) -> Fetch:
    wants: dict[ObjectId, None] = {}
    haves: dict[ObjectId, None] = {}
    flags = dict.fromkeys(_FLAGS.values(), False)
    for text in arguments:
        if text in _FLAGS:
            flags[_FLAGS[text]] = True
        elif text.startswith(b"want "):
            wants[oid_of(text[5:], kind)] = None
        elif text.startswith(b"have "):
            haves[oid_of(text[5:], kind)] = None
        else:
            raise InvalidArgument("unknown fetch argument", argument=text[:80].decode("utf-8", "replace"))
    return Fetch(tuple(wants), tuple(haves), sideband=2, rounds=(tuple(haves),), **flags)


# ---- v0 requests ----


def parse_v0(data: bytes, kind: HashKind, *, limits: Limits = DEFAULT) -> Fetch | None:
    """Return the request in a v0 (or v1) upload-pack body, None when the client wants nothing.

    Errors: MalformedPacket, InvalidArgument, LimitExceeded.
    """
    wants: dict[ObjectId, None] = {}
    capabilities: set[bytes] = set()
    stream = _counted(packets(data), limits)
    for packet in stream:
        if packet is Mark.FLUSH:
            break
        text = _text(packet)
        if not text.startswith(b"want "):
            raise InvalidArgument("expected a want", line=text[:80].decode("utf-8", "replace"))
        if not wants:
            head, _, words = text.partition(b" ")[2].partition(b" ")
            capabilities = set(words.split())
            text = b"want " + head
        wants[oid_of(text[5:], kind)] = None
    if not wants:
        return None
    _check_v0(capabilities, kind)
    rounds: list[tuple[ObjectId, ...]] = []
    haves: list[ObjectId] = []
    done = False
    for packet in stream:
        if packet is Mark.FLUSH:
            rounds.append(tuple(haves))
            haves = []
            continue
        text = _text(packet)
        if text == b"done":
            done = True
            break
        if not text.startswith(b"have "):
            raise InvalidArgument("expected a have", line=text[:80].decode("utf-8", "replace"))
        haves.append(oid_of(text[5:], kind))
    if haves or done:
        rounds.append(tuple(haves))
    return Fetch(
        tuple(wants),
        tuple(oid for some in rounds for oid in some),
        done,
        rounds=tuple(rounds),
        thin_pack=b"thin-pack" in capabilities,
        ofs_delta=b"ofs-delta" in capabilities,
        include_tag=b"include-tag" in capabilities,
        no_progress=b"no-progress" in capabilities,
        no_done=b"no-done" in capabilities,
        multi_ack=2 if b"multi_ack_detailed" in capabilities else 1 if b"multi_ack" in capabilities else 0,
        sideband=2 if b"side-band-64k" in capabilities else 1 if b"side-band" in capabilities else 0,
    )


def _check_v0(capabilities: set[bytes], kind: HashKind) -> None:
    known = {*V0_CAPABILITIES.split(), b"object-format=" + kind.git_name.encode()}
    for word in capabilities - known:
        if word.startswith(b"object-format="):
            raise InvalidArgument(
                "client and repository have different object formats",
                client=word[14:34].decode("utf-8", "replace"),
                repository=kind.git_name,
            )
        # Anything else that was not advertised is passed over, as git does.


def _counted(stream: Iterator[Packet], limits: Limits) -> Iterator[Packet]:
    for number, packet in enumerate(stream):
        if number > limits.request_lines_max:
            raise LimitExceeded("request has too many lines", limit=limits.request_lines_max)
        yield packet


def _text(packet: Packet) -> bytes:
    if not isinstance(packet, bytes):
        raise MalformedPacket("request holds an unexpected packet")
    return packet.removesuffix(b"\n")
