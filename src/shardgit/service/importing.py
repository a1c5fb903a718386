"""Import: a Git repository becomes a run of its pool, in one journal commit.

Stages: scan the source's packs; resolve families and compute every id; leave out what the pool has and what no ref
reaches; lay out segments; put all blocks; commit manifest pointer and refs together. Nothing is visible before the
commit, so an import that was stopped leaves only blocks that no manifest names, and is simply repeated.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints
from shardgit.errors import (
    BasesGone,
    Conflict,
    MalformedInput,
    MalformedPack,
    OutcomeUnknown,
    Refused,
    RepositoryExists,
    RepositoryMissing,
    ShardgitError,
)
from shardgit.graph.closure import bit, bits_of
from shardgit.journal.mode import check_mode
from shardgit.journal.quota_records import Usage
from shardgit.oid import hex_of
from shardgit.operate.settle import settle
from shardgit.pool.append import BlockBatch, run_bytes, write_recent, write_run
from shardgit.pool.grafts import Grafts
from shardgit.pool.manifest import Manifest, encode_manifest
from shardgit.pool.writer import RunWriter
from shardgit.progress import Progress, Report, silent
from shardgit.refs.log import LogNote
from shardgit.refs.name import check_ref_name
from shardgit.refs.ref import Ref
from shardgit.service.incoming import Incoming, leave_out_known
from shardgit.service.policy import follows
from shardgit.service.quotas import grown
from shardgit.service.remote_url import without_secret
from shardgit.service.repositories import Repositories
from shardgit.service.resolving import new_ingest, resolve, spills
from shardgit.service.settings import settings_of
from shardgit.service.source import opened
from shardgit.service.writable import writable
from shardgit.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit._layout import Ingest
    from shardgit.journal.interface import Compare, Condition, JournalSnapshot, Operation
    from shardgit.journal.records import RepositoryRecord
    from shardgit.oid import ObjectId
    from shardgit.service.settings import MirrorSettings
    from shardgit.service.source import GitSource, SourcePack, SourceRef
    from shardgit.service.store import PoolState, Store
    from shardgit.service.writable import Writable

MESSAGE = "import"  # in the ref log
ROUNDS_MAX = 8  # tries against other writers of the pool; each writes anew
COMMITS_MAX = 256  # tries of one round against those who change refs, or count on the same quota
PAUSE_S = 0.02  # at most, between two of them


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import did. ``objects`` are those that were new to the pool."""

    repository: str
    created: bool
    objects: int
    objects_in_source: int
    objects_unreachable: int
    refs: int
    stored_bytes: int
    seconds: float


