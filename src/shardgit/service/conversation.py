"""Git's protocols over a stream that goes both ways and keeps its state: SSH, bidirectional calls.

An edge hands in the client's bytes as an iterator and writes what comes out as the client takes it. What is wrong is
told in the client's own words (an ERR packet, or band 3 under way) and then raised, once, for the edge's log and exit
code.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

from shardgit.errors import (
    DataLoss,
    Internal,
    ShardgitError,
    Unavailable,
)
from shardgit.protocol.pktline import PacketReader, error_line
from shardgit.protocol.upload_pack import Fetch
from shardgit.protocol.upload_pack_v0 import VERSION_1_LINE, RequestV0
from shardgit.protocol.upload_pack_v2 import RequestV2, advertise_v2
from shardgit.service.access import Action, authorize
from shardgit.service.archive import upload_archive
from shardgit.service.fetch import FetchService
from shardgit.service.receive import ReceiveService
from shardgit.service.signed_push import nonce_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from shardgit.protocol.pktline import Packet
    from shardgit.protocol.upload_pack_v2 import Command
    from shardgit.service.access import Principal
    from shardgit.service.negotiation import FetchSession
    from shardgit.service.store import Store


class GitService(enum.Enum):
    """What a client may start, by git's names."""

    UPLOAD_PACK = "git-upload-pack"
    RECEIVE_PACK = "git-receive-pack"
    UPLOAD_ARCHIVE = "git-upload-archive"


