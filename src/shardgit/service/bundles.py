"""Bundles: a repository's refs and all that they reach as one file, kept in the spool."""

from __future__ import annotations

import re
import struct
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit import telemetry
from shardgit.errors import LimitExceeded, ObjectMissing, StorageFull
from shardgit.graph.closure import bit
from shardgit.oid import HashKind, ObjectId
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.service.fetch import shown_refs
from shardgit.service.look import Look
from shardgit.service.settings import settings_of
from shardgit.service.spool import READ_BYTES, Spool, SpoolFile

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.pool.view import PoolView
    from shardgit.service.settings import FetchSettings
    from shardgit.service.store import Store

EVERYTHING: tuple[bytes, ...] = ()
CLONED = (b"HEAD", b"refs/heads/", b"refs/tags/")
EXACT_MAX_BYTES = 16 << 20  # 16 MiB are made in 0.1 s; a larger one may lag behind the refs
LAG_PARTS = 8  # it is made anew when the refs reach an eighth more objects than it holds
ALLOWED_CACHED = 1_024
_KEY = re.compile(r"[0-9a-f]{48}")
_PACK = struct.Struct(">4sII")


@dataclass(frozen=True, slots=True)
class Bundle:
    """An open bundle. ``close`` its file when it is sent.

    ``head`` is the length of the header before the pack, ``tag`` names the bytes: no two
    different files have the same.
    """

    file: SpoolFile
    head: int
    objects: int
    trailer: bytes

    @property
    def tag(self) -> str:
        """The bundle's entity tag."""
        return f"{self.file.key}-{self.trailer.hex()}"

    @property
    def pack_bytes(self) -> int:
        """The size of the pack within."""
        return self.file.size - self.head


class Bundles:
    """Makes bundles and finds those made before.

    What a bundle holds is exactly what the shown refs of its repository reached when it was made.
    It is served as long as the refs shown now reach every tip of it, whoever asks.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.spool = Spool(
            store.scratch / "spool", store.workers, most_bytes=store.limits.spool_max_bytes
        )
        self._allowed: OrderedDict[tuple[object, ...], bool] = OrderedDict()
        self._over: OrderedDict[str, None] = OrderedDict()
        self._lock = Lock()

    async def latest(
        self, name: str, prefixes: tuple[bytes, ...] = EVERYTHING, *, make_max_bytes: int = 1 << 62
    ) -> Bundle | None:
        """Return the bundle of the refs shown under ``prefixes``, made when there is none.

        One over 16 MiB stands in for the refs of now while these still reach all of it, and not an
        eighth more. None when the repository has no refs or is shallow, which no bundle can be, and
        when there is no bundle and its pool is larger than ``make_max_bytes``. Errors:
        RepositoryMissing, LimitExceeded, StorageFull.
        """
        run = self.store.workers.run
        state = await run(BundleState, self.store, name, prefixes)
        if not state.tips or state.is_shallow:
            return None
        found = await run(self._standing, state)
        if found is not None:
            return found
        if _pool_bytes(state.view, enough=make_max_bytes) > make_max_bytes:
            return None
        if state.key in self._over:  # known at the cost of writing all that the spool may hold
            raise LimitExceeded("bundle is over the bound of the spool")
        try:
            file = await self.spool.take(state.key, lambda: self._pieces(state))
        except StorageFull:
            raise
        except LimitExceeded:
            self._over[state.key] = None
            while len(self._over) > ALLOWED_CACHED:
                self._over.popitem(last=False)
            raise
        bundle = await run(_opened, file, state.record.hash_kind)
        assert bundle is not None
        await run(self.spool.note, state.pointer, state.key.encode())
        return bundle

    async def at_hand(
        self, name: str, prefixes: tuple[bytes, ...] = EVERYTHING, *, make_max_bytes: int = 1 << 62
    ) -> Bundle | None:
        """Return as ``latest``, and None when there is no room: for a client that can do without."""
        try:
            return await self.latest(name, prefixes, make_max_bytes=make_max_bytes)
        except LimitExceeded as error:
            telemetry.log().warning("bundle_not_made", repository=name, error=str(error))
            return None

    async def settings(self, name: str) -> FetchSettings:
        """Return what is set for fetches of a repository. Errors: RepositoryMissing."""

        def look() -> FetchSettings:
            with self.store.journal.snapshot() as snapshot:
                return settings_of(self.store.repository(snapshot, name)).fetch

        return await self.store.workers.run(look)

    async def offered(self, name: str) -> bool:
        """Return whether clients are told of the repository's bundle: when its settings say so, or
        leave it open and the pool is over 16 MiB. Errors: RepositoryMissing.
        """

        def look() -> bool:
            with self.store.journal.snapshot() as snapshot:
                record = self.store.repository(snapshot, name)
                if self.store.grafts(snapshot, record):
                    return False
                mode = settings_of(record).fetch.bundle_uri
                if mode != "auto":
                    return mode == "on"
                view = self.store.view(self.store.pool(snapshot, record.pool))
            return _pool_bytes(view, enough=EXACT_MAX_BYTES) > EXACT_MAX_BYTES

        return await self.store.workers.run(look)

    async def kept(self, name: str, key: str) -> Bundle | None:
        """Return a bundle made before, by its key; None when it is gone or not the repository's."""
        return await self.store.workers.run(self._kept, name, key)

    def _kept(self, name: str, key: str) -> Bundle | None:
        state = BundleState(self.store, name, EVERYTHING)
        if state.is_shallow:
            return None
        return self._if_allowed(state, key)

    def _standing(self, state: BundleState) -> Bundle | None:
        """Return the bundle of just these refs, or a large one that still stands in for them."""
        file = self.spool.open(state.key)
        if file is not None:
            if (exact := _opened(file, state.record.hash_kind)) is not None:
                return exact
            self.spool.drop(state.key)
        older = self.spool.noted(state.pointer).decode("ascii", "replace")
        if not older or older == state.key:
            return None
        found = self._if_allowed(state, older)
        if found is None:
            return None
        lag = int.from_bytes(state.wanted(), "little").bit_count() - found.objects
        if found.file.size > EXACT_MAX_BYTES and lag <= found.objects // LAG_PARTS:
            return found
        found.file.close()
        return None

    def _if_allowed(self, state: BundleState, key: str) -> Bundle | None:
        file = self.spool.open(key) if _KEY.fullmatch(key) else None
        if file is None:
            return None
        found = _opened(file, state.record.hash_kind)
        if found is not None and not self._is_allowed(state, found):
            file.close()
            return None
        return found

    def _is_allowed(self, state: BundleState, bundle: Bundle) -> bool:
        """Return whether the refs shown now reach every tip of a bundle."""
        key = (state.key, state.record.pool, bundle.tag)
        with self._lock:
            known = self._allowed.get(key)
        if known is not None:
            return known
        tips = tips_of(bundle, state.record.hash_kind)
        wanted = state.wanted()
        found = state.view.positions(tips) if state.view is not None else [-1]
        allowed = all(at >= 0 and bit(wanted, at) for at in found)
        with self._lock:
            self._allowed[key] = allowed
            while len(self._allowed) > ALLOWED_CACHED:
                self._allowed.popitem(last=False)
        return allowed

    async def _pieces(self, state: BundleState) -> AsyncGenerator[bytes, None]:
        run = self.store.workers.run
        yield state.header
        transfer = await run(state.transfer)
        chunks = transfer.chunks()
        while (chunk := await run(next, chunks, None)) is not None:
            yield chunk


