"""git-upload-pack, protocols v0 and v1, without I/O: refs shown, requests read, haves answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument, MalformedPacket
from shardgit.limits import DEFAULT, Limits
from shardgit.protocol.pktline import FLUSH_BYTES, Mark, line
from shardgit.protocol.upload_pack import (
    OFFER,
    Fetch,
    Offer,
    RequestReader,
    agent,
    other_format,
    shown,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from shardgit.oid import HashKind, ObjectId
    from shardgit.protocol.pktline import Packet
    from shardgit.protocol.upload_pack import AdvertisedRef

SERVICE_LINE = line(b"# service=git-upload-pack\n") + FLUSH_BYTES
VERSION_1_LINE = line(b"version 1\n")
CAPABILITIES = (
    b"multi_ack thin-pack side-band side-band-64k ofs-delta shallow deepen-since deepen-not"
    b" deepen-relative no-progress include-tag multi_ack_detailed"
)


class AdvertisementV0:
    """Writes the ref advertisement, some refs at a time, HEAD first; the first line carries
    the capabilities. Over HTTP it stands behind SERVICE_LINE.
    """

    def __init__(self, kind: HashKind, version: str, offer: Offer = OFFER) -> None:
        self._kind = kind
        self._version = version
        self._offer = offer
        self._begun = False

    def add(self, refs: Sequence[AdvertisedRef]) -> bytes:
        """Return the lines of refs. Unborn ones have none."""
        out = []
        for ref in refs:
            if ref.target is None:
                continue
            text = ref.target.hex().encode() + b" " + ref.name
            out.append(line(text + (b"" if self._begun else self._capabilities(ref)) + b"\n"))
            self._begun = True
            if ref.peeled is not None:
                out.append(line(ref.peeled.hex().encode() + b" " + ref.name + b"^{}\n"))
        return b"".join(out)

    def end(self, shallow: Iterable[ObjectId] = ()) -> bytes:
        """Return what ends it; without any ref the capabilities get a line of their own.

        ``shallow`` are the commits at which the repository's own history ends.
        """
        ends = shallow_lines(shallow, ())
        if self._begun:
            return ends
        name = b" capabilities^{}"
        return line(self._kind.null.hex().encode() + name + self._capabilities() + b"\n") + ends

    def _capabilities(self, ref: AdvertisedRef | None = None) -> bytes:
        offer = self._offer
        words = [CAPABILITIES]
        if offer.tip_wants:
            words.append(b"allow-tip-sha1-in-want")
        if offer.reachable_wants:
            words.append(b"allow-reachable-sha1-in-want")
        words.append(b"no-done")
        if ref is not None and ref.name == b"HEAD" and ref.symbolic is not None:
            words.append(b"symref=HEAD:" + ref.symbolic)
        if offer.filters:
            words.append(b"filter")
        if offer.session_id:
            words.append(b"session-id=" + offer.session_id)
        words += [b"object-format=" + self._kind.git_name.encode(), agent(self._version)]
        return b"\0" + b" ".join(words)


class RequestV0(RequestReader):
    """Reads wants, and haves up to the first flush or "done": one round of a stateless client.

    ``finish`` returns it; None when the client wants nothing, or says no more after its wants and
    does not move its shallow boundary. A stateful client goes on: ``next_round`` makes the reader
    ready for more haves.
    """

    def __init__(self, kind: HashKind, *, limits: Limits = DEFAULT, offer: Offer = OFFER) -> None:
        super().__init__(kind, limits=limits, offer=offer)
        self._session_id = b""
        self._wants: dict[ObjectId, None] = {}
        self._haves: list[ObjectId] = []  # as sent: git answers one that comes twice, twice
        self._capabilities: set[bytes] = set()
        self._wanted = False  # the flush behind the wants was there
        self._spoke = False
        self._done = False

    def _packet(self, packet: Packet) -> bool:
        if self._wanted:
            return self._have(packet)
        if packet is Mark.FLUSH:
            self._wanted = True
            return not self._wants
        self._want(text_of(packet))
        return False

    def _run(self, packets: list[Packet], at: int) -> int:
        if self._wanted:
            ids = self._ids(packets, at, b"have ")
            self._spoke = self._spoke or bool(ids)
            self._haves += ids
        else:
            ids = self._ids(packets, at, b"want ")
            self._wants.update(dict.fromkeys(ids))
        return len(ids)

    def _want(self, text: bytes) -> None:
        if self._deepening.take(text):
            return
        if text.startswith(b"filter "):
            if b"filter" not in self._capabilities:
                raise InvalidArgument("git upload-pack: filtering capability not negotiated")
            self._filter(text[7:])
            return
        if not text.startswith(b"want "):
            raise InvalidArgument("expected a want", line=shown(text))
        name, _, words = text[5:].partition(b" ")
        self._wants[self._oid(name)] = None
        for word in words.split():
            key, equals, value = word.partition(b"=")
            if key == b"object-format" and equals and value != self.kind.git_name.encode():
                raise other_format(value, self.kind)
            if key == b"session-id":
                self._session_id = value
            # What was not advertised is passed over, as git does.
            if word in _KNOWN or (word == b"filter" and self.offer.filters):
                self._capabilities.add(word)

    def _have(self, packet: Packet) -> bool:
        self._spoke = True
        if packet is Mark.FLUSH:
            return True
        text = text_of(packet)
        self._done = text == b"done"
        if not self._done:
            if not text.startswith(b"have "):
                raise InvalidArgument("expected a have", line=shown(text))
            self._haves.append(self._oid(text[5:]))
        return self._done

    @property
    def wanted(self) -> bool:
        """Whether the flush behind the wants has come."""
        return self._wanted

    def next_round(self) -> None:
        """Forget the haves of the round that has ended."""
        self._haves.clear()
        self._lines = 0
        self.ended = False

    def finish(self) -> Fetch | None:
        """Return the request."""
        self._close()
        if not self.ended and (self._spoke or (self._lines and not self._wanted)):
            raise MalformedPacket("request ends before its flush")
        found = self.request()
        return (
            None if found is None or (found.shallow_only and not found.deepening.asked) else found
        )

    def request(self) -> Fetch | None:
        """Return the request as far as it has come: once ``wanted``, all but the haves. None without wants."""
        if not self._wants:
            return None
        told = self._capabilities
        deepening = self._deepening.finish(relative=b"deepen-relative" in told)
        return Fetch(
            0,
            tuple(self._wants),
            tuple(self._haves),
            self._done,
            thin_pack=b"thin-pack" in told,
            ofs_delta=b"ofs-delta" in told,
            include_tag=b"include-tag" in told,
            no_progress=b"no-progress" in told,
            no_done=b"no-done" in told,
            multi_ack=2 if b"multi_ack_detailed" in told else int(b"multi_ack" in told),
            sideband=2 if b"side-band-64k" in told else int(b"side-band" in told),
            deepening=deepening,
            filters=self._filters,
            shallow_only=not self.ended,
            session_id=self._session_id,
        )


_KNOWN = frozenset([*CAPABILITIES.split(), b"no-done"])


def parse_v0(data: bytes, kind: HashKind, *, limits: Limits = DEFAULT) -> Fetch | None:
    """Return the request in a whole v0 (or v1) body. Errors as RequestReader."""
    reader = RequestV0(kind, limits=limits)
    reader.receive(data)
    return reader.finish()


def shallow_lines(shallow: Iterable[ObjectId], unshallow: Iterable[ObjectId]) -> bytes:
    """Return where the client's boundary stands from now on, before the answers to its haves."""
    lines = [line(b"shallow " + oid.hex().encode()) for oid in shallow]
    lines += [line(b"unshallow " + oid.hex().encode()) for oid in unshallow]
    return b"".join(lines) + FLUSH_BYTES


