"""Objects stored by id, before any ref names them: one pack, checked as a push's is, and one commit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints
from shardgit.errors import Conflict, Refused
from shardgit.oid import ObjectId, hex_of
from shardgit.service.intake import Intake
from shardgit.service.push import ROUNDS_MAX
from shardgit.service.upload_spool import UploadSpool

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

    from shardgit.journal.interface import Condition, Operation
    from shardgit.service.store import Store


@dataclass(frozen=True, slots=True)
class Stored:
    """What an upload did: the objects that came, and how many of them the pool did not have."""

    objects: int
    new_objects: int


class Uploading(Intake):
    """An upload under way. Methods run in the calling thread, a worker's, in this order: take or take_all, upload.

    What an object links to must come with it or be the repository's own. Whether a fork has it makes no
    difference, so nothing can be learnt of forks from what is refused.
    """

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store, name)
        self._ids: list[ObjectId] = []

    def take_all(self, packs: Sequence[tuple[Buffer, array[int] | None]]) -> None:
        """Parse and resolve packs, compute every id, run fsck. Errors as Intake.take."""
        super().take_all(packs)
        assert self.ingest is not None
        # Bases that came from the pool stand behind the scanned objects: they are nobody's upload.
        came = range(self.ingest.objects_scanned)
        self._ids = sorted({ObjectId(self.ingest.id_at(number)) for number in came})

    def check(self) -> None:
        """Check that nothing dangles. Errors: Refused names an object that does."""
        assert self.ingest is not None
        links = [ObjectId(oid) for oid in self.ingest.links_outside()]
        for oid, at in zip(links, self.look.owned(links), strict=True):
            if at < 0:
                raise Refused(
                    "an object links to what is neither uploaded with it nor in the repository; upload that too",
                    oid=hex_of(oid),
                    repository=self.name,
                )

    def upload(self) -> Stored:
        """Make all objects durable, in one commit.

        Errors: Refused, ReadOnly, QuotaExceeded, Conflict, StorageFull, Unavailable.

        Waits for room; ``uploaded`` does so without a thread.
        """
        self.admitted()  # before it waits
        self.make_room()
        while self.waiting:
            clock.sleep(self.waiting)
            self.make_room()
        for _ in range(ROUNDS_MAX):
            self.check()
            admitted = self.admitted()
            pool, root = self.look.state.pool, self.root()
            steps: tuple[list[Condition], list[Operation]] = ([], [])
            if root:
                steps = self.store.next_recent(pool, root)
            relied = self.store.rely(pool, self.relied_on)
            with self.store.journal.snapshot() as snapshot:
                conditions, operations = self.store.uploads.plan(snapshot, self.record, self._ids)
            try:
                # commit point: a crash before it leaves at most blocks that nothing names; after it the objects are the
                # repository's own, fsynced.
                faultpoints.reach("upload.before_commit")
                revision = self.store.journal.commit_sync(
                    [*admitted[0], *conditions, *relied[0], *steps[0], *self.fences],
                    [*admitted[1], *operations, *relied[1], *steps[1]],
                )
                faultpoints.reach("upload.after_commit")
            except Conflict:
                self.renew()
                continue
            if root:
                self.adopt(revision)
            return Stored(len(self._ids), self.incoming.objects)
        raise Conflict("store is busy with other writers; upload again", repository=self.name)


async def uploaded(upload: Uploading) -> Stored:
    """Have an upload made durable; no worker waits where it has to wait for room."""
    run = upload.store.workers.run
    await run(upload.make_room)
    while upload.waiting:
        await asyncio.sleep(upload.waiting)
        await run(upload.make_room)
    return await run(upload.upload)


def pack_most_bytes(upload: Uploading) -> int:
    """Return how many bytes of packs a repository takes at once."""
    most = upload.store.limits.push_pack_max_bytes
    return min(upload.settings.receive.max_push_bytes or most, most)


def put_objects(store: Store, name: str, objects: Iterable[tuple[int, bytes]]) -> list[ObjectId]:
    """Store objects, (type, bytes) each, in one commit; returns their ids in order.

    Errors: InvalidArgument, FsckRefused, Refused, LimitExceeded, RepositoryMissing, StorageFull.
    """
    upload = Uploading(store, name)
    most, kind = pack_most_bytes(upload), upload.record.hash_kind
    with UploadSpool(store, kind, most_bytes=most, limits=store.limits) as spool:
        for type_, data in objects:
            spool.take(bytes([type_]), [len(data)], data)
        packs = spool.packs()
        if packs:
            upload.take_all([(pack, None) for pack in packs])
            upload.upload()
        return spool.ids
