"""Receive: the push side of Git's protocol for any edge; the edge brings bytes and writes what comes out."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

from shardgit import telemetry
from shardgit.errors import (
    AlreadyExists,
    FsckRefused,
    InvalidArgument,
    LimitExceeded,
    ShardgitError,
    Unavailable,
)
from shardgit.protocol.pktline import FLUSH_BYTES, band
from shardgit.protocol.receive_pack import (
    PushAdvertisement,
    PushCapabilities,
    PushReader,
    end_of_answer,
    report,
)
from shardgit.protocol.upload_pack import AdvertisedRef
from shardgit.service.access import Action, authorize
from shardgit.service.fscking import lines_of
from shardgit.service.hiding import hidden_from_push
from shardgit.service.pack_spool import PackSpool
from shardgit.service.push import Push, Pushed
from shardgit.service.push_hooks import ask_hooks, tell_hooks
from shardgit.service.settings import settings_of
from shardgit.service.signed_push import certificate_facts, certificate_refusal, nonce_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence

    from shardgit.journal.records import RepositoryRecord
    from shardgit.protocol.receive_pack import PushRequest
    from shardgit.refs.ref import Ref
    from shardgit.service.access import Principal
    from shardgit.service.signed_push import CertificateFacts
    from shardgit.service.store import Store

T = TypeVar("T")
KEEPALIVE_S = 5.0
KEEPALIVE = b"0005\x02"  # an empty packet of band 2
PAGE_REFS = 8_192
HEADS = b"refs/heads/"


class ReceiveService:
    """Takes pushes into the repositories of a store."""

    def __init__(self, store: Store, *, version: str, keepalive_s: float = KEEPALIVE_S) -> None:
        self.store = store
        self.version = version
        self.keepalive_s = keepalive_s

    # ---- refs ----

    async def advertisement(
        self, name: str, *, principal: Principal, nonce: bytes | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Return the ref advertisement as packets, without a service or version line.

        A repository with more refs than its ``receive.advertise_cap`` shows its branches only, and of these as many
        as the cap allows: what is not shown can be pushed all the same. ``nonce`` is what a signed push must bear;
        without it a new one is shown where signed pushes are on.
        """
        authorize(principal, Action.WRITE, name)
        run = self.store.workers.run
        record = await run(self._record, name)
        settings = settings_of(record)
        offered = self._offered(record, nonce_of(record) if nonce is None else nonce)
        writer = PushAdvertisement(record.hash_kind, self.version, offered)
        hidden = hidden_from_push(settings)
        prefixes, left = await run(self._shown, name)
        after = b""
        while left:
            refs, last = await run(self._page, name, prefixes, after, min(left, PAGE_REFS))
            left -= len(refs)
            shown = [ref for ref in refs if not hidden.hides(ref.name)]
            if shown:
                yield writer.add(shown)
            if not last:
                break
            after = last
        yield writer.end()

    def _record(self, name: str) -> RepositoryRecord:
        with self.store.journal.snapshot() as snapshot:
            return self.store.repository(snapshot, name)

    def _offered(self, record: RepositoryRecord, nonce: bytes) -> PushCapabilities:
        receive = settings_of(record).receive
        return PushCapabilities(
            atomic=receive.atomic, push_options=receive.push_options, nonce=nonce
        )

    def _shown(self, name: str) -> tuple[tuple[bytes, ...], int]:
        """Return which refs an advertisement shows, as prefixes and the most."""
        with self.store.journal.snapshot() as snapshot:
            record = self.store.repository(snapshot, name)
            count = self.store.refs.head(snapshot, record).count
        receive = settings_of(record).receive
        if receive.advertise == "all" or (
            receive.advertise == "auto" and count <= receive.advertise_cap
        ):
            return (), count + PAGE_REFS
        return (HEADS,), receive.advertise_cap

    def _page(
        self, name: str, prefixes: Sequence[bytes], after: bytes, most: int
    ) -> tuple[list[AdvertisedRef], bytes]:
        with self.store.journal.snapshot() as snapshot:
            record = self.store.repository(snapshot, name)
            found = list(
                self.store.refs.list(
                    snapshot, record, prefixes=prefixes, start_after=after, limit=most
                )
            )

            def final(ref: Ref) -> AdvertisedRef:
                target = ref.target
                if ref.symbolic is not None:
                    at = self.store.refs.get(snapshot, record, ref.symbolic)
                    target = at.target if at is not None else None
                return AdvertisedRef(ref.name, target)

            refs = [final(ref) for ref in found]
        return refs, found[-1].name if len(found) == most else b""

    # ---- pushes ----

    async def receive(
        self,
        name: str,
        pieces: AsyncIterator[bytes],
        *,
        principal: Principal,
        stateful: bool = False,
        nonce: bytes | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Read a push and yield the answer.

        ``stateful``: the client's stream may go on behind the pack, whose end is found by reading it. Errors before
        the first piece are raised and nothing else; those of the pack are told in the report.
        """
        authorize(principal, Action.WRITE, name)
        record = await self.store.workers.run(self._record, name)
        reader = PushReader(
            record.hash_kind,
            limits=self.store.limits,
            offered=self._offered(record, b""),
        )
        rest = await self._head(reader, pieces)
        request = reader.finish()
        if request is None:
            return
        async with PackSpool(self.store, self._pack_most(record), record.hash_kind) as spool:
            if request.has_pack:
                await spool.fill(rest, pieces, to_its_end=stateful)
            elif not stateful:
                async for _ in pieces:
                    pass  # a client that sends a pack with nothing but deletions
            answer = self._answer(name, request, spool, principal=principal, nonce=nonce)
            async with aclosing(answer):
                async for piece in answer:
                    yield piece

    async def _head(self, reader: PushReader, pieces: AsyncIterator[bytes]) -> bytes:
        """Read the commands; returns what follows them. What is wrong with them is raised when all was read."""
        wrong: ShardgitError | None = None
        async for piece in pieces:
            if wrong is not None:
                continue
            try:
                rest = reader.receive(piece)
            except ShardgitError as error:
                wrong = error
                continue
            if rest is not None:
                return rest
        if wrong is not None:
            raise wrong
        return b""

    def _pack_most(self, record: RepositoryRecord) -> int:
        most = settings_of(record).receive.max_push_bytes
        return min(
            most or self.store.limits.push_pack_max_bytes, self.store.limits.push_pack_max_bytes
        )

    async def _answer(
        self,
        name: str,
        request: PushRequest,
        spool: PackSpool,
        *,
        principal: Principal,
        nonce: bytes | None,
    ) -> AsyncGenerator[bytes, None]:
        """Carry out a push whose bytes are here; yield what the client hears of it."""
        told = _Told(request)
        push = await self.store.workers.run(Push, self.store, name, request, principal=principal)
        async for piece in self._unpack(told, push, spool):
            yield piece
        facts = None
        if told.unpack is None:
            facts = await self.store.workers.run(
                certificate_facts, push.record, request, given=nonce
            )
            reason = certificate_refusal(push.settings, request, facts)
            if reason is not None:
                push.refuse_all(reason)
            async for piece in self._while(told, push.check):
                yield piece
            for text in told.drain(push):
                yield text
            async for piece in self._asked(told, push, facts):
                yield piece
        async for piece in self._commit(told, push):
            yield piece
        outcome = told.outcome
        answer = end_of_answer(request, report(request, told.unpack, outcome.results))
        # As with git, the client has its report before post-receive hooks run.
        yield answer.removesuffix(FLUSH_BYTES) if request.sideband else answer
        if outcome.sequence:
            async for piece in self._heard(told, push, facts, outcome):
                yield piece
        if request.sideband:
            yield FLUSH_BYTES

    async def _unpack(
        self, told: _Told, push: Push, spool: PackSpool
    ) -> AsyncGenerator[bytes, None]:
        """Take the pack; what is wrong with it condemns every command and is told in the report."""
        try:
            if spool.refused is not None:
                raise spool.refused
            if told.request.has_pack:
                async for piece in self._while(told, lambda: push.take(*spool.pack())):
                    yield piece
        except (InvalidArgument, LimitExceeded, AlreadyExists) as error:
            told.unpack = _unpack_text(error)
            for text in told.of_error(error):
                yield text
            push.unpack_failed(error)

    async def _commit(self, told: _Told, push: Push) -> AsyncGenerator[bytes, None]:
        try:
            async for piece in self._while(told, push.commit):
                yield piece
        except (LimitExceeded, Unavailable) as error:
            telemetry.log().warning("push_not_committed", repository=push.name, error=str(error))
            told.take(push.failed(error))
        for text in told.drain(push):
            yield text

    # ---- hooks ----

    async def _asked(
        self, told: _Told, push: Push, facts: CertificateFacts | None
    ) -> AsyncGenerator[bytes, None]:
        """Let the hooks refuse the push, or single refs, while its objects are in quarantine."""
        line = _Line(told.request)
        async for piece in self._talking(line, ask_hooks(push, facts=facts, tell=line.tell)):
            yield piece

    async def _heard(
        self, told: _Told, push: Push, facts: CertificateFacts | None, outcome: Pushed
    ) -> AsyncGenerator[bytes, None]:
        """Tell the post-receive hooks; what they say while the client waits, it hears."""
        line = _Line(told.request)
        telling = tell_hooks(push, outcome, facts=facts, tell=line.tell)
        async for piece in self._talking(line, telling):
            yield piece

    async def _talking(
        self, line: _Line, talk: Coroutine[object, object, None]
    ) -> AsyncGenerator[bytes, None]:
        """Run hooks; yield what they say as they say it, and a sign of life while they are silent."""
        task = asyncio.ensure_future(talk)
        task.add_done_callback(lambda _: line.close())
        try:
            while (piece := await line.next(self.keepalive_s)) is not None:
                if piece:
                    yield piece
            await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def _while(self, told: _Told, job: Callable[[], object]) -> AsyncGenerator[bytes, None]:
        """Run a job on a worker; yield a sign of life from time to time. Its result goes into ``told``."""
        task = asyncio.ensure_future(self.store.workers.run(job))
        try:
            while True:
                ended, _ = await asyncio.wait({task}, timeout=self.keepalive_s)
                if ended:
                    break
                if told.request.sideband:
                    yield KEEPALIVE
            told.take(task.result())
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})


class _Line:
    """Carries what hooks say to the client, at its pace: one piece waits, no more."""

    def __init__(self, request: PushRequest) -> None:
        self._shown = bool(request.sideband)
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._closed = asyncio.Event()

    async def tell(self, data: bytes) -> None:
        """Say something; dropped for a client without side-bands."""
        if self._shown and data and not self._closed.is_set():
            await self._pieces.put(band(2, data))

    def close(self) -> None:
        """Nothing more will be said."""
        self._closed.set()

    async def next(self, seconds: float) -> bytes | None:
        """Return the next piece, a sign of life after some seconds without, None at the end."""
        get = asyncio.ensure_future(self._pieces.get())
        end = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait({get, end}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if get.done():
                return get.result()
            if end.done():
                return None if self._pieces.empty() else self._pieces.get_nowait()
            return KEEPALIVE if self._shown else b""
        finally:
            for task in (get, end):
                if not task.done():
                    task.cancel()
                    await asyncio.wait({task})


class _Told:
    """What the client of one push hears beside the report."""

    def __init__(self, request: PushRequest) -> None:
        self.request = request
        self.unpack: str | None = None  # what is wrong with the pack
        self._outcome: object = None

    def take(self, result: object) -> None:
        self._outcome = result

    @property
    def outcome(self) -> Pushed:
        assert isinstance(self._outcome, Pushed)
        return self._outcome

    def drain(self, push: Push) -> list[bytes]:
        """Return what the engine has to say since the last time."""
        lines, push.told = push.told, []
        return self.lines(lines)

    def lines(self, lines: Sequence[str]) -> list[bytes]:
        """Return lines on band 2; nothing for a client without side-bands."""
        if not self.request.sideband:
            return []
        return [band(2, _printable(text) + b"\n") for text in lines]

    def of_error(self, error: ShardgitError) -> list[bytes]:
        if isinstance(error, FsckRefused):
            return self.lines([*lines_of(error), f"fatal: {error.message}"])
        return self.lines([f"fatal: {error}"])


def _printable(text: str) -> bytes:
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in text).encode()[:4_000]


def _unpack_text(error: ShardgitError) -> str:
    return error.message if isinstance(error, FsckRefused) else str(error)
