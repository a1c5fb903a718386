"""Git LFS objects: who sees them, how they come in whole or not at all, how they are read.

See docs/formats/lfs.md.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints
from shardgit.blocks.block import HEADER_SIZE, named
from shardgit.errors import (
    Conflict,
    DataLoss,
    InvalidArgument,
    LfsObjectMissing,
    LfsObjectRefused,
    LfsOff,
    LimitExceeded,
)
from shardgit.journal.interface import Compare, Put, end_of
from shardgit.journal.lfs_records import (
    LfsOwned,
    LfsRecord,
    LfsSource,
    decode_sources,
    encode_sources,
    lfs_object_key,
    lfs_owned_key,
    lfs_sources_key,
)
from shardgit.journal.quota_records import Usage
from shardgit.pool.parts import PARTS_MAX, PartList, decode_parts, new_part, part_payload
from shardgit.service.quotas import grown
from shardgit.service.settings import settings_of
from shardgit.service.writable import writable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from shardgit.journal.interface import Condition, JournalSnapshot, Operation
    from shardgit.journal.leases import Lease
    from shardgit.journal.records import RepositoryRecord
    from shardgit.oid import BlockId, RepositoryId
    from shardgit.service.store import Store

OID_BYTES = 32
SOURCES_MAX = 1_024  # sources of a fork of a fork of a fork ...
PUT_PARTS = 4  # parts of one put, hence of one fsync; an upload holds twice that at most
ROUNDS_MAX = (
    256  # tries against other writers of the repository's count; each round one of them wins
)
PAUSE_S = 0.02  # at most, between two of them


@dataclass(frozen=True, slots=True)
class LfsFile:
    """An object that is there: what is needed to read it."""

    oid: bytes
    record: LfsRecord
    list: PartList | None
    lease: Lease | None = field(default=None, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.record.size


def lfs_repository(store: Store, snapshot: JournalSnapshot, name: str) -> RepositoryRecord:
    """Return a repository's record. Errors: RepositoryMissing, LfsOff."""
    record = store.repository(snapshot, name)
    if not settings_of(record).lfs.enabled:
        raise LfsOff("Git LFS is off for this repository", repository=name)
    return record


def fork_operations(
    snapshot: JournalSnapshot, source: RepositoryRecord, fork: RepositoryId
) -> list[Put]:
    """Return what the commit of a fork adds, so that it sees what its source sees now."""
    chain = (LfsSource(source.id, snapshot.revision), *_sources(snapshot, source.id))
    kept = tuple(each for each in chain if _has_own(snapshot, each))[:SOURCES_MAX]
    return [Put(lfs_sources_key(fork), encode_sources(kept))] if kept else []


def _sources(snapshot: JournalSnapshot, repository: RepositoryId) -> tuple[LfsSource, ...]:
    row = snapshot.get(lfs_sources_key(repository))
    return decode_sources(row.value) if row else ()


def _has_own(snapshot: JournalSnapshot, source: LfsSource) -> bool:
    low = lfs_owned_key(source.repository)
    return next(snapshot.range(low, end_of(low), limit=1), None) is not None