class Receives(Protocol):
    """What a conversation needs of pushes."""

    def advertisement(
        self, name: str, *, principal: Principal, nonce: bytes | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Return the ref advertisement."""

    def receive(
        self,
        name: str,
        pieces: AsyncIterator[bytes],
        *,
        principal: Principal,
        stateful: bool = False,
        nonce: bytes | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Read a push from pieces and return the answer."""


class Conversations:
    """Holds conversations about the repositories of a store."""

    def __init__(
        self,
        store: Store,
        *,
        version: str,
        fetches: FetchService | None = None,
        receives: Receives | None = None,
    ) -> None:
        self.store = store
        self.limits = store.limits
        self.version = version
        self.fetches = fetches or FetchService(store, version=version)
        self.receives: Receives = receives or ReceiveService(store, version=version)

    async def converse(
        self,
        service: GitService,
        name: str,
        pieces: AsyncIterator[bytes],
        *,
        principal: Principal,
        version: int = 0,
    ) -> AsyncGenerator[bytes, None]:
        """Speak a service's side until the conversation ends; ``version`` is what the client asked for.

        Every error comes behind what tells the client of it. A client that stops talking is
        Unavailable after ``limits.client_pause_max_s``.
        """
        talk = _Talk(self, name, version, principal)
        source = {
            GitService.UPLOAD_PACK: talk.upload_pack,
            GitService.RECEIVE_PACK: talk.receive_pack,
            GitService.UPLOAD_ARCHIVE: talk.upload_archive,
        }[service](pieces)
        try:
            async with aclosing(source) as out:
                async for piece in out:
                    yield piece
        except Exception as error:
            if not talk.silent:
                yield error_line(told(error))
            raise


class _Talk:
    """One conversation. ``silent`` once an error has been told, or cannot be."""

    def __init__(self, host: Conversations, name: str, version: int, principal: Principal) -> None:
        self.host = host
        self.name = name
        self.version = version
        self.principal = principal
        self.silent = False

    # ---- git-upload-pack ----

    async def upload_pack(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        authorize(self.principal, Action.READ, self.name)
        packets = _Packets(pieces, self.host)
        source = self._upload_v2(packets) if self.version == 2 else self._upload_v0(packets)
        async with aclosing(source) as out:
            async for piece in out:
                yield piece

    async def _upload_v2(self, packets: _Packets) -> AsyncGenerator[bytes, None]:
        """Answer commands until the client says good-bye or hangs up."""
        fetches, limits = self.host.fetches, self.host.limits
        terms = await fetches.terms(self.name)
        yield advertise_v2(
            terms.kind, self.host.version, terms.offer, bundle_uri=terms.lists_bundles
        )
        while True:
            reader = RequestV2(terms.kind, limits=limits, offer=terms.offer)
            while (packet := await packets.next()) is not None and not reader.take(packet):
                pass
            command = reader.finish()
            if command is None:
                return
            async with aclosing(self._answer(command)) as out:
                async for piece in out:
                    yield piece

    async def _answer(self, command: Command) -> AsyncGenerator[bytes, None]:
        source = self.host.fetches.answer(self.name, command)
        async with aclosing(source) as out:
            async for piece in out:
                # Errors of a fetch go out on band 3 once its answer has begun.
                self.silent = isinstance(command, Fetch)
                yield piece
        self.silent = False

    async def _upload_v0(self, packets: _Packets) -> AsyncGenerator[bytes, None]:
        """Show the refs, read wants, answer haves round by round, send the pack."""
        fetches = self.host.fetches
        terms = await fetches.terms(self.name)
        if self.version == 1:
            yield VERSION_1_LINE
        async with aclosing(fetches.advertisement(self.name, terms)) as refs:
            async for piece in refs:
                yield piece
        reader = RequestV0(terms.kind, limits=self.host.limits, offer=terms.offer)
        session: FetchSession | None = None
        while True:
            packet = await packets.next()
            if packet is None:  # it has seen the refs and goes, or was cut off
                reader.finish()
                return
            ended = reader.take(packet)
            if session is None and reader.wanted:
                request = reader.request()
                if request is None:
                    return
                # One look at the repository for all rounds: what was acknowledged stays true.
                session = await fetches.session(self.name, request)
                opening = await self.host.store.workers.run(session.opening)
                if opening:
                    yield opening
            if not ended or session is None:
                continue
            asked = reader.request()
            assert asked is not None
            run = self.host.store.workers.run
            answer, pack_follows = await run(session.round, asked.haves, done=asked.done)
            if pack_follows:
                break
            yield answer
            reader.next_round()
        async with aclosing(fetches.pack(session, answer)) as pack:
            async for piece in pack:
                self.silent = True
                yield piece

    # ---- git-receive-pack ----

    async def receive_pack(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        authorize(self.principal, Action.WRITE, self.name)
        receives, who = self.host.receives, self.principal
        nonce = await self.host.store.workers.run(self._nonce)
        shown = receives.advertisement(self.name, principal=who, nonce=nonce)
        begun = False
        async with aclosing(shown) as refs:
            async for piece in refs:
                if self.version == 1 and not begun:
                    yield VERSION_1_LINE
                begun = True
                yield piece
        timed = _timed(pieces, self.host.limits.client_pause_max_s)
        answer = receives.receive(self.name, timed, principal=who, stateful=True, nonce=nonce)
        async with aclosing(timed), aclosing(answer) as out:
            async for piece in out:
                self.silent = True  # what goes wrong from here on stands in the report
                yield piece

    def _nonce(self) -> bytes:
        """Return what a signed push of this conversation must bear."""
        with self.host.store.journal.snapshot() as snapshot:
            return nonce_of(self.host.store.repository(snapshot, self.name))

    # ---- git-upload-archive ----

    async def upload_archive(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        arguments = _timed(pieces, self.host.limits.client_pause_max_s)
        source = upload_archive(self.host.store, self.name, arguments, self.principal)
        async with aclosing(source) as out:
            async for piece in out:
                self.silent = True  # what goes wrong from here on is told within the answer
                yield piece


class _Packets:
    """The client's bytes as packets."""

    def __init__(self, pieces: AsyncIterator[bytes], host: Conversations) -> None:
        self._pieces = pieces
        self._reader = PacketReader()
        self._waiting: deque[Packet] = deque()
        self._pause_s = host.limits.client_pause_max_s
        self._ended = False

    async def next(self) -> Packet | None:
        """Return the next packet, None once the client has closed its side between two packets."""
        while not self._waiting:
            if self._ended:
                return None
            piece = await _next(self._pieces, self._pause_s)
            if piece is None:
                self._ended = True
                self._reader.finish()
            else:
                self._waiting.extend(self._reader.receive(piece))
        return self._waiting.popleft()


async def _next(pieces: AsyncIterator[bytes], pause_s: float) -> bytes | None:
    try:
        async with asyncio.timeout(pause_s):
            return await anext(pieces, None)
    except TimeoutError:
        raise Unavailable("client sent nothing for too long", seconds=pause_s) from None


async def _timed(pieces: AsyncIterator[bytes], pause_s: float) -> AsyncGenerator[bytes, None]:
    while (piece := await _next(pieces, pause_s)) is not None:
        yield piece


def told(error: Exception) -> str:
    """Return an error as its client may read it: what we did wrong without its facts."""
    if not isinstance(error, ShardgitError):
        return "internal error"
    hidden = isinstance(error, Internal | DataLoss)
    return error.message if hidden else str(error)


def asked_version(words: str) -> int:
    """Return the protocol version in the words of GIT_PROTOCOL: the highest known, else 0."""
    known = {"version=1": 1, "version=2": 2}
    return max((known.get(word, 0) for word in words.split(":")), default=0)