class NegotiationV0:
    """Answers haves as git's upload-pack does, those of one request or of all rounds of a stateful client.

    ``enough`` tells whether every want reaches something common by now. Call ``have`` for each
    have, then ``flush`` or ``done``; the pack follows when that returned True beside its bytes.
    """

    def __init__(self, request: Fetch, enough: Callable[[], bool]) -> None:
        self._request = request
        self._enough = enough
        self._detailed = request.multi_ack == 2
        self._last = b""
        self._common = 0  # haves that were news to us
        self._got_common = self._got_other = self._ready = False

    def have(self, oid: ObjectId, *, known: bool, news: bool) -> bytes:
        """Answer one have; ``news`` is False for one that an earlier have implied."""
        text = oid.hex().encode()
        multi = self._request.multi_ack
        if not known:
            self._got_other = True
            if not (multi and self._enough()):
                return b""
            self._ready = self._ready or self._detailed
            return line(b"ACK " + text + (b" ready\n" if self._detailed else b" continue\n"))
        self._got_common = True
        self._common += news
        self._last = text
        if multi:
            return line(b"ACK " + text + (b" common\n" if self._detailed else b" continue\n"))
        return line(b"ACK " + text + b"\n") if self._common == 1 else b""

    def flush(self) -> tuple[bytes, bool]:
        """End a round. True: the client agreed to take the pack as soon as we are ready."""
        out = b""
        if self._detailed and self._got_common and not self._got_other and self._enough():
            self._ready = True
            out += line(b"ACK " + self._last + b" ready\n")
        if not self._common or self._request.multi_ack:
            out += line(b"NAK\n")
        if self._request.no_done and self._ready:
            return out + line(b"ACK " + self._last + b"\n"), True
        self._got_common = self._got_other = False
        return out, False

    def done(self) -> tuple[bytes, bool]:
        """Answer "done": the pack follows."""
        if not self._common:
            return line(b"NAK\n"), True
        if self._request.multi_ack:
            return line(b"ACK " + self._last + b"\n"), True
        return b"", True
