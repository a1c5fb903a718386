"""What is on its way into a pool: parsed, resolved and laid out in quarantine, until a commit names it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit._bits import union
from shardgit.errors import BasesGone, DataLoss, LimitExceeded, RepositoryMissing, Unavailable
from shardgit.graph.closure import bits_of
from shardgit.journal.quota_records import Usage
from shardgit.oid import ObjectId
from shardgit.operate.settle import settle
from shardgit.pool.append import Recent, run_bytes, write_recent
from shardgit.pool.grafts import Grafts
from shardgit.service.fscking import judge, severities
from shardgit.service.incoming import Incoming, leave_out_known, resolve_thin
from shardgit.service.look import Look
from shardgit.service.quarantine import QuarantinedReading
from shardgit.service.quotas import grown
from shardgit.service.resolving import new_ingest, spills
from shardgit.service.settings import settings_of
from shardgit.service.store import Reach
from shardgit.service.writable import writable

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from typing_extensions import Buffer

    from shardgit._layout import Ingest
    from shardgit.journal.interface import Condition, JournalSnapshot, Operation
    from shardgit.limits import Limits
    from shardgit.pool.view import PoolView
    from shardgit.service.reading import Reading
    from shardgit.service.settings import RepositorySettings
    from shardgit.service.store import Store

REFUSED_AT = 4  # times the recents from which on pushes wait
WAIT_S = (0.05, 1.0)  # between looks whether another process has settled the pool
TOO_DAMAGED = (
    "pool takes nothing more until damaged blocks are repaired: its recents cannot be settled"
)


SMALL_BYTES = 64 << 10


class Intake:
    """Objects over one look at a repository. Methods run in the calling thread, a worker's.

    What never gets a commit leaves nothing but, at most, blocks that nothing names.
    """

    may_reopen = False  # whether grafts are given up once their parents come

    def __init__(self, store: Store, name: str, snapshot: JournalSnapshot | None = None) -> None:
        self.store = store
        self.name = name
        self.snapshot = snapshot  # that all is read from as long as it is open; None: one a step
        self.look = Look(store, name, snapshot)
        # Held when the look is another: blocks are put before the commit, however often that loses.
        self._lease = self.look.state.pool.lease
        self.record = self.look.record
        self.settings: RepositorySettings = settings_of(self.record)
        self.told: list[str] = []  # lines for the user
        self.ingest: Ingest | None = None
        self.known: list[int] = []  # positions of what came and the pool had
        self._had = b""  # what the repository had at looks before that showed the same pool: it was judged by that
        self.waiting = 0.0  # s until room may be asked for again; 0: there is room
        self._until: float | None = None  # how long it is waited for
        self.grafts = self.look.state.pool.view.grafts  # the repository's, once this is committed
        self.reopened: frozenset[ObjectId] = frozenset()  # grafts of which a parent came
        self._recent: Recent | None = None
        self.incoming = Incoming(None, self.look.view, self.record.hash_kind, self._limits())

    @property
    def fences(self) -> tuple[Condition, ...]:
        """Conditions of the commit: the blocks that it names are kept for this process still."""
        return self._lease.fences if self._lease is not None else ()

    def leave_snapshot(self) -> None:
        """Read from new snapshots from now on."""
        self.snapshot = None

    def moment(self) -> AbstractContextManager[JournalSnapshot]:
        """Return the snapshot to read from."""
        return (
            self.store.journal.snapshot() if self.snapshot is None else nullcontext(self.snapshot)
        )

    def _limits(self) -> Limits:
        """Return the store's limits, narrowed by the repository's settings."""
        limits, receive = self.store.limits, self.settings.receive
        if receive.max_push_objects:
            most = min(limits.pack_objects_max, receive.max_push_objects)
            limits = replace(limits, pack_objects_max=most)
        if receive.max_file_bytes:
            size = min(limits.object_size_max_bytes, receive.max_file_bytes)
            limits = replace(limits, object_size_max_bytes=size)
        return limits

    def take(self, pack: Buffer, offsets: array[int] | None = None) -> None:
        """Parse and resolve a pack, compute every id, run fsck.

        Deltas may have bases that the repository reaches. Errors: MalformedPack, MalformedObject, FsckRefused,
        CollisionAttack, ObjectCollision, LimitExceeded, DataLoss.
        """
        self.take_all([(pack, offsets)])

    def take_all(self, packs: Sequence[tuple[Buffer, array[int] | None]]) -> None:
        """Take several packs as if they were one. Errors as ``take``."""
        limits = self._limits()
        scratch = self.store.scratch if spills(pack for pack, _ in packs) else None
        ingest = new_ingest(
            self.record.hash_kind,
            limits,
            scratch=scratch,
            detect=self.store.detects_pushed,
            pushed_bytes=sum(memoryview(pack).nbytes for pack, _ in packs),
        )
        checks = severities(self.settings, self.record.hash_kind)
        if checks is not None:
            ingest.check_objects(checks.table)
        try:
            for pack, offsets in packs:
                ingest.scan(pack, offsets)
            resolve_thin(
                ingest,
                self.look.view,
                self.look.owned,
                threads=self.store.workers.threads,
                limits=limits,
            )
        except LimitExceeded as error:
            raise self._explained(error) from error
        if checks is not None:
            self.told += judge(ingest, checks, self.look)
        self.ingest = ingest
        self._place()

    def _explained(self, error: LimitExceeded) -> LimitExceeded:
        receive = self.settings.receive
        if "too many objects" in error.message and receive.max_push_objects:
            return LimitExceeded(
                "push has too many objects; push in smaller steps", limit=receive.max_push_objects
            )
        if "object is over" in error.message and receive.max_file_bytes:
            return LimitExceeded(
                "push holds a file over the size limit; use Git LFS or leave it out",
                limit_bytes=receive.max_file_bytes,
            )
        return error

    def _place(self) -> None:
        """Lay the objects out over the pool as the look shows it."""
        assert self.ingest is not None
        view = self.look.view
        self.reopened = self._reopened()
        self.known = leave_out_known(self.ingest, view, compare=True)
        self._lay_out()

    def _reopened(self) -> frozenset[ObjectId]:
        """Return the grafts of which a parent is among what came: they may be none any more."""
        view, ingest = self.look.view, self.ingest
        if not self.may_reopen or view is None or ingest is None or not view.grafts:
            return frozenset()
        return frozenset(
            graft
            for graft, parents in view.cut_parents().items()
            if any(ingest.find(parent) >= 0 for parent in parents)
        )

    def _lay_out(self) -> None:
        """Place what came over the pool; histories end where they did, but for grafts that are reopened."""
        pool, view = self.look.state.pool.view, self.look.view
        self.grafts = pool.grafts
        if self.reopened:
            self.grafts = Grafts.of(pool.grafts.ids - self.reopened)
        self.incoming = Incoming(
            self.ingest,
            view.with_grafts(self.grafts) if view is not None else None,
            self.record.hash_kind,
            self.store.limits,
            grafts=self.grafts,
        )
        self._recent = None

    def end_at(self, grafts: Grafts) -> None:
        """Have the repository's history end at other commits, more or less than it did."""
        fresh = grafts.ids - self.grafts.ids
        if fresh:
            self.incoming = self.incoming.cut(self.incoming.commits(fresh))
        self.grafts = grafts

    def drop_unreached(self, marks: bytes) -> None:
        """Leave out new objects that ``marks``, a bitset over pool and new ones, lacks: they may link to nothing."""
        if self.ingest is None:
            return
        if self.ingest.drop_positions(marks, self.incoming.first):
            self._lay_out()

    def relied_on(self) -> list[bytes]:
        """Return bitsets over the pool's positions of what the commit makes reachable, or keeps so, and of bases.

        Links of new objects that no ref reaches are among it: what is stored must never lead to what is not there.
        """
        known = bits_of(self.known, self.incoming.first)
        bases = self.look.view.positions(self._bases()) if self.look.view is not None else []
        return [
            self._had,
            self.look.reachable,
            self.look.uploaded.bits(),
            known,
            bits_of((at for at in [*bases, *self.incoming.links] if at >= 0), self.incoming.first),
        ]

    def _bases(self) -> list[ObjectId]:
        return [ObjectId(oid) for oid in self.ingest.bases_alone()] if self.ingest else []

    def root(self) -> bytes:
        """Write what the push brings; returns the root of its recent, b"" when it brings nothing."""
        if self._recent is None and self.ingest is not None and self.incoming.objects:
            self._recent = write_recent(
                self.store.blocks,
                self.ingest,
                segments=self.incoming.segments,
                stream=self.incoming.stream,
                pool=self.record.pool,
                hash_kind=self.record.hash_kind,
                limits=self.store.limits,
            )
        return self._recent.root if self._recent else b""

    @property
    def is_small(self) -> bool:
        """Whether what comes is so little that ``adopt`` costs less than a hop to a thread."""
        return self._recent is None or len(self._recent.root) <= SMALL_BYTES

    def growth(self) -> Usage:
        """Return what the push adds to the repository; about the bytes that are stored, before they are."""
        if self.ingest is None or not self.incoming.objects:
            return Usage()
        size = run_bytes(self.ingest, self.incoming.segments, self.incoming.stream)
        return Usage(self.incoming.objects, size)

    def admitted(self) -> tuple[list[Condition], list[Operation]]:
        """Return what the commit needs so that the repository takes it, and counts it where that is counted.

        Errors: ReadOnly, QuotaExceeded, RepositoryMissing.
        """
        with self.moment() as snapshot:
            held = writable(snapshot, self.record)
            conditions, operations = grown(self.store, snapshot, held.record, self.growth())
        return [held.unchanged, *conditions], operations

    def quarantined(self, targets: Sequence[ObjectId]) -> Reading:
        """Return reads of the repository as it would be with refs to ``targets`` as well."""
        view = self.extended()
        tips = [at for at in self.incoming.positions(targets) if at >= 0]
        have = self.look.reachable
        marks, _ = self.incoming.reached(tips, have or None)
        both = int.from_bytes(have, "little") | int.from_bytes(marks, "little")
        known = both.to_bytes((view.objects + 7) // 8, "little")
        shown = view if view.objects else None
        return QuarantinedReading(
            self.store,
            self.look.state,
            shown,
            Reach(known=known),
            uploaded=self.look.uploaded,
        )

    def extended(self) -> PoolView:
        """Return the pool with what came, as it will be once that is committed."""
        pool = self.look.state.pool
        view, root = pool.view.with_grafts(self.grafts), self.root()
        if self._recent is None:
            return view
        made = self._recent.manifest
        return view.extended(pool.last_recent + 1, root, graph=self.incoming.graph, made=made)

    def graft_steps(self) -> tuple[Operation, ...]:
        """Return what a commit of this needs beside the rest to end the repository's history where it shall."""
        return self.store.graft_steps(self.record, self.look.state.pool.view.grafts, self.grafts)

    def adopt(self, revision: int) -> PoolView:
        """Keep the view that a commit at ``revision`` made right, and have a full pool settled; returns the view."""
        after = self.extended()
        if self._recent is not None:
            self.store.adopt(self.look.state.pool.record, after, revision)
        settle_soon(self.store, self.look)
        return after

    def renew(self) -> bool:
        """Look at the repository anew after another writer won; says whether the pool is another now.

        Errors: RepositoryMissing, BasesGone.
        """
        self.leave_snapshot()
        before, had = self.look.state.pool.view, self.look
        look = Look(self.store, self.name)
        if look.record.id != self.record.id:  # the name is another's now
            raise RepositoryMissing("repository does not exist", repository=self.name)
        self.look = look
        if self.look.state.pool.view.id == before.id:
            self._had = union(self._had, had.reachable, had.uploaded.bits())
            return False
        self._had = b""
        if self.ingest is not None:
            # What the pool had is left out of what is stored, and cannot be put back.
            leaned_on = [*self._bases(), *before.ids_at(self.known)]
            if any(at < 0 for at in self.look.positions_in_pool(leaned_on)):
                raise BasesGone(
                    "objects that the pack builds on were dropped meanwhile; send it again",
                    repository=self.name,
                )
            self._place()
        else:
            self._lay_out()
        return True

    def has_room(self) -> bool:
        """Say whether the pool, as the look shows it, takes one recent more without a settle."""
        view, limits = self.look.state.pool.view, self.store.limits
        return (
            len(view.recents) < limits.recents_max and view.recents_bytes < limits.recents_max_bytes
        )

    def make_room(self) -> bool:
        """Have the pool settled where recents have piled up, so that nobody's lookups drown in them.

        Says whether the pool is another now. While another process settles it, ``waiting`` is the
        time after which to ask again; for ``limits.settle_wait_max_s`` in all, then it goes on as
        long as recents are not REFUSED_AT times too many.
        Errors: RepositoryMissing, BasesGone, StorageFull, Unavailable; DataLoss where a damaged block is in
        the settle's way.
        """
        waited, self.waiting = self.waiting, 0.0
        limits = self.store.limits
        if self.has_room():
            return False
        if not self._crowded(1):
            return self.renew()
        failed: DataLoss | None = None
        try:
            settle(self.store, self.record.pool)
        except DataLoss as error:
            failed = error
        if self._crowded(1):
            now = clock.monotonic()
            self._until = self._until or now + limits.settle_wait_max_s
            if failed is None and now < self._until:
                self.waiting = min(2 * waited, WAIT_S[1]) if waited else WAIT_S[0]
                return False
            if self._crowded(REFUSED_AT):
                if failed is not None:
                    raise DataLoss(TOO_DAMAGED, pool=self.record.pool.hex()) from failed
                raise Unavailable("pool is being settled; try again in a minute")
        return self.renew()

    def _crowded(self, times: int) -> bool:
        """Say whether the pool has that many times the recents that it may have, now."""
        limits = self.store.limits
        with self.store.journal.snapshot() as snapshot:
            view = self.store.pool(snapshot, self.record.pool).view
        many = len(view.recents) >= times * limits.recents_max
        return many or view.recents_bytes >= times * limits.recents_max_bytes


def settle_soon(store: Store, look: Look) -> None:
    """Have the pool settled in the background once it has enough recents."""
    view, limits = look.state.pool.view, store.limits
    full = view.recents_bytes >= limits.recents_max_bytes // 2
    if len(view.recents) + 1 >= limits.recents_settle or full:
        pool = look.record.pool
        store.workers.later(("settle", pool), lambda: settle(store, pool))
