"""Fetches: refs shown, haves answered, a pack sent. For any edge; the edge writes what comes out."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from shardgit import telemetry
from shardgit.errors import RefMissing, ShardgitError
from shardgit.kept import Kept
from shardgit.protocol.bundle_uri import BundleUriRequest, ListedBundle, bundle_list
from shardgit.protocol.object_info import ObjectInfoRequest
from shardgit.protocol.pktline import FLUSH_BYTES, SIDEBAND, SIDEBAND_64K, band, one_line
from shardgit.protocol.upload_pack import AdvertisedRef, Fetch, LsRefs, shown
from shardgit.protocol.upload_pack_v0 import AdvertisementV0
from shardgit.protocol.upload_pack_v2 import ls_refs_lines
from shardgit.service.answers import KEEPALIVE, Answers, Place, Whole, place_of
from shardgit.service.hiding import hidden_from_fetch
from shardgit.service.look import history_ends
from shardgit.service.negotiation import FetchSession
from shardgit.service.object_info import object_info
from shardgit.service.offer import Terms, offer_of
from shardgit.service.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Hashable, Iterator, Sequence

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.journal.records import RepositoryRecord
    from shardgit.kept import Looked
    from shardgit.oid import HashKind
    from shardgit.pool.transfer import Transfer
    from shardgit.protocol.upload_pack_v2 import Command
    from shardgit.refs.ref import Ref
    from shardgit.service.settings import FetchSettings
    from shardgit.service.static_packs import StaticPack
    from shardgit.service.store import Store

KEEPALIVE_S = 5.0
PAGE_REFS = 8_192
PAGE_BYTES = 2 << 20
PIECE_BYTES = 512 << 10  # of an answer: its client is watched as it takes one
# Whole answers; of longer ones the ref table keeps the lines of the pages that did not change.
ANSWER_KEPT_BYTES, ANSWERS_KEPT_BYTES = 1 << 20, 16 << 20
ANSWER_KEY_BYTES = 800  # of what an answer follows from, beside its prefixes
T = TypeVar("T")
Uris = Callable[[FetchSession], Awaitable["StaticPack | None"]]


def advertised(store: Store, name: str, prefixes: Sequence[bytes] = ()) -> list[AdvertisedRef]:
    """Return HEAD and the refs under ``prefixes``, HEAD first. Runs in the calling thread."""
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
        return shown_refs(store, snapshot, record, prefixes)


def shown_refs(
    store: Store, snapshot: JournalSnapshot, record: RepositoryRecord, prefixes: Sequence[bytes]
) -> list[AdvertisedRef]:
    """Return HEAD and the refs under ``prefixes`` that fetches are shown, HEAD first."""
    return _page(store, snapshot, record, LsRefs(prefixes=tuple(prefixes)), b"", None)[0]


class FetchService:
    """Serves fetches from the repositories of a store.

    Every method that returns an iterator of bytes raises what is wrong with the request before the
    first piece, so that an edge may still answer in its own words. Pieces are made as they are
    pulled, at most one ahead.
    """

    def __init__(self, store: Store, *, version: str, keepalive_s: float = KEEPALIVE_S) -> None:
        self.store = store
        self.version = version
        self.keepalive_s = keepalive_s
        self.session_id = uuid.uuid4().hex[:16].encode()  # of this process, for both sides' logs
        self.answers = Kept(ANSWERS_KEPT_BYTES)
        self.packs = Answers()

    def caches(self) -> dict[str, Looked]:
        """Return the caches of this process, by the names that metrics have for them."""
        return {"advertisements": self.answers, "answers": self.packs.looked}

    async def hash_kind(self, name: str) -> HashKind:
        """Return the hash of a repository's ids; RepositoryMissing without such a repository."""

        def look() -> HashKind:
            with self.store.journal.snapshot() as snapshot:
                return self.store.repository(snapshot, name).hash_kind

        return await self.store.workers.run(look)

    async def terms(self, name: str) -> Terms:
        """Return what must be known before a request is read. Errors: RepositoryMissing."""

        def look() -> Terms:
            with self.store.journal.snapshot() as snapshot:
                record = self.store.repository(snapshot, name)
            offer = offer_of(settings_of(record), session_id=self.session_id)
            fetch = settings_of(record).fetch
            return Terms(
                record.hash_kind,
                offer,
                packfile_uris=fetch.packfile_uris or bool(fetch.listed_packs),
                lists_bundles=bool(fetch.listed_bundles),
            )

        return await self.store.workers.run(look)

    async def advertisement(self, name: str, terms: Terms) -> AsyncGenerator[bytes, None]:
        """Return the v0 ref advertisement, without a service or version line."""
        writer = AdvertisementV0(terms.kind, self.version, terms.offer)
        ends = await self.store.workers.run(history_ends, self.store, name)
        key = ("v0", terms.offer, tuple(ends))
        end = partial(writer.end, ends)
        async with aclosing(self._refs(name, LsRefs(), key, writer.add, end, v0=True)) as pages:
            async for page in pages:
                yield page

    def ls_refs(self, name: str, request: LsRefs) -> AsyncGenerator[bytes, None]:
        """Return the answer to a v2 ls-refs."""

        def lines(refs: Sequence[AdvertisedRef]) -> bytes:
            return ls_refs_lines(refs, request)

        return self._refs(name, request, request, lines, lambda: FLUSH_BYTES)

    async def _refs(
        self,
        name: str,
        request: LsRefs,
        key: Hashable,
        lines: Callable[[Sequence[AdvertisedRef]], bytes],
        end: Callable[[], bytes],
        *,
        v0: bool = False,
    ) -> AsyncGenerator[bytes, None]:
        """Write refs, a page of one journal snapshot at a time: no reader outlives a page.

        A short answer is kept until the repository's refs change. One that was written over a change is as
        git's: each line was true while the answer was written.
        """
        written: list[bytes] = []
        places: set[Hashable] = set()

        def page(after: bytes) -> tuple[bytes, bytes]:
            with self.store.journal.snapshot() as snapshot:
                record = self.store.repository(snapshot, name)
                hidden = hidden_from_fetch(settings_of(record))
                place = (self.store.refs.state_key(snapshot, record), hidden.key, key)
                if not after and (known := self.answers.get(place)) is not None:
                    return known, b""
                if hidden:
                    refs, start = _page(self.store, snapshot, record, request, after, PAGE_REFS)
                    out = lines(refs)
                else:
                    out, start = _rendered(
                        self.store, snapshot, record, request, after, lines, v0=v0
                    )
            if not start:
                out += end()
            written.append(out)
            places.add(place)
            if sum(map(len, written)) > ANSWER_KEPT_BYTES:
                places.add(None)
            if len(places) > 1:  # too long, or of several states: not kept
                written.clear()
            elif not start:
                self.answers.put(
                    place,
                    b"".join(written),
                    ANSWER_KEY_BYTES + sum(64 + len(one) for one in request.prefixes),
                )
            return out, start

        ahead = _Ahead(self.store, partial(page, b""))
        try:
            while True:
                while not await ahead.within(self.keepalive_s):
                    pass
                out, after = ahead.result()
                if after:  # the next page is made while this one goes out
                    ahead = _Ahead(self.store, partial(page, after))
                for at in range(0, len(out), PIECE_BYTES):
                    yield out[at : at + PIECE_BYTES]
                if not after:
                    return
        finally:
            await ahead.close()

    async def fetch(
        self, name: str, request: Fetch, *, uris: Uris | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Answer a fetch of either version; ``uris`` finds a pack that stands at a URI.

        Errors before the first piece are raised and nothing else. A later one goes out on band 3,
        where the client has side-bands, and is raised behind it.
        """
        place, known = await self.store.workers.run(self._known, name, request)
        if place is not None and known is None:
            known = await self.packs.awaited(place)
        if known is not None:
            self._note(request)
            yield known
            return
        made: list[FetchSession] = []
        source = self._fetch(name, request, uris, made)
        if place is not None:
            at = place

            def still() -> bool:
                return made[0].follows_its_look and place_of(made[0].state, request) == at

            source = self.packs.keep(at, source, still)
        async with aclosing(source):
            async for piece in source:
                yield piece

    def _known(self, name: str, request: Fetch) -> tuple[Place | None, Whole | None]:
        """Return what the answer to a request follows from, and the answer where it is known."""
        with self.store.journal.snapshot() as snapshot:
            place = place_of(self.store.state(snapshot, name), request)
        return place, self.packs.get(place) if place is not None else None

    async def _fetch(
        self, name: str, request: Fetch, uris: Uris | None, made: list[FetchSession]
    ) -> AsyncGenerator[bytes, None]:
        session = await self.session(name, request)
        made.append(session)
        if uris is not None and request.uri_protocols:
            session.static = await uris(session)
        head, pack_follows = await self.store.workers.run(session.negotiate)
        if not pack_follows:
            yield head
            return
        async with aclosing(self.pack(session, head)) as pieces:
            async for piece in pieces:
                yield piece

    def answer(self, name: str, command: Command) -> AsyncGenerator[bytes, None]:
        """Answer any command of upload-pack."""
        if isinstance(command, ObjectInfoRequest):
            return object_info(self.store, name, command)
        if isinstance(command, LsRefs):
            return self.ls_refs(name, command)
        if isinstance(command, BundleUriRequest):
            return self._listed_bundles(name)
        return self.fetch(name, command)

    async def _listed_bundles(self, name: str) -> AsyncGenerator[bytes, None]:
        """Answer with the bundles that settings list; of others an edge that serves files knows."""

        def look() -> FetchSettings:
            with self.store.journal.snapshot() as snapshot:
                return settings_of(self.store.repository(snapshot, name)).fetch

        fetch = await self.store.workers.run(look)
        listed = [
            ListedBundle(one.id, one.uri, one.filter, one.creation_token)
            for one in fetch.listed_bundles
        ]
        yield bundle_list(listed, mode=fetch.listed_bundles_mode)

    async def session(self, name: str, request: Fetch) -> FetchSession:
        """Begin a fetch: wants are checked. Errors as FetchSession."""
        self._note(request)
        return await self.store.workers.run(FetchSession, self.store, name, request)

    def _note(self, request: Fetch) -> None:
        if request.session_id:
            ours, theirs = self.session_id.decode(), shown(request.session_id)
            telemetry.log().info("fetch_session", session=ours, client_session=theirs)

    async def pack(self, session: FetchSession, head: bytes = b"") -> AsyncGenerator[bytes, None]:
        """Send ``head`` and the pack of a fetch whose haves are answered. Errors as ``fetch``."""
        run, request = self.store.workers.run, session.request
        # Without side-bands an error can only be told instead of an answer, so we plan first.
        first = not request.sideband and session.view is not None and bool(session.wants)
        transfer = await run(session.transfer) if first else None
        if head:
            yield head
        try:
            async with aclosing(self._pack(session, transfer)) as pieces:
                async for piece in pieces:
                    yield piece
        except Exception as error:
            if request.sideband:
                yield band(3, _farewell(error), room=_room(request))
            raise

    async def _pack(
        self, session: FetchSession, transfer: Transfer | None
    ) -> AsyncGenerator[bytes, None]:
        """Send a pack with progress and keepalives, framed as the client asked."""
        request = session.request
        room = _room(request)
        talks = request.sideband > 0 and not request.no_progress
        if transfer is None and session.view is not None and session.wants:
            planned = _Ahead(self.store, session.transfer)
            try:
                while not await planned.within(self.keepalive_s):
                    yield KEEPALIVE
                transfer = planned.result()
            finally:
                await planned.close()
        objects = transfer.objects if transfer else 0
        chunks = transfer.chunks() if transfer else _nothing(session.record.hash_kind)
        framed = request.sideband == 0 or (transfer is not None and request.sideband == 2)
        if talks:
            yield band(2, b"Enumerating objects: %d, done.\n" % objects, room=room)
        ahead: _Ahead[bytes | None] | None = None
        try:
            while True:
                ahead = ahead or _Ahead(self.store, lambda: next(chunks, None))
                while not await ahead.within(self.keepalive_s):
                    if request.sideband:
                        yield KEEPALIVE
                chunk, ahead = ahead.result(), None
                if chunk is None:
                    break
                # The next one is made while this one goes out: 2 chunks a client, and no more. In a crowd
                # others keep the cores busy meanwhile, and one will do.
                if transfer is None or not transfer.is_crowded:
                    ahead = _Ahead(self.store, lambda: next(chunks, None))
                yield chunk if framed else band(1, chunk, room=room)
                del chunk
        finally:
            if ahead is not None:
                await ahead.close()
        if talks:
            again = transfer.sent.made_objects if transfer else 0
            counts = (objects, objects - again, again)
            yield band(2, b"Total %d (reused %d, rewritten %d)\n" % counts, room=room)
        if request.sideband:
            yield FLUSH_BYTES


class _Ahead(Generic[T]):
    """A job begun on a worker, to be waited for in steps; ``close`` waits for what was begun."""

    def __init__(self, store: Store, job: Callable[[], T]) -> None:
        self._task = asyncio.ensure_future(store.workers.run(job))

    async def within(self, seconds: float) -> bool:
        """Return whether it ends within a time."""
        ended, _ = await asyncio.wait({self._task}, timeout=seconds)
        return bool(ended)

    def result(self) -> T:
        """Return or raise what it ended with."""
        return self._task.result()

    async def close(self) -> None:
        """Wait for the job's end, whatever it is: it uses what the caller holds."""
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.exception()  # retrieved, so that it is not logged as lost


def _page(
    store: Store,
    snapshot: JournalSnapshot,
    record: RepositoryRecord,
    request: LsRefs,
    after: bytes,
    most: int | None,
) -> tuple[list[AdvertisedRef], bytes]:
    """Return the refs from ``after`` on, HEAD before all, and where to go on when more may follow."""
    hidden = hidden_from_fetch(settings_of(record))
    found: list[AdvertisedRef] = []
    if not after and request.wants_head:
        head = store.refs.get(snapshot, record, b"HEAD")
        if head is not None:
            found += _shown(store, snapshot, record, head)
    last, count = b"", 0
    for ref in store.refs.list(
        snapshot, record, prefixes=request.prefixes, start=after, limit=most
    ):
        if not hidden.hides(ref.name):
            found += _shown(store, snapshot, record, ref)
        last, count = ref.name, count + 1
    return found, last + b"\0" if count == most else b""


def _rendered(
    store: Store,
    snapshot: JournalSnapshot,
    record: RepositoryRecord,
    request: LsRefs,
    after: bytes,
    lines: Callable[[Sequence[AdvertisedRef]], bytes],
    *,
    v0: bool,
) -> tuple[bytes, bytes]:
    """Return the lines of refs from ``after`` on, HEAD before all, and where to go on.

    Only HEAD, the first ref (whose line may carry capabilities) and symbolic ones are looked at one
    by one. 1,000,000 refs take 0.1 s so; as objects they took 5 s.
    """
    parts: list[bytes] = []
    start = after
    if not after:
        few, start = _page(store, snapshot, record, request, b"", 1)
        parts.append(lines(few))
        if not start:
            return parts[0], b""
    size = 0
    for some in store.refs.render(
        snapshot, record, v0=v0, peel=request.peel, prefixes=request.prefixes, start=start
    ):
        parts.append(some.lines)
        size += len(some.lines)
        if some.symbolic is not None:
            parts.append(lines(_shown(store, snapshot, record, some.symbolic)))
        if some.next is not None and size >= PAGE_BYTES:
            return b"".join(parts), some.next
    return b"".join(parts), b""


def _shown(
    store: Store, snapshot: JournalSnapshot, record: RepositoryRecord, ref: Ref
) -> list[AdvertisedRef]:
    if ref.symbolic is None:
        return [AdvertisedRef(ref.name, ref.target, ref.peeled)]
    try:
        final = store.refs.resolve(snapshot, record, ref.symbolic)
    except RefMissing:  # only HEAD is shown unborn
        return [AdvertisedRef(ref.name, None, None, ref.symbolic)] if ref.name == b"HEAD" else []
    return [AdvertisedRef(ref.name, final.target, final.peeled, final.name)]


def _nothing(kind: HashKind) -> Iterator[bytes]:
    """Return a pack without objects."""
    head = b"PACK" + struct.pack(">II", 2, 0)
    yield head + hashlib.new(kind.git_name, head, usedforsecurity=False).digest()


def _room(request: Fetch) -> int:
    return SIDEBAND if request.sideband == 1 else SIDEBAND_64K


def _farewell(error: Exception) -> bytes:
    """Return the last words to a client whose pack breaks off. Facts stay in our log."""
    words = error.message if isinstance(error, ShardgitError) else "internal error"
    number = telemetry.request_id.get()
    return one_line(f"shardgit: {words}" + (f" (request {number})" if number else "")) + b"\n"