class BundleState(Look):
    """The refs that a bundle has, and what they reach. Runs in the calling thread, a worker's."""

    def __init__(self, store: Store, name: str, prefixes: tuple[bytes, ...]) -> None:
        self.prefixes = prefixes
        super().__init__(store, name)
        kind = self.record.hash_kind
        lines = [_signature(kind)]
        lines += [b"%s %s\n" % (oid.hex().encode(), ref) for ref, oid in self.refs]
        self.header = b"".join(lines) + b"\n"
        self.tips = [oid for _, oid in self.refs]
        self.key = blake3(self.record.pool + self.header).hexdigest()[:48]

    def _load(self, snapshot: JournalSnapshot, name: str) -> None:
        super()._load(snapshot, name)
        self.refs = [
            (ref.name, ref.target)
            for ref in shown_refs(self.store, snapshot, self.record, self.prefixes)
            if ref.target is not None
        ]

    @property
    def is_shallow(self) -> bool:
        """Whether the repository's history ends where it has parents."""
        return self.view is not None and bool(self.view.grafts)

    @property
    def pointer(self) -> str:
        """Where the spool notes the repository's last bundle."""
        return f"last-{self.record.id}-{len(self.prefixes)}"

    def wanted(self) -> bytes:
        """Return the bitset of what the refs reach."""
        if self.view is None:
            return b""
        positions = self.view.positions(self.tips)
        if min(positions, default=0) < 0:
            raise ObjectMissing("pool lacks what a ref names", repository=self.record.name)
        return self.store.closure_of(self.view, positions)

    def transfer(self) -> Transfer:
        """Plan the pack."""
        wanted = self.wanted()
        assert self.view is not None
        options = TransferOptions()
        return Transfer(self.view, wanted, options=options, trailers=self.store.trailers)


def _pool_bytes(view: PoolView | None, *, enough: int) -> int:
    """Return the size of a whole pool, no bundle of which is much larger, or one over ``enough``."""
    total = 0
    for segment in view.segments if view is not None else ():
        total += segment.entry.ref.length
        if total > enough:
            break
    return total


def _opened(file: SpoolFile, kind: HashKind) -> Bundle | None:
    """Return what a file says about itself; one that is no bundle is closed, and None."""
    signature = _signature(kind)
    if file.read(0, len(signature)) != signature:  # of another repository, with another hash
        file.close()
        return None
    head = _head_length(file)
    start = file.read(head, _PACK.size)
    if len(start) < _PACK.size or start[:4] != b"PACK" or file.size < head + kind.size:
        file.close()
        return None
    trailer = file.read(file.size - kind.size, kind.size)
    return Bundle(file, head, _PACK.unpack(start)[2], trailer)


def _signature(kind: HashKind) -> bytes:
    """Return how a bundle begins; only the third version tells a hash."""
    if kind is HashKind.SHA1:
        return b"# v2 git bundle\n"
    return b"# v3 git bundle\n@object-format=%s\n" % kind.git_name.encode()


def _head_length(file: SpoolFile) -> int:
    at, before = 0, b""
    while piece := file.read(at, READ_BYTES):
        found = (before + piece).find(b"\n\n")
        if found >= 0:
            return at - len(before) + found + 2
        at += len(piece)
        before = piece[-1:]
    return file.size


def tips_of(bundle: Bundle, kind: HashKind) -> Sequence[ObjectId]:
    """Return the ids that a bundle's header lists."""
    header = bundle.file.read(0, bundle.head)
    digits = 2 * kind.size
    rows = [row for row in header.split(b"\n") if row and row[:1] not in b"#@"]
    return [ObjectId(bytes.fromhex(row[:digits].decode())) for row in rows]
