"""One fetch: refs shown, haves answered, a pack sent."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, TypeVar

from shardgit.errors import ObjectMissing, RefMissing, ShardgitError
from shardgit.graph.closure import bit, difference
from shardgit.oid import ObjectId, hex_of
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.protocol.pktline import DELIM_BYTES, FLUSH_BYTES, SIDEBAND, SIDEBAND_64K, band, line
from shardgit.protocol.upload_pack import AdvertisedRef
from shardgit.service.look import Look

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.journal.records import RepositoryRecord
    from shardgit.protocol.upload_pack import Fetch
    from shardgit.refs.ref import Ref
    from shardgit.service.store import Store

KEEPALIVE_S = 5.0
KEEPALIVE = b"0005\x01"  # an empty packet of band 1
COMMIT, TAG = 1, 4
T = TypeVar("T")


class Alive(enum.Enum):
    """Stands for a keepalive among the results of a job."""

    KEEPALIVE = 0


def advertised(store: Store, name: str, prefixes: Sequence[bytes] = ()) -> list[AdvertisedRef]:
    """Return HEAD and the refs under ``prefixes``, HEAD first, for either protocol. Runs in the calling thread."""
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
        found: list[AdvertisedRef] = []
        if not prefixes or any(b"HEAD".startswith(prefix) for prefix in prefixes):
            head = store.refs.get(snapshot, record, b"HEAD")
            if head is not None:
                found += _shown(store, snapshot, record, head)
        for ref in store.refs.list(snapshot, record, prefixes=prefixes):
            found += _shown(store, snapshot, record, ref)
        return found


def _shown(
    store: Store, snapshot: JournalSnapshot, record: RepositoryRecord, ref: Ref
) -> list[AdvertisedRef]:
    if ref.symbolic is None:
        return [AdvertisedRef(ref.name, ref.target, ref.peeled)]
    try:
        final = store.refs.resolve(snapshot, record, ref.symbolic)
    except RefMissing:
        return [AdvertisedRef(ref.name, None, None, ref.symbolic)] if ref.name == b"HEAD" else []
    return [AdvertisedRef(ref.name, final.target, final.peeled, ref.symbolic)]


class FetchSession(Look):
    """One request on one consistent look at a repository. Methods run in a worker thread."""

    def _load(self, snapshot: JournalSnapshot, name: str) -> None:
        super()._load(snapshot, name)
        tags = self.store.refs.list(snapshot, self.record, prefixes=(b"refs/tags/",))
        self.tags = [
            ref.target for ref in tags if ref.peeled is not None and ref.target is not None
        ]

    def wants(self, ids: Sequence[ObjectId]) -> list[int]:
        """Return the positions of wants; ObjectMissing, in the words that git uses, for one that is not ours."""
        found = self.positions(ids)
        for oid, position in zip(ids, found, strict=True):
            if position < 0:
                raise ObjectMissing(f"upload-pack: not our ref {hex_of(oid)}")
        return found

    def enough(self, wants: Sequence[int], common: Sequence[int]) -> bool:
        """Return whether every want reaches something common: more haves would not help much."""
        if self.view is None or not common:
            return False
        graph = self.view.graph()
        peeled = [
            at for want in wants if (at := graph.peel(want)) >= 0 and graph.type_at(at) == COMMIT
        ]
        shared = [
            at for have in common if (at := graph.peel(have)) >= 0 and graph.type_at(at) == COMMIT
        ]
        return bool(shared) and graph.all_reach(peeled, shared)

    def transfer(self, wants: Sequence[int], common: Sequence[int], request: Fetch) -> Transfer:
        """Plan the pack."""
        assert self.view is not None
        if common:
            wanted, have = difference(self.view, wants, common)
        else:
            wanted, have = self.store.closure_of(self.view, wants), b""
        if request.include_tag:
            wanted = self._with_tags(wanted)
        options = TransferOptions(
            ofs_delta=request.ofs_delta, thin=request.thin_pack, sideband=request.sideband == 2
        )
        return Transfer(self.view, wanted, have, options=options, trailers=self.store.trailers)

    def _with_tags(self, wanted: bytes) -> bytes:
        """Add annotated tags whose object is sent."""
        assert self.view is not None
        graph = self.view.graph()
        out = bytearray(wanted)
        for at in self.view.positions(self.tags):
            target = graph.peel(at) if at >= 0 else -1
            if target >= 0 and bit(wanted, target):
                link = at
                while graph.type_at(link) == TAG and not out[link >> 3] >> (link & 7) & 1:
                    out[link >> 3] |= 1 << (link & 7)
                    link = graph.target_at(link)
        return bytes(out)


# ---- answers ----


async def answer_v2(store: Store, name: str, request: Fetch) -> AsyncIterator[bytes]:
    """Answer a v2 fetch. Errors before the first byte are raised; later ones go out on band 3."""
    session = await store.workers.run(FetchSession, store, name)
    wants = await store.workers.run(session.wants, request.wants)
    common = await store.workers.run(session.positions, request.haves)
    shared = [(oid, at) for oid, at in zip(request.haves, common, strict=True) if at >= 0]
    if not request.wants and not (request.wait_for_done and request.haves):
        yield FLUSH_BYTES
        return
    if request.haves and not request.done:
        yield line(b"acknowledgments\n")
        if not shared:
            yield line(b"NAK\n")
        yield b"".join(line(b"ACK " + oid.hex().encode() + b"\n") for oid, _ in shared)
        positions = [at for _, at in shared]
        if request.wait_for_done or not await store.workers.run(session.enough, wants, positions):
            yield FLUSH_BYTES
            return
        yield line(b"ready\n") + DELIM_BYTES
    yield line(b"packfile\n")
    async for chunk in _send(store, session, wants, [at for _, at in shared], request):
        yield chunk


async def answer_v0(store: Store, name: str, request: Fetch) -> AsyncIterator[bytes]:
    """Answer a stateless v0 request: acknowledgements, and the pack once the client or we are done."""
    session = await store.workers.run(FetchSession, store, name)
    wants = await store.workers.run(session.wants, request.wants)
    common: list[int] = []
    last = b""
    ready = finished = False
    for number, haves in enumerate(request.rounds):
        final = request.done and number == len(request.rounds) - 1
        got_common = got_other = False
        for oid, at in zip(haves, await store.workers.run(session.positions, haves), strict=True):
            text = oid.hex().encode()
            if at < 0:
                got_other = True
                if request.multi_ack and await store.workers.run(session.enough, wants, common):
                    ready = ready or request.multi_ack == 2
                    yield line(
                        b"ACK " + text + (b" ready\n" if request.multi_ack == 2 else b" continue\n")
                    )
                continue
            got_common = True
            common.append(at)
            last = text
            if request.multi_ack:
                yield line(
                    b"ACK " + text + (b" common\n" if request.multi_ack == 2 else b" continue\n")
                )
            elif len(common) == 1:
                yield line(b"ACK " + text + b"\n")
        if final:
            break
        if request.multi_ack == 2 and got_common and not got_other:
            if await store.workers.run(session.enough, wants, common):
                ready = True
                yield line(b"ACK " + last + b" ready\n")
        if not common or request.multi_ack:
            yield line(b"NAK\n")
        if request.no_done and ready:
            yield line(b"ACK " + last + b"\n")
            finished = True
            break
    if not finished:
        if not request.done:
            return
        if common:
            if request.multi_ack:
                yield line(b"ACK " + last + b"\n")
        else:
            yield line(b"NAK\n")
    async for chunk in _send(store, session, wants, common, request):
        yield chunk


async def _send(
    store: Store, session: FetchSession, wants: Sequence[int], common: Sequence[int], request: Fetch
) -> AsyncIterator[bytes]:
    """Send the pack with progress and keepalives, framed as the client asked; pulled, never pushed."""
    room = SIDEBAND_64K if request.sideband == 2 else SIDEBAND
    talk = bool(request.sideband) and not request.no_progress
    try:
        transfer = None
        async for made in _patiently(
            store, request, lambda: session.transfer(wants, common, request)
        ):
            if isinstance(made, Alive):
                yield KEEPALIVE
            else:
                transfer = made
        assert transfer is not None
        if talk:
            yield band(2, b"Enumerating objects: %d, done.\n" % transfer.objects, room=room)
        chunks = transfer.chunks()
        while True:
            chunk: bytes | None = None
            async for made in _patiently(store, request, lambda: next(chunks, None)):
                if isinstance(made, Alive):
                    yield KEEPALIVE
                else:
                    chunk = made
            if chunk is None:
                break
            yield band(1, chunk, room=SIDEBAND) if request.sideband == 1 else chunk
        if talk:
            text = b"Total %d, rewritten %d\n" % (transfer.objects, transfer.objects_rewritten)
            yield band(2, text, room=room)
    except ShardgitError as error:
        if not request.sideband:
            raise
        yield band(3, f"shardgit: {error.message}\n".encode(), room=room)
        return
    if request.sideband:
        yield FLUSH_BYTES


async def _patiently(
    store: Store, request: Fetch, job: Callable[[], T]
) -> AsyncIterator[T | Alive]:
    """Run a job on a worker; yield keepalives while it takes long, then its result."""
    task = asyncio.ensure_future(store.workers.run(job))
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=KEEPALIVE_S)
            if done:
                yield task.result()
                return
            if request.sideband:
                yield Alive.KEEPALIVE
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