class LfsObjects:
    """The LFS objects of a store's repositories."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # ---- looking ----

    def find(self, name: str, oids: Sequence[bytes]) -> list[LfsRecord | None]:
        """Return the objects that a repository sees, None for all else. Runs in the calling thread."""
        with self.store.journal.snapshot() as snapshot:
            record = lfs_repository(self.store, snapshot, name)
            sources = _sources(snapshot, record.id)
            return [self._visible(snapshot, record, sources, oid) for oid in oids]

    def _visible(
        self,
        snapshot: JournalSnapshot,
        record: RepositoryRecord,
        sources: Sequence[LfsSource],
        oid: bytes,
    ) -> LfsRecord | None:
        if len(oid) != OID_BYTES:
            return None
        owned = snapshot.get(lfs_owned_key(record.id, oid))
        for source in sources:
            if owned is not None:
                break
            owned = snapshot.get(lfs_owned_key(source.repository, oid))
            if owned is not None and owned.revision > source.revision:
                owned = None  # came to the source after the fork
        if owned is None:
            return None
        row = snapshot.get(lfs_object_key(record.pool, oid))
        if row is None:
            raise DataLoss("lfs object has no record in its pool", oid=oid.hex())
        found = LfsRecord.decode(row.value)
        if found.size != LfsOwned.decode(owned.value).size:
            raise DataLoss("lfs object has two sizes", oid=oid.hex())
        return found

    # ---- reading ----

    async def open(self, name: str, oid: bytes) -> LfsFile:
        """Return an object to read; LfsObjectMissing when the repository does not see it."""
        return await self.store.workers.run(self._open, name, oid)

    def _open(self, name: str, oid: bytes) -> LfsFile:
        lease = self.store.lease()
        (record,) = self.find(name, [oid])
        if record is None:
            raise LfsObjectMissing("lfs object does not exist", oid=oid.hex(), repository=name)
        return LfsFile(oid, record, self._list(oid, record), lease)

    def _list(self, oid: bytes, record: LfsRecord) -> PartList | None:
        if record.parts < 2 or record.root is None:
            return None
        (block,) = self.store.blocks.get_many_sync([record.root])
        if block is None:
            raise DataLoss("part list of an lfs object is missing", oid=oid.hex())
        found = decode_parts(block)
        if (found.oid, found.size, len(found.parts)) != (oid, record.size, record.parts):
            raise DataLoss("part list is of another lfs object", oid=oid.hex())
        return found

    async def read(self, file: LfsFile, low: int, high: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes low to high - 1, a part at a time; DataLoss when one is missing."""
        piece = file.list.piece if file.list else file.size
        at = low
        while at < high:
            number = at // piece
            start = number * piece
            stop = min(high, start + piece)
            yield await self.store.workers.run(self._piece, file, number, at - start, stop - start)
            at = stop

    def _piece(self, file: LfsFile, number: int, low: int, high: int) -> bytes:
        assert file.record.root is not None
        block, length = file.record.root, file.size
        if file.list is not None:
            block = file.list.parts[number]
            length = min(file.list.piece, file.size - number * file.list.piece)
        found = self.store.blocks.use(
            block, lambda view: part_payload(view, low, high, length=length)
        )
        if found is None:
            raise DataLoss("part of an lfs object is missing", oid=file.oid.hex(), part=number)
        return found

    # ---- storing ----

    async def put(self, name: str, oid: bytes, size: int, pieces: AsyncIterator[bytes]) -> None:
        """Take an object in, once all its bytes fit its id and size; nothing is left of another.

        What the repository sees already is read and checked as well, and not stored again. Errors:
        LfsObjectRefused, LimitExceeded, InvalidArgument.
        """
        if len(oid) != OID_BYTES or size < 0:
            raise InvalidArgument("lfs object id or size is impossible")
        check_size(size, self.store.limits.lfs_object_max_bytes)
        upload = await self.store.workers.run(_Upload, self, name, oid, size)
        try:
            waiting = bytearray()
            async for piece in pieces:
                waiting += piece
                if upload.taken + len(waiting) > size:
                    raise LfsObjectRefused("lfs object is larger than announced", size=size)
                if len(waiting) >= PUT_PARTS * upload.piece:
                    whole = len(waiting) - len(waiting) % upload.piece
                    await self.store.workers.run(upload.take, bytes(waiting[:whole]))
                    del waiting[:whole]
            await self.store.workers.run(upload.finish, bytes(waiting))
        finally:
            await self.store.workers.run(upload.drop)

    def whole(self, oid: bytes, record: LfsRecord) -> bool:
        """Say whether every block of an object is there."""
        if record.root is None:
            return True
        if not all(self.store.blocks.has_many_sync([record.root])):
            return False
        parts = self._list(oid, record)
        return parts is None or all(self.store.blocks.has_many_sync(parts.parts))


def check_size(size: int, most: int) -> None:
    """Raise LimitExceeded for an object that is too large to be taken."""
    if size > most:
        raise LimitExceeded("lfs object is too large", bytes=size, limit=most)


