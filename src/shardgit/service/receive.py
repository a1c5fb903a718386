"""Receive: the push side of Git's protocol for any edge; the edge brings bytes and writes what comes out."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from shardgit import faultpoints, telemetry
from shardgit.errors import (
    Conflict,
    LimitExceeded,
    ShardgitError,
    Unavailable,
)
from shardgit.journal.graft_records import grafts_key
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
from shardgit.service.hiding import hidden_from_push
from shardgit.service.intake import SMALL_BYTES
from shardgit.service.pack_spool import PackSpool
from shardgit.service.push import COMMANDS_FEW, Push, Pushed
from shardgit.service.push_hooks import ask_hooks, tell_hooks
from shardgit.service.settings import settings_of
from shardgit.service.signed_push import nonce_of
from shardgit.workers import Later

if TYPE_CHECKING:
    from array import array
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine

    from typing_extensions import Buffer

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.journal.records import RepositoryRecord
    from shardgit.protocol.receive_pack import PushRequest
    from shardgit.service.access import Principal
    from shardgit.service.push import Steps
    from shardgit.service.store import Store

    PackSource = Callable[[], tuple[Buffer, array[int] | None]]

T = TypeVar("T")
KEEPALIVE_S = 5.0
KEEPALIVE = b"0005\x02"  # an empty packet of band 2
PAGE_REFS = 8_192
FEW_REFS = 32  # that the event loop itself lists
HEADS = b"refs/heads/"


@dataclass(frozen=True, slots=True)
class _Page:
    """A part of an advertisement: its lines, and where the next one begins, b"" behind the last."""

    writer: PushAdvertisement
    prefixes: tuple[bytes, ...]
    left: int
    after: bytes = b""
    lines: bytes = b""


@dataclass(frozen=True, slots=True)
class Tried:
    """A push that was judged, and how its commit ended: at a revision, or by an error; None where none was made."""

    push: Push
    ended: int | BaseException | None = None
    asks: bool = False  # hooks come first


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
        # A few rows of the journal cost less than a hop to a thread.
        page = self._first_page(name, nonce, most=FEW_REFS)
        page = page or await run(self._first_page, name, nonce)
        assert page is not None
        yield page.lines
        while page.after:
            page = await run(self._next_page, name, page)
            yield page.lines

    def _record(self, name: str) -> RepositoryRecord:
        with self.store.journal.snapshot() as snapshot:
            return self.store.repository(snapshot, name)

    def _offered(self, record: RepositoryRecord, nonce: bytes) -> PushCapabilities:
        receive = settings_of(record).receive
        return PushCapabilities(
            atomic=receive.atomic, push_options=receive.push_options, nonce=nonce
        )

    def _first_page(self, name: str, nonce: bytes | None, most: int | None = None) -> _Page | None:
        """Return the first page; None where more than ``most`` refs must be read, or the ends of a shallow history."""
        with self.store.journal.snapshot() as snapshot:
            record = self.store.repository(snapshot, name)
            head = self.store.refs.head(snapshot, record)
            count = head.count
            if most is not None and (
                max(count, head.loose) > most or snapshot.get(grafts_key(record.id)) is not None
            ):
                return None
            receive = settings_of(record).receive
            whole = receive.advertise == "all" or (
                receive.advertise == "auto" and count <= receive.advertise_cap
            )
            offered = self._offered(record, nonce_of(record) if nonce is None else nonce)
            writer = PushAdvertisement(record.hash_kind, self.version, offered)
            left = count + PAGE_REFS if whole else receive.advertise_cap
            page = _Page(writer, () if whole else (HEADS,), left)
            return self._filled(snapshot, record, page)

    def _next_page(self, name: str, page: _Page) -> _Page:
        with self.store.journal.snapshot() as snapshot:
            return self._filled(snapshot, self.store.repository(snapshot, name), page)

    def _filled(self, snapshot: JournalSnapshot, record: RepositoryRecord, page: _Page) -> _Page:
        """Return the lines of the refs behind a page's; each page is a snapshot of its own."""
        most = min(page.left, PAGE_REFS)
        refs = self.store.refs
        found = list(
            refs.list(snapshot, record, prefixes=page.prefixes, start_after=page.after, limit=most)
        )
        hidden = hidden_from_push(settings_of(record))
        shown = []
        for ref in found:
            target = ref.target
            if ref.symbolic is not None:
                at = refs.get(snapshot, record, ref.symbolic)
                target = at.target if at is not None else None
            if not hidden.hides(ref.name):
                shown.append(AdvertisedRef(ref.name, target))
        lines = page.writer.add(shown)
        left = page.left - len(found)
        more = bool(left) and len(found) == most
        if not more:
            # Clients make nothing of them; behind hidden refs they are nobody's business.
            grafts = [] if hidden else sorted(self.store.grafts(snapshot, record))
            lines += page.writer.end(grafts)
        return replace(page, left=left, after=found[-1].name if more else b"", lines=lines)

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
        record = self._record(name)  # two rows of the journal: 20 us, a hop to a thread costs 100
        reader = PushReader(
            record.hash_kind,
            limits=self.store.limits,
            offered=self._offered(record, b""),
        )
        rest = await self._head(reader, pieces, to_its_end=not stateful)
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

    async def _head(
        self, reader: PushReader, pieces: AsyncIterator[bytes], *, to_its_end: bool
    ) -> bytes:
        """Read the commands; returns what follows them.

        What is wrong with them is raised at once, or when all was read: a stream that goes both ways has no end while
        the client waits for an answer.
        """
        wrong: ShardgitError | None = None
        async for piece in pieces:
            if wrong is not None:
                continue
            try:
                rest = reader.receive(piece)
            except ShardgitError as error:
                if not to_its_end:
                    raise
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
        begun: list[Tried] = []

        def begin() -> Tried | Later[Tried]:
            small = spool.size <= SMALL_BYTES and len(request.commands) <= COMMANDS_FEW
            if not small or request.certificate:  # no snapshot may live as long as these take
                push = Push(self.store, name, request, principal=principal)
                return self._judged(push, spool, nonce)
            with ExitStack() as held:
                snapshot = held.enter_context(self.store.journal.snapshot())
                push = Push(self.store, name, request, principal=principal, snapshot=snapshot)
                held.callback(push.leave_snapshot)
                if not push.look.is_quick or not push.has_room():
                    held.close()
                return self._judged(push, spool, nonce)

        async def carry_out() -> None:
            begun.append(await self.store.workers.run_through(begin))
            if not begun[0].asks:
                await self._commit(begun[0].push, begun[0])

        async for piece in self._while(request, carry_out()):
            yield piece
        push = begun[0].push
        for text in _told(push):
            yield text
        if begun[0].asks:
            if push.unpack_error is None:
                async for piece in self._asked(push):
                    yield piece
            async for piece in self._while(request, self._commit(push, None)):
                yield piece
            for text in _told(push):
                yield text
        outcome = push.outcome()
        if not outcome.revision:
            self._audit(push)
        if (
            outcome.revision and push.is_small
        ):  # behind the answer, which leaves in this turn of the loop
            asyncio.get_running_loop().call_soon(push.keep_view)
        answer = end_of_answer(request, report(request, push.unpack_error, outcome.results))
        if not outcome.sequence or self.store.events is None or not push.settings.hooks:
            yield answer  # in one piece: one write to the socket
            return
        # As with git, the client has its report before post-receive hooks run.
        yield answer.removesuffix(FLUSH_BYTES) if request.sideband else answer
        async for piece in self._heard(push, outcome):
            yield piece
        if request.sideband:
            yield FLUSH_BYTES

    def _audit(self, push: Push) -> None:
        """Tell the audit log how a push ended."""
        results = push.outcome().results
        reasons = {one.command.name: one.error for one in results if one.error is not None}
        commands = push.request.commands
        moves = [(one.name, one.old, one.new) for one in commands]
        self.store.audit.refs("push", push.principal, push.name, moves, reasons=reasons)

    def _judged(self, push: Push, spool: PackSpool, nonce: bytes | None) -> Tried | Later[Tried]:
        """Judge a push and, where no hook has to be asked, try to commit it: all as one job.

        What fails for a reason of the store's is told in the report, as all else is.
        """
        hooks = self.store.hooks
        try:
            if spool.refused is not None:
                push.unpack_failed(spool.refused)
            else:
                push.judge(spool.pack if push.request.has_pack else None, nonce=nonce)
        except (ShardgitError, OSError, MemoryError) as error:
            telemetry.log().error("push_not_judged", repository=push.name, exc_info=error)
            told = error.message if isinstance(error, ShardgitError) else "internal error"
            push.unpack_failed(Unavailable(told))
        if hooks is not None and hooks.wanted(push.record):
            return Tried(push, asks=True)
        try:
            return self._tried(push)
        except ShardgitError as error:
            _not_committed(push, error)
            return Tried(push)

    def _tried(self, push: Push) -> Tried | Later[Tried]:
        """Plan a commit and hand it on to the journal's writer. No thread waits for the disk: pushes share its fsyncs.

        And the event loop is not woken in between.
        """
        steps = push.steps()
        if steps is None:
            return Tried(push)
        # commit point: as in Push.commit.
        faultpoints.reach("receive.before_commit")
        return Later(partial(self._hand_on, push, steps))

    def _hand_on(self, push: Push, steps: Steps, tell: Callable[[Tried], None]) -> None:
        def answer(ended: int | BaseException) -> None:
            tell(Tried(push, ended))

        try:
            self.store.journal.commit_soon(steps.conditions, steps.operations, answer)
        except ShardgitError as error:  # told in the report too: it was not taken at all
            tell(Tried(push, error))

    async def _commit(self, push: Push, tried: Tried | None) -> None:
        """Commit, again while other writers are faster or the pool has no room."""
        try:
            while True:
                ended = (tried or await self._try(push)).ended
                match ended:
                    case int(revision):
                        faultpoints.reach("receive.after_commit")
                        push.landed(revision)
                        self._audit(push)
                        if not push.is_small:
                            await self.store.workers.run(push.keep_view)
                        return
                    case Conflict():
                        push.lost()
                    case ShardgitError():  # not raised: it would lead to this frame, and keep all that it holds
                        _not_committed(push, ended)
                        return
                    case BaseException():
                        raise ended
                    case None if push.waiting:
                        await asyncio.sleep(push.waiting)
                    case None:
                        return  # nothing is left to do
                tried = None
        except ShardgitError as error:
            _not_committed(push, error)

    async def _try(self, push: Push) -> Tried:
        return await self.store.workers.run_through(lambda: self._tried(push))

    # ---- hooks ----

    async def _asked(self, push: Push) -> AsyncGenerator[bytes, None]:
        """Let the hooks refuse the push, or single refs, while its objects are in quarantine."""
        if self.store.hooks is None or not self.store.hooks.wanted(push.record):
            return
        line = _Line(push.request)
        async for piece in self._talking(line, ask_hooks(push, facts=push.facts, tell=line.tell)):
            yield piece

    async def _heard(self, push: Push, outcome: Pushed) -> AsyncGenerator[bytes, None]:
        """Tell the post-receive hooks; what they say while the client waits, it hears."""
        line = _Line(push.request)
        telling = tell_hooks(push, outcome, facts=push.facts, tell=line.tell)
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

    async def _while(
        self, request: PushRequest, work: Coroutine[object, object, object]
    ) -> AsyncGenerator[bytes, None]:
        """Let work go on; yield a sign of life from time to time."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=self.keepalive_s))[0]:
                if request.sideband:
                    yield KEEPALIVE
            task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            # An error of its leads to this frame, and would keep all that the frames above hold, a lease among it.
            del task


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


def _not_committed(push: Push, error: ShardgitError) -> None:
    """Note a commit that failed for a reason of the store's; the client has it in its report."""
    expected = isinstance(error, LimitExceeded | Unavailable)
    say = telemetry.log().warning if expected else telemetry.log().error
    say("push_not_committed", repository=push.name, error=str(error))
    push.failed(error)


def _told(push: Push) -> list[bytes]:
    """Return what the engine has to say since the last time, on band 2; nothing for a client without side-bands."""
    lines = list(push.told)
    push.told.clear()  # in place: all that judges the push writes there
    if not push.request.sideband:
        return []
    return [band(2, _printable(text) + b"\n") for text in lines]


def _printable(text: str) -> bytes:
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in text).encode()[:4_000]