def import_repository(  # noqa: PLR0913 - most are for few callers, and named
    store: Store,
    name: str,
    source: str,
    *,
    progress: Report = silent,
    use_index: bool = True,
    overwrite: bool = False,
    detect: bool | None = None,
    private: bool = True,
    borrows: bool = True,
    skips: frozenset[str] = frozenset(),
    mirror: MirrorSettings | None = None,
) -> ImportResult:
    """Import ``source`` (a path or a URL) into repository ``name``, which is made when it is missing.

    With ``use_index`` the entry starts in a pack's .idx spare a pass over the pack; every entry is checked against
    them. Returns when all is durable and readable. The repository's refs are those of the source afterwards.

    A repository whose refs were moved by a push, or by hand, since its last import keeps them: Refused, unless
    ``overwrite`` says that they shall be the source's all the same.

    Without ``private`` a source on this machine or in a network of one's own is refused, as link-local addresses are
    always: for sources that others name.

    Without ``borrows`` objects are not read from where the source borrows them (its alternates), nor are those in packs
    that it ``skips``: the pool has them.

    With ``mirror`` the source is a copy of what the repository follows, by these very settings.

    With ``detect`` SHA-1 collision attacks are looked for; without it the store says.

    Errors: NotFound and Refused for the source, MalformedInput for what it holds, LimitExceeded, StorageFull, Conflict
    when another import or push into the repository won meanwhile.
    """
    begun = time.monotonic()
    with (
        opened(
            source,
            scratch=store.scratch,
            limits=store.limits,
            private=private,
            borrows=borrows,
            skips=skips,
            progress=progress,
        ) as origin,
        store.lease(),  # on the blocks that are put before the commit
    ):
        job = _Import(store, name, origin, progress, overwrite=overwrite)
        job.mirror = mirror
        job.detect = store.detects_always if detect is None else detect
        job.run(use_index=use_index)
    return ImportResult(
        repository=name,
        created=job.created,
        objects=job.objects,
        objects_in_source=job.objects_in_source,
        objects_unreachable=job.objects_unreachable,
        refs=job.refs,
        stored_bytes=job.stored_bytes,
        seconds=time.monotonic() - begun,
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What was written over a pool as it stood, and what the commit makes of it."""

    pool: PoolState
    refs: Sequence[Ref]
    head: Ref | None
    more: Usage
    grafts: tuple[Grafts, Grafts]  # before and after
    unchanged: Compare  # of these
    reached: Sequence[bytes]  # of the pool, as bitsets
    steps: tuple[list[Condition], list[Operation]]


class _Import:
    """One import under way."""

    def __init__(
        self,
        store: Store,
        name: str,
        origin: GitSource,
        progress: Report,
        *,
        overwrite: bool = False,
    ) -> None:
        self.store = store
        self.overwrite = overwrite
        self.name = name
        self.origin = origin
        self.progress = progress
        self.created = False
        self.detect = False
        self.mirror: MirrorSettings | None = None  # that is brought in step
        self._before: PoolState | None = None  # the pool of the round before,
        self._known: Sequence[int] = ()  # and what was left out because it had that
        self.objects = self.objects_in_source = self.objects_unreachable = self.refs = (
            self.stored_bytes
        ) = 0

    def run(self, *, use_index: bool) -> None:
        """Run all stages."""
        self._check_taken()
        source_refs = [ref for ref in self.origin.refs() if self._wanted(ref.name)]
        for ref in source_refs:
            check_ref_name(ref.name)
        source_head = self.origin.head()
        ingest = self._ingest(use_index=use_index)
        self.objects_in_source = ingest.objects_scanned
        record = self._repository()
        with self.store.journal.snapshot() as snapshot:
            self._check_untouched(snapshot, record)
        try:
            self._fill(record, ingest, source_refs, source_head)
        except OutcomeUnknown:
            raise  # it may be there, whole
        except BaseException:
            if self.created:
                # What was made for this import goes with it; a crash here leaves an empty repository.
                with suppress(ShardgitError):
                    Repositories(self.store).delete(self.name)
            raise

    def _fill(
        self,
        record: RepositoryRecord,
        ingest: Ingest,
        source_refs: Sequence[SourceRef],
        source_head: SourceRef | None,
    ) -> None:
        """Write what is new and commit it with the refs."""
        for _ in range(ROUNDS_MAX):
            plan = self._planned(record, ingest, source_refs, source_head)
            for _ in range(COMMITS_MAX):
                if self._committed(record, plan):
                    self._settled(record)
                    return
                clock.sleep(
                    PAUSE_S * os.urandom(1)[0] / 256
                )  # who lost together does not meet again
                if not self._stands(record, plan):
                    break  # what was written is over another pool
        raise Conflict("repository changed during the import; import again", repository=self.name)

    def _settled(self, record: RepositoryRecord) -> None:
        try:
            settle(self.store, record.pool)
        except ShardgitError as error:  # the import is there; maintenance settles it
            log().warning("import_not_settled", repository=self.name, error=str(error))

    def _planned(
        self,
        record: RepositoryRecord,
        ingest: Ingest,
        source_refs: Sequence[SourceRef],
        source_head: SourceRef | None,
    ) -> _Plan:
        """Write what is new over the pool as it stands. Errors: QuotaExceeded, before anything is written."""
        ends = Grafts.of(self.origin.shallow())
        with self.store.journal.snapshot() as snapshot:
            pool = self.store.pool(snapshot, record.pool, ends)
            before, unchanged = self.store.grafts_row(snapshot, record)
        view = self.store.view(pool)
        known = leave_out_known(ingest, view, compare=False)
        self._check_held(pool, known)
        incoming = Incoming(ingest, view, record.hash_kind, self.store.limits, grafts=ends)
        tips = [
            ref.target
            for ref in [*source_refs, *([source_head] if source_head else [])]
            if ref.target
        ]
        marks = _closure(incoming, tips)
        grafts = self._grafts(incoming, marks, ends, before)
        self.objects_unreachable += ingest.drop_positions(marks, incoming.first)
        if incoming.objects != ingest.objects_kept or self.objects_unreachable:
            incoming = Incoming(ingest, view, record.hash_kind, self.store.limits, grafts=ends)
        refs = [_ref(incoming, ref) for ref in source_refs]
        head = _ref(incoming, source_head) if source_head else None
        self.objects = ingest.objects_kept
        self.refs = len(refs)
        segments, stream = incoming.segments, incoming.stream
        size = run_bytes(ingest, segments, stream) if self.objects else 0
        more = Usage(self.objects, size)
        with self.store.journal.snapshot() as snapshot:
            grown(self.store, snapshot, self._held(snapshot, record).record, more)
        del incoming  # its graph takes as much memory as the stream, and blocks are made without it
        steps = self._write(record, pool, ingest, segments, stream) if self.objects else ([], [])
        reached = [marks, bits_of(known, view.objects if view is not None else 0)]
        return _Plan(pool, refs, head, more, (before, grafts), unchanged, reached, steps)

    def _stands(self, record: RepositoryRecord, plan: _Plan) -> bool:
        """Say whether what was written still fits: pool and grafts are as they were."""
        with self.store.journal.snapshot() as snapshot:
            now = self._pool_now(snapshot, record)
            unchanged = self.store.grafts_row(snapshot, record)[1]
        same = (now.revision, now.last_recent) == (plan.pool.revision, plan.pool.last_recent)
        return same and now.view.id == plan.pool.view.id and unchanged == plan.unchanged

    def _pool_now(self, snapshot: JournalSnapshot, record: RepositoryRecord) -> PoolState:
        return self.store.pool(snapshot, record.pool, Grafts.of(self.origin.shallow()))

    def _committed(self, record: RepositoryRecord, plan: _Plan) -> bool:
        """Commit what was written, counted as the quotas stand now; False when another writer was faster."""
        with self.store.journal.snapshot() as snapshot:
            held = self._held(snapshot, record)
            counts = grown(self.store, snapshot, held.record, plan.more)
            condemned = self._pool_now(snapshot, record).condemned
            self._check_untouched(snapshot, record)
            change = self.store.refs.replace_all(snapshot, record, plan.refs, plan.head, self._note)
        relied = self.store.rely(replace(plan.pool, condemned=condemned), lambda: plan.reached)
        # commit point: a crash before it leaves the repository as it was and blocks that nothing names; after it the
        # import is whole.
        faultpoints.reach("import.before_commit")
        done = self.store.try_commit(
            [
                held.unchanged,
                *counts[0],
                *change.conditions,
                plan.unchanged,
                *relied[0],
                *plan.steps[0],
            ],
            [
                *counts[1],
                *change.operations,
                *self.store.graft_steps(record, *plan.grafts),
                *relied[1],
                *plan.steps[1],
            ],
        )
        faultpoints.reach("import.after_commit")
        return done

    def _grafts(self, incoming: Incoming, marks: bytes, ends: Grafts, before: Grafts) -> Grafts:
        """Return where history ends from now on: at the source's ends, and at those that no ref reaches any more.

        What ended there may come back by the ref log, and shall be then what it was. A shallow source that is imported
        day by day leaves ever more of them: once they are many, they are forgotten.
        """
        ids = sorted(ends.ids | before.ids)
        places = zip(ids, incoming.positions(ids), strict=True)
        reached = {oid for oid, at in places if at >= 0 and bit(marks, at)}
        now, then = ends.ids & reached, before.ids - reached
        few = len(now) + len(then) <= self.store.limits.grafts_max // 2
        return Grafts.of(now | then if few else now)

    def _check_held(self, pool: PoolState, known: Sequence[int]) -> None:
        """Raise BasesGone when the pool has lost what the round before left out because the pool had it."""
        if self._before is not None and self._before.view.id != pool.view.id:
            held = self._before.view.ids_at(self._known)
            if any(at < 0 for at in pool.view.positions(held)):
                raise BasesGone(
                    "pool changed during the import; import again", repository=self.name
                )
        self._before, self._known = pool, known

    def _check_taken(self) -> None:
        """Look whether the repository, if it is there, takes changes, before the source is read. Errors: ReadOnly."""
        with self.store.journal.snapshot() as snapshot:
            check_mode(snapshot)
            with suppress(RepositoryMissing):
                self._held(snapshot, self.store.repository(snapshot, self.name))

    def _held(self, snapshot: JournalSnapshot, record: RepositoryRecord) -> Writable:
        held = writable(snapshot, record, syncs=self.mirror is not None)
        if self.mirror is not None and settings_of(held.record).mirror != self.mirror:
            raise Conflict("mirror was changed meanwhile", repository=self.name)
        return held

    def _wanted(self, name: bytes) -> bool:
        return name.startswith(b"refs/") and (self.mirror is None or follows(self.mirror, name))

    @property
    def _note(self) -> LogNote:
        if self.mirror is None:
            return LogNote("", MESSAGE)
        return LogNote("", f"mirror of {without_secret(self.mirror.url)}")

    def _repository(self) -> RepositoryRecord:
        """Return the repository, made when it is missing."""
        with self.store.journal.snapshot() as snapshot, suppress(RepositoryMissing):
            record = self.store.repository(snapshot, self.name)
            return self._fitting(record)
        with suppress(RepositoryExists):
            record = self.store.create_repository(self.name, self.origin.hash_kind)
            self.created = True
            return record
        with self.store.journal.snapshot() as snapshot:
            return self._fitting(self.store.repository(snapshot, self.name))

    def _check_untouched(self, snapshot: JournalSnapshot, record: RepositoryRecord) -> None:
        """Refuse to undo what was pushed since the last import."""
        for entry in self.store.refs.log(snapshot, record):
            if self.overwrite or self.mirror is not None or entry.message == MESSAGE:
                return
            if any(change.name.startswith(b"refs/") for change in entry.changes):
                raise Refused(
                    "repository was changed since its last import; --overwrite makes its refs the source's",
                    repository=self.name,
                    changed_by=entry.actor or entry.message,
                )

    def _fitting(self, record: RepositoryRecord) -> RepositoryRecord:
        if record.hash_kind is not self.origin.hash_kind:
            raise Refused(
                "source has another object format than the repository",
                source=self.origin.hash_kind.git_name,
                repository=record.hash_kind.git_name,
            )
        return record

    # ---- stages ----

    def _ingest(self, *, use_index: bool) -> Ingest:
        packs = list(self.origin.packs(use_index=use_index))
        try:
            return self._resolved(packs, hinted=True)
        except MalformedPack:
            if all(pack.offsets is None for pack in packs):
                raise
            # An .idx that does not fit its pack must not condemn the pack: find the entries without it.
            return self._resolved(packs, hinted=False)

    def _resolved(self, packs: Sequence[SourcePack], *, hinted: bool) -> Ingest:
        ingest = new_ingest(
            self.origin.hash_kind,
            self.store.limits,
            scratch=self.store.scratch if spills(pack.data for pack in packs) else None,
            detect=self.detect,
        )
        total = sum(len(pack.data) for pack in packs)
        done = 0
        for pack in packs:
            self.progress(Progress("scanning packs", done, total, "bytes"))
            ingest.scan(pack.data, pack.offsets if hinted else None)
            done += len(pack.data)
        self.progress(Progress("scanning packs", total, total, "bytes"))
        resolve(
            ingest,
            threads=self.store.workers.threads,
            stage="resolving deltas",
            progress=self.progress,
        )
        return ingest

    def _write(
        self,
        record: RepositoryRecord,
        pool: PoolState,
        ingest: Ingest,
        segments: int,
        stream: bytes,
    ) -> tuple[list[Condition], list[Operation]]:
        """Put every block of the new run; returns the steps that make it part of the pool as it was looked at.

        The first run of a pool becomes its manifest at once; a later one is a recent, as a push is.
        """
        if pool.record.manifest is not None or pool.last_recent:
            recent = write_recent(
                self.store.blocks,
                ingest,
                segments=segments,
                stream=stream,
                pool=record.pool,
                hash_kind=record.hash_kind,
                limits=self.store.limits,
            )
            return self.store.next_recent(pool, recent.root)
        limits = self.store.limits
        writer = RunWriter(ingest, record.pool, record.hash_kind, 0, limits=limits)
        whole = run_bytes(ingest, segments, stream)
        batch = BlockBatch(self.store.blocks, embed=whole < limits.block_target_bytes // 2)

        def wrote(count: int) -> None:
            self.progress(Progress("writing blocks", count, segments, "blocks"))

        write_run(writer, batch, segments=segments, stream=stream, wrote=wrote)
        entries = tuple(writer.entries)
        manifest = Manifest(record.hash_kind, 1, len(entries), (writer.record(),), entries, ())
        root_id, blocks = encode_manifest(manifest, pool=record.pool, embedded=batch.embedded)
        batch.put(blocks)
        self.stored_bytes = batch.stored_bytes
        _, put = self.store.next_pool(pool, root_id)
        return self.store.no_recents(pool), [put]


def _closure(incoming: Incoming, tips: Sequence[ObjectId]) -> bytes:
    """Return all that ``tips`` reach; MalformedInput when the source lacks an object that they do."""
    positions = incoming.positions(tips)
    for oid, position in zip(tips, positions, strict=True):
        if position < 0:
            raise MalformedInput(
                "a ref of the source names an object that it lacks", oid=hex_of(oid)
            )
    marks, whole = incoming.reached(positions)
    if not whole:
        raise MalformedInput("source lacks an object that its refs reach; is it a partial clone?")
    return marks


def _ref(incoming: Incoming, ref: SourceRef) -> Ref:
    """Return a ref with what its tag peels to."""
    if ref.target is None:
        return Ref(ref.name, symbolic=ref.symbolic)
    return Ref(ref.name, target=ref.target, peeled=incoming.peeled(ref.target))