class _Upload:
    """One object on its way in. Methods run in a worker thread, one at a time."""

    def __init__(self, objects: LfsObjects, name: str, oid: bytes, size: int) -> None:
        self.objects = objects
        self.store = objects.store
        self.oid = oid
        self.size = size
        self.taken = 0
        self.piece = self.store.limits.block_target_bytes - HEADER_SIZE
        self._lease = self.store.lease()  # on the parts that are put before the commit
        with self.store.journal.snapshot() as snapshot:
            self.record = lfs_repository(self.store, snapshot, name)
            writable(snapshot, self.record)
            self._admitted(snapshot)
        (seen,) = objects.find(name, [oid])
        self._writes = seen is None or not objects.whole(oid, seen)
        self._hash = hashlib.sha256()
        self._parts: list[BlockId] = []
        self._list: BlockId | None = None
        self._named = False  # the journal leads to our blocks

    def take(self, data: bytes) -> None:
        """Hash bytes, and put them as parts; all but the object's last are whole pieces."""
        self._hash.update(data)
        self.taken += len(data)
        if self._writes and data:
            view = memoryview(data)
            blocks = [
                new_part(self.record.pool, bytes(view[at : at + self.piece]))
                for at in range(0, len(data), self.piece)
            ]
            self._put(blocks, self._parts)

    def _put(self, blocks: Sequence[bytes], names: list[BlockId]) -> None:
        made = [named(block) for block in blocks]
        names += [name for name, _ in made]  # before the put: what half succeeded is dropped too
        self.store.blocks.put_many_sync(made)

    def finish(self, data: bytes) -> None:
        """Take the last bytes, check all, and make the object visible."""
        self.take(data)
        if self.taken != self.size:
            raise LfsObjectRefused(
                "lfs object is shorter than announced", size=self.size, received=self.taken
            )
        if self._hash.digest() != self.oid:
            raise LfsObjectRefused("lfs object does not match its id", oid=self.oid.hex())
        if self._writes:
            self._commit(self._finished())

    def _finished(self) -> LfsRecord:
        now_ms = clock.now_ms()
        if len(self._parts) < 2:
            root = self._parts[0] if self._parts else None
            return LfsRecord(self.size, len(self._parts), root, now_ms)
        assert len(self._parts) <= PARTS_MAX
        parts = PartList(self.oid, self.size, self.piece, tuple(self._parts))
        made: list[BlockId] = []
        try:
            self._put([parts.encode(self.record.pool)], made)
        finally:
            self._list = made[0] if made else None
        return LfsRecord(self.size, len(self._parts), self._list, now_ms)

    def _commit(self, made: LfsRecord) -> None:
        number, pool = self.record.id, self.record.pool
        for _ in range(ROUNDS_MAX):
            with self.store.journal.snapshot() as snapshot:
                keys = [
                    lfs_owned_key(number, self.oid),
                    lfs_object_key(pool, self.oid),
                ]
                owned, known = [snapshot.get(key) for key in keys]
                held = writable(snapshot, self.record)
                counts = self._admitted(snapshot) if owned is None else ([], [])
            conditions: list[Condition] = [
                Compare(key, row.revision if row else 0)
                for key, row in zip(keys, (owned, known), strict=True)
            ]
            conditions += [held.unchanged, *counts[0]]
            conditions += self._lease.fences
            operations: list[Operation] = []
            if owned is None:
                operations.append(Put(keys[0], LfsOwned(self.size, made.created_ms).encode()))
                operations += counts[1]
            # Another may have brought the object to the pool; ours is kept only where that is gone.
            named = known is None or not self.objects.whole(self.oid, LfsRecord.decode(known.value))
            if named:
                operations.append(Put(keys[1], made.encode()))
            elif operations and known is not None:
                # Written anew as it is, so that a gc which found that nobody sees it loses.
                operations.append(Put(keys[1], known.value))
            # commit point: before it nothing names the parts, which drop or gc deletes; after it
            # the repository sees the object.
            self._named = (
                named  # also where nobody can tell what became of the commit: gc takes what it left
            )
            faultpoints.reach("lfs.before_commit")
            if not operations or self.store.try_commit(conditions, operations):
                faultpoints.reach("lfs.after_commit")
                return
            self._named = False
            clock.sleep(PAUSE_S * os.urandom(1)[0] / 256)  # who lost together does not meet again
        raise Conflict("lfs object is being stored by many at once", oid=self.oid.hex())

    def _admitted(self, snapshot: JournalSnapshot) -> tuple[list[Condition], list[Operation]]:
        """Return what a commit needs that counts the object. Errors: QuotaExceeded."""
        if snapshot.get(lfs_owned_key(self.record.id, self.oid)) is not None:
            return [], []
        more = Usage(lfs_objects=1, lfs_bytes=self.size)
        return grown(self.store, snapshot, writable(snapshot, self.record).record, more)

    def drop(self) -> None:
        """Delete the blocks that nothing names."""
        if not self._named:
            ours = [*self._parts, *([self._list] if self._list else [])]
            self._parts, self._list = [], None
            if ours:
                self.store.blocks.delete_many_sync(ours)
