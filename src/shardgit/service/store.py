"""A store, put together: journal, blocks, refs, workers and the views of its pools."""

from __future__ import annotations

import os
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING
from weakref import ref as weak

from blake3 import blake3

from shardgit import clock, faultpoints
from shardgit.blocks.block import keep_off
from shardgit.blocks.routed import RoutedStore
from shardgit.errors import (
    Conflict,
    DataLoss,
    LimitExceeded,
    LogPositionUnknown,
    Refused,
    RepositoryExists,
    RepositoryMissing,
)
from shardgit.graph.closure import Move, carried, closure, followed
from shardgit.graph.closures import Closures
from shardgit.holders import LocalHolders
from shardgit.journal.graft_records import decode_grafts, encode_grafts, grafts_key
from shardgit.journal.held import HELD_KEY
from shardgit.journal.interface import Compare, Delete, Put
from shardgit.journal.leases import Lease, Leases
from shardgit.journal.mode import check_mode
from shardgit.journal.quota_records import Usage
from shardgit.journal.records import (
    NEXT_REPOSITORY_KEY,
    NameRecord,
    PoolRecord,
    RepositoryRecord,
    decode_counter,
    encode_counter,
    name_key,
    pool_key,
    recent_key,
    recents_range,
    repository_key,
    serial_of,
)
from shardgit.kept import Looks
from shardgit.oid import BlockId, HashKind, PoolId, RepositoryId
from shardgit.pool.condemned import Condemned, CondemnedRecord, condemned_key
from shardgit.pool.grafts import NO_GRAFTS, Grafts
from shardgit.pool.sharing import Sharing
from shardgit.pool.trailers import Trailers
from shardgit.pool.transfer import kept_entries
from shardgit.pool.view import PoolView, small_entries
from shardgit.refs.change import HEAD, first_steps
from shardgit.refs.ref import Ref
from shardgit.service.audit import Audit
from shardgit.service.doorkeeper import Doorkeeper
from shardgit.service.heat import Heat
from shardgit.service.hiding import NONE_HIDDEN
from shardgit.service.names import check_repository_name
from shardgit.service.quotas import joined
from shardgit.service.uploads import Uploads
from shardgit.turns import FileTurns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from weakref import ReferenceType

    from shardgit.blocks.interface import StoreBlocks
    from shardgit.holders import Holders
    from shardgit.journal.interface import Condition, JournalSnapshot, Operation, StoreJournal
    from shardgit.kept import Looked
    from shardgit.limits import Limits
    from shardgit.oid import ObjectId
    from shardgit.refs.log import LogNote
    from shardgit.refs.table import RefTable
    from shardgit.service.events import Events
    from shardgit.service.gate import Gate
    from shardgit.service.hiding import HiddenRefs
    from shardgit.service.hooks import Hooks
    from shardgit.turns import Turns
    from shardgit.workers import Workers

VIEWS_CACHED = 1_024
VIEWS_OF_A_LINE = 4  # snapshots of requests under way are a few pushes apart at most
VIEWS_CACHED_BYTES = 256 << 20  # of recents
VIEWS_CACHED_OBJECTS = 8_000_000  # graph and index of git.git take 48 bytes an object: 400 MB
REACH_CACHED_BYTES = 64 << 20
WALKED_CACHED_BYTES = 64 << 20
REACH_KEY_BYTES = 512
GRAFTS_CACHED = 128  # sets; one of the most commits takes about 2 MB
WALKED_CACHED = 1_024  # repositories whose reach is followed along the log
MOVES_MAX = 10_000
CONDEMNED_CACHED = 16


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool's record, the revision of its row, for compare-and-set, and its last recent, 0 without.

    As long as the state is held, gc deletes nothing that its view names.
    """

    record: PoolRecord
    revision: int
    view: PoolView = field(compare=False, repr=False)
    last_recent: int = 0
    lease: Lease | None = field(default=None, compare=False, repr=False)
    condemned: Condemned | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """One consistent look at a repository: record and pool as one snapshot of the journal shows them.

    The pool's view is the repository's: its grafts are cut. A commit that relies on what the repository reaches asks
    that they are ``unchanged``.
    """

    record: RepositoryRecord
    pool: PoolState
    refs_key: bytes
    unchanged: Compare


class _Line:
    """The views of one manifest with the same grafts: itself alone first, then with recents, by rising serial."""

    __slots__ = ("before", "generation", "lock", "manifest", "objects", "revision", "views")

    def __init__(self, record: PoolRecord) -> None:
        self.manifest = record.manifest
        self.generation = record.generation
        self.views: list[PoolView] = []
        self.objects = 0
        self.before: list[PoolView] = []  # those of the manifest before, for what is known of them
        self.revision = 0  # of the newest snapshot that the last view was right for
        self.lock = Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes of the recents that the line keeps in memory."""
        # Views of one line share the bytes of their recents: the last has them all.
        return sum(views[-1].recents_bytes for views in (self.views, self.before) if views)


class Reach:
    """What a repository may serve: a bitset over pool positions, known or found at the first use.

    The walk needs no snapshot: a journal transaction must not live as long as one. ``sequence`` is the number of the
    newest row of the ref log then.
    """

    def __init__(
        self,
        *,
        known: bytes | None = None,
        walk: Callable[[], bytes] | None = None,
        sequence: int = 0,
    ) -> None:
        self.sequence = sequence
        self._known = known
        self._walk = walk

    @property
    def is_known(self) -> bool:
        """Whether the bitset is there without a walk."""
        return self._known is not None

    def bits(self) -> bytes:
        """Return the bitset."""
        if self._known is None:
            assert self._walk is not None
            self._known = self._walk()
        return self._known


@dataclass(frozen=True, slots=True)
class _Walked:
    """What a repository's refs reached at a state that this process has seen."""

    view: ReferenceType[
        PoolView
    ]  # views are kept alive by their lines, not by what was found out in them
    manifest_id: BlockId | None
    last_recent: int
    grafts: bytes  # their key
    sequence: int
    bits: bytes

    def at(self, view: PoolView, sequence: int) -> bytes | None:
        """Return the bits for the positions of ``view``, as of then; None where these cannot be told."""
        if self.sequence > sequence or self.grafts != view.grafts.key:
            return None
        if self.manifest_id == view.manifest_id:
            return self.bits if self.last_recent <= view.last_recent else None
        before = self.view()
        if before is None:
            return None
        try:
            return carried(before, view, self.bits)
        except DataLoss:  # nobody holds a lease on what was before, and gc was there
            return None


def _walked(view: PoolView, sequence: int, bits: bytes) -> _Walked:
    return _Walked(weak(view), view.manifest_id, view.last_recent, view.grafts.key, sequence, bits)


class Store:
    """What services work on. Made by node.open_store; methods run in the calling thread."""

    def __init__(
        self,
        *,
        journal: StoreJournal,
        blocks: StoreBlocks,
        refs: RefTable,
        workers: Workers,
        limits: Limits,
        scratch: Path,
        turns: Turns | None = None,
        detect_collisions: str = "push",
    ) -> None:
        self.journal = journal
        self.blocks = blocks
        self.refs = refs
        self.workers = workers
        self.limits = limits
        self.scratch = scratch
        self.doorkeeper = Doorkeeper(journal)
        self.audit = Audit()
        self.gate: Gate | None = None
        self.heat = Heat()
        self.turns: Turns = FileTurns(scratch) if turns is None else turns
        self.detects_pushed = detect_collisions != "never"  # SHA-1 collision attacks
        self.detects_always = detect_collisions == "always"
        self.leases = Leases(scratch / "leases")
        self.holders: Holders = LocalHolders(self.leases, journal)
        self.trailers = Trailers(scratch / "trailers")
        self.entries = kept_entries()
        self.sharing = Sharing()
        self.closures = Closures()
        self.small = small_entries()
        self.hooks: Hooks | None = None  # in processes that serve; see node.equip_hooks
        self.events: Events | None = None
        self.uploads = Uploads(blocks, limits)
        self.views_looked, self.reach_looked = Looks(), Looks()
        self._lines: OrderedDict[tuple[PoolId, bytes], _Line] = OrderedDict()
        self._grafts: OrderedDict[tuple[RepositoryId, int], Grafts] = OrderedDict()
        self._reach: OrderedDict[tuple[bytes, bytes], bytes] = OrderedDict()
        self._reach_bytes = 0
        self._walked: OrderedDict[tuple[RepositoryId, bytes], _Walked] = OrderedDict()
        self._walked_bytes = 0
        self._condemned: OrderedDict[PoolId, Condemned] = OrderedDict()
        self._lock = Lock()

    @property
    def in_cluster(self) -> bool:
        """Whether this is a node of a cluster."""
        return not isinstance(self.blocks, RoutedStore)

    @property
    def routed(self) -> RoutedStore:
        """The shards of this machine and their ring. Errors: Refused in a cluster, whose ring has nodes."""
        if isinstance(self.blocks, RoutedStore):
            return self.blocks
        raise Refused("the store is a cluster, which has nodes and no shards")

    def caches(self) -> dict[str, Looked]:
        """Return the caches of this process, by the names that metrics have for them."""
        with self._lock:
            self.views_looked.used_bytes = sum(line.held_bytes for line in self._lines.values())
            self.reach_looked.used_bytes = self._reach_bytes + self._walked_bytes
        return {
            "views": self.views_looked,
            "reach": self.reach_looked,
            "closures": self.closures,
            "entries": self.entries,
            "segments": self.small,
            "ref_lines": self.refs.lines,
        }

    def begin_threads(self) -> None:
        """Begin all threads that serve requests, at the priority of the one that calls."""
        self.journal.begin()
        self.workers.begin()
        self.blocks.begin_threads()

    # ---- repositories ----

    def repository(self, snapshot: JournalSnapshot, name: str) -> RepositoryRecord:
        """Return a repository's record; RepositoryMissing without."""
        row = (
            snapshot.get(name_key(name))
            if len(name.encode()) <= self.limits.repository_name_max_bytes
            else None
        )
        if row is not None:
            found = snapshot.get(repository_key(NameRecord.decode(row.value).id))
            if found is not None:
                return RepositoryRecord.decode(found.value)
        raise RepositoryMissing("repository does not exist", repository=name)

    def state(self, snapshot: JournalSnapshot, name: str) -> RepositoryState:
        """Return a repository with its pool, as one snapshot shows them."""
        return self.state_of(snapshot, self.repository(snapshot, name))

    def state_of(self, snapshot: JournalSnapshot, record: RepositoryRecord) -> RepositoryState:
        """Return a repository, a deleted one too, with its pool, as one snapshot shows them."""
        grafts, unchanged = self.grafts_row(snapshot, record)
        return RepositoryState(
            record,
            self.pool(snapshot, record.pool, grafts),
            self.refs.state_key(snapshot, record),
            unchanged,
        )

    # ---- grafts ----

    def grafts(self, snapshot: JournalSnapshot, record: RepositoryRecord) -> frozenset[ObjectId]:
        """Return the commits whose parents a repository does not have: none but in shallow ones.

        Its view (``state``) has them cut. ``pool`` gives the pool as it is, where such a parent may be missing, or be
        a sibling's: a walk over that one ends at these commits for all that the repository reaches.
        """
        return self.grafts_row(snapshot, record)[0].ids

    def grafts_row(
        self, snapshot: JournalSnapshot, record: RepositoryRecord
    ) -> tuple[Grafts, Compare]:
        """Return a repository's grafts, and the condition that they are the same still."""
        key = grafts_key(record.id)
        row = snapshot.get(key)
        if row is None:
            return NO_GRAFTS, Compare(key, 0)
        place = (record.id, row.revision)
        with self._lock:
            found = self._grafts.get(place)
        if found is None:
            found = Grafts.of(decode_grafts(row.value, record.hash_kind))
            with self._lock:
                self._grafts[place] = found
                while len(self._grafts) > GRAFTS_CACHED:
                    self._grafts.popitem(last=False)
        return found, Compare(key, row.revision)

    def graft_steps(
        self, record: RepositoryRecord, old: Grafts, new: Grafts
    ) -> tuple[Operation, ...]:
        """Return what gives a repository other grafts. Errors: LimitExceeded.

        Whoever commits them compares that the old ones are unchanged.
        """
        if new.key == old.key:
            return ()
        if not new:
            return (Delete(grafts_key(record.id)),)
        if len(new.ids) > self.limits.grafts_max:
            raise LimitExceeded(
                "shallow history ends at too many commits",
                commits=len(new.ids),
                limit=self.limits.grafts_max,
            )
        return (Put(grafts_key(record.id), encode_grafts(new.ids, record.hash_kind)),)

    def create_repository(
        self, name: str, hash_kind: HashKind = HashKind.SHA1, *, note: LogNote | None = None
    ) -> RepositoryRecord:
        """Make an empty repository with a pool of its own; HEAD is the unborn refs/heads/main.

        Errors: InvalidRepositoryName, RepositoryExists, QuotaExceeded, ReadOnly.
        """
        check_repository_name(name, max_bytes=self.limits.repository_name_max_bytes)
        now_ms = clock.now_ms()
        for _ in range(16):
            with self.journal.snapshot() as snapshot:
                check_mode(snapshot)
                if snapshot.get(name_key(name)) is not None:
                    raise RepositoryExists("repository exists already", repository=name)
                row = snapshot.get(NEXT_REPOSITORY_KEY)
                number = RepositoryId(decode_counter(row.value) if row else 1)
                pool = PoolRecord(PoolId(os.urandom(16)), hash_kind, None, 0, now_ms)
                record = RepositoryRecord(number, name, pool.id, hash_kind, now_ms)
                owned = joined(self, snapshot, record, Usage())
            head = Ref(b"HEAD", symbolic=b"refs/heads/main")
            conditions: list[Condition] = [
                Compare(name_key(name), 0),
                Compare(NEXT_REPOSITORY_KEY, row.revision if row else 0),
                *owned[0],
            ]
            operations: list[Operation] = [
                Put(NEXT_REPOSITORY_KEY, encode_counter(number + 1)),
                Put(name_key(name), NameRecord(number).encode()),
                Put(repository_key(number), record.encode()),
                Put(pool_key(pool.id), pool.encode()),
                *first_steps(record, head, note),
                *owned[1],
            ]
            # commit point: before it the name is free, after it the repository is there, empty.
            faultpoints.reach("repository.before_create")
            if self.try_commit(conditions, operations):
                faultpoints.reach("repository.after_create")
                return record
        raise RepositoryExists("repository is being made by many at once", repository=name)

    def try_commit(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> bool:
        """Commit; False when it lost against another writer."""
        try:
            self.journal.commit_sync(conditions, operations)
        except Conflict:
            return False
        return True

    # ---- pools ----

    def pool(
        self, snapshot: JournalSnapshot, pool: PoolId, grafts: Grafts = NO_GRAFTS
    ) -> PoolState:
        """Return a pool as a snapshot shows it, with ``grafts`` cut; RepositoryMissing when it is gone."""
        row = snapshot.get(pool_key(pool))
        if row is None:
            raise RepositoryMissing("pool does not exist", pool=pool.hex())
        lease = self._leased(snapshot)
        record = PoolRecord.decode(pool, row.value)
        line = self._line(record, grafts)
        with line.lock:
            view = self._view_of(snapshot, record, line, grafts)
        return PoolState(
            record,
            row.revision,
            view,
            view.last_recent,
            lease,
            self._condemned_in(snapshot, pool),
        )

    def _condemned_in(self, snapshot: JournalSnapshot, pool: PoolId) -> Condemned | None:
        row = snapshot.get(condemned_key(pool))
        if row is None:
            return None
        with self._lock:
            known = self._condemned.get(pool)
            if known is None or known.revision != row.revision:
                record = CondemnedRecord.decode(row.value)
                known = self._condemned[pool] = Condemned(record, row.revision, self.blocks)
                while len(self._condemned) > CONDEMNED_CACHED:
                    self._condemned.popitem(last=False)
            return known

    def lease(self) -> Lease:
        """Return a lease on all that the journal names now, and on all blocks that are put from now on.

        For what puts blocks, or reads them, without holding a pool's state meanwhile.
        """
        with self.journal.snapshot() as snapshot:
            return self._leased(snapshot)

    def _leased(self, snapshot: JournalSnapshot) -> Lease:
        """Return a lease on what a snapshot shows; blocks that are born from then on keep off what it says is held."""
        lease = self.leases.take(snapshot.revision)
        if isinstance(self.blocks, RoutedStore):
            row = snapshot.get(HELD_KEY)
            if (row.revision if row is not None else 0) != self.blocks.held_revision:
                self.blocks.refresh()
        return lease

    def view(self, pool: PoolState) -> PoolView | None:
        """Return the view of a pool's state, None while the pool is empty."""
        return pool.view if pool.view.objects else None

    def _line(self, record: PoolRecord, grafts: Grafts) -> _Line:
        place = (record.id, grafts.key)
        with self._lock:
            line = self._lines.get(place)
            if line is not None and line.manifest == record.manifest:
                self._lines.move_to_end(place)
                self.views_looked.hits += 1
                return line
            self.views_looked.misses += 1
            made = _Line(record)
            if line is not None:
                if line.generation > record.generation:
                    return made  # an older snapshot; its view is not kept
                made.before = line.views
            self._lines[place] = made
            self._lines.move_to_end(place)
            self._drop_lines()
            return made

    def _drop_lines(self) -> None:
        """Drop the lines that were not used for longest, as long as they are too many or too large."""
        objects = sum(line.objects for line in self._lines.values())
        held = sum(line.held_bytes for line in self._lines.values())
        while len(self._lines) > 1 and (
            len(self._lines) > VIEWS_CACHED
            or objects > VIEWS_CACHED_OBJECTS
            or held > VIEWS_CACHED_BYTES
        ):
            _, dropped = self._lines.popitem(last=False)
            objects -= dropped.objects
            held -= dropped.held_bytes

    def _view_of(
        self, snapshot: JournalSnapshot, record: PoolRecord, line: _Line, grafts: Grafts
    ) -> PoolView:
        """Return the view at a snapshot: the newest that it covers, extended by the recents since."""
        if not line.views:
            base = PoolView(
                self.blocks,
                record.hash_kind,
                record.manifest,
                limits=self.limits,
                small=self.small,
            )
            line.views.append(base.with_grafts(grafts))
            line.objects = base.objects
        if snapshot.revision < line.revision:
            return self._older_view(snapshot, record, line)
        newest = line.views[-1]
        fresh = list(snapshot.range(*recents_range(record.id, after=newest.last_recent)))
        line.revision = snapshot.revision
        view = newest
        for row in fresh:
            view = view.extended(serial_of(row.key), row.value)
        if view is not newest:
            line.views.append(view)
            del line.views[1:-VIEWS_OF_A_LINE]  # the first is the manifest alone
            line.objects = view.objects
        return view

    def _older_view(self, snapshot: JournalSnapshot, record: PoolRecord, line: _Line) -> PoolView:
        rows = list(snapshot.range(*recents_range(record.id)))
        last = serial_of(rows[-1].key) if rows else 0
        for view in line.views:
            if view.last_recent == last:
                return view
        view = line.views[0]
        for row in rows:
            view = view.extended(serial_of(row.key), row.value)
        return view

    def adopt(self, record: PoolRecord, view: PoolView, revision: int) -> None:
        """Keep a view whose last recent this process has committed at ``revision``: nobody need build it again.

        Waits for nobody: where the pool's views are being built, they will have that recent too.
        """
        line = self._line(record, view.grafts)
        if not line.lock.acquire(blocking=False):
            return
        try:
            if line.views and line.views[-1].last_recent < view.last_recent:
                line.revision = max(line.revision, revision)
                line.views.append(view)
                del line.views[1:-VIEWS_OF_A_LINE]
                line.objects = view.objects
        finally:
            line.lock.release()

    def reach_of(
        self, snapshot: JournalSnapshot, state: RepositoryState, hidden: HiddenRefs = NONE_HIDDEN
    ) -> Reach:
        """Return what the repository's refs reach but for ``hidden`` ones, to be walked once the snapshot is closed.

        Where this process has walked an earlier state of the refs, it follows the ref log from there: a push
        costs by what it brings, not by the pool or by the number of refs.
        """
        sequence = self.refs.head(snapshot, state.record).sequence
        view = self.view(state.pool)
        if view is None:
            return Reach(known=b"", sequence=sequence)
        key = (view.id, state.refs_key + hidden.key if hidden else state.refs_key)
        record = state.record
        mine = (record.id, hidden.key if hidden else b"")
        with self._lock:
            known = self._reach.get(key)
            earlier = self._walked.get(mine)
        if known is not None:
            self.reach_looked.hits += 1
            return Reach(known=known, sequence=sequence)
        moves = None
        before = earlier.at(view, sequence) if earlier is not None else None
        if earlier is not None and before is not None and earlier.sequence == sequence:
            bits = before.ljust((view.objects + 7) // 8, b"\0")
            if (earlier.manifest_id, earlier.last_recent) != (view.manifest_id, view.last_recent):
                self._keep_walked(mine, _walked(view, sequence, bits))
            self.reach_looked.hits += 1
            return Reach(known=bits, sequence=sequence)
        self.reach_looked.misses += 1
        names, head = self._head(snapshot, record)
        # HEAD is shown, whatever it leads to: who follows shown refs alone would miss that.
        followable = not any(map(hidden.hides, names))
        if earlier is not None and before is not None and followable:
            moves = self._moves(snapshot, record, earlier.sequence, hidden)
        tips: set[ObjectId] = set()
        if moves is None:
            tips = {
                ref.target
                for ref in self.refs.list(snapshot, record)
                if ref.target is not None and not hidden.hides(ref.name)
            }
            if head is not None and head.target is not None:
                tips.add(head.target)

        def walk() -> bytes:
            bits = None
            if before is not None and moves is not None:
                bits = followed(view, before, moves, head.target if head else None)
            if bits is None:
                bits = self._walk_all(snapshot_tips(), view, key)
            else:
                bits = self._cached(key, lambda: bits or b"")
            self._keep_walked(mine, _walked(view, sequence, bits))
            return bits

        def snapshot_tips() -> set[ObjectId]:
            if tips or moves is None:
                return tips
            with self.journal.snapshot() as now:  # what was deleted made the short way impossible
                return self._tips_at(now, record, sequence, hidden)

        return Reach(walk=walk, sequence=sequence)

    def keep_reach(
        self, record: RepositoryRecord, view: PoolView, sequence: int, bits: bytes
    ) -> None:
        """Keep what a repository's refs reach behind row ``sequence`` of its log, in the pool as ``view`` shows it."""
        self._keep_walked((record.id, b""), _walked(view, sequence, bits))

    def _head(
        self, snapshot: JournalSnapshot, record: RepositoryRecord
    ) -> tuple[list[bytes], Ref | None]:
        """Return the names over which HEAD leads to a ref, and that ref; None where it is unborn."""
        names = [HEAD]
        while len(names) <= self.limits.ref_symbolic_depth_max:
            ref = self.refs.get(snapshot, record, names[-1])
            if ref is None or ref.symbolic is None:
                return names, ref
            names.append(ref.symbolic)
        return names, None

    def _keep_walked(self, key: tuple[RepositoryId, bytes], walked: _Walked) -> None:
        with self._lock:
            before = self._walked.pop(key, None)
            self._walked[key] = walked
            self._walked_bytes += len(walked.bits) - (len(before.bits) if before else 0)
            while len(self._walked) > WALKED_CACHED or (
                len(self._walked) > 1 and self._walked_bytes > WALKED_CACHED_BYTES
            ):
                _, gone = self._walked.popitem(last=False)
                self._walked_bytes -= len(gone.bits)

    def _tips_at(
        self,
        snapshot: JournalSnapshot,
        record: RepositoryRecord,
        sequence: int,
        hidden: HiddenRefs,
    ) -> set[ObjectId]:
        """Return the shown refs' targets as they were behind a log row: what moved since is told by the log.

        The log names whole values, so what a later state has or has lost is left out, exactly.
        """
        then: dict[bytes, Ref | None] = {}
        for entry in self.refs.changes_since(snapshot, record, sequence):
            for change in entry.changes:
                then.setdefault(change.name, change.old)
        refs = [ref for ref in self.refs.list(snapshot, record) if ref.name not in then]
        head = self.refs.get(snapshot, record, HEAD)
        if head is not None and head.name not in then:
            refs.append(head)
        refs += [ref for ref in then.values() if ref is not None]
        return {ref.target for ref in refs if ref.target is not None and not hidden.hides(ref.name)}

    def _walk_all(self, tips: set[ObjectId], view: PoolView, key: tuple[bytes, bytes]) -> bytes:
        positions = [position for position in view.positions(sorted(tips)) if position >= 0]
        return self._cached(key, lambda: self.closure_of(view, positions))

    def _moves(
        self,
        snapshot: JournalSnapshot,
        record: RepositoryRecord,
        sequence: int,
        hidden: HiddenRefs,
    ) -> list[Move] | None:
        """Return what became of each shown ref since a log entry; None when that is too much, or not known."""
        first: dict[bytes, ObjectId | None] = {}
        last: dict[bytes, ObjectId | None] = {}
        try:
            for entry in self.refs.changes_since(snapshot, record, sequence):
                if len(entry.changes) + len(last) > MOVES_MAX:
                    return None
                for change in entry.changes:
                    if hidden and change.old is not None and change.old.symbolic is not None:
                        return None  # HEAD may have led over it to what is hidden
                    if hidden.hides(change.name):
                        continue
                    first.setdefault(change.name, change.old.target if change.old else None)
                    last[change.name] = change.new.target if change.new else None
        except LogPositionUnknown:
            return None
        return [Move(first[name], last[name]) for name in last]

    def closure_of(self, view: PoolView, tips: Sequence[int]) -> bytes:
        """Return the bitset of all that pool positions reach. Cached by the set of tips."""
        ordered = array("I", sorted(set(tips)))
        key = (view.id, blake3(ordered.tobytes()).digest())
        return self._cached(key, lambda: closure(view, ordered))

    def selected(self, view: PoolView, facts: bytes, make: Callable[[], bytes]) -> bytes:
        """Return a bitset that follows from a pool's view and ``facts``, cached."""
        key = (view.id, blake3(b"selected\0" + facts).digest())
        return self._cached(key, make)

    def _cached(self, key: tuple[bytes, bytes], make: Callable[[], bytes]) -> bytes:
        with self._lock:
            found = self._reach.get(key)
            if found is not None:
                self._reach.move_to_end(key)
                return found
        made = make()
        with self._lock:
            self._reach_bytes += len(made) - len(self._reach.pop(key, b""))
            self._reach[key] = made
            # Small ones are bounded by what they cost beside their bytes.
            while (
                len(self._reach) > 1
                and self._reach_bytes + REACH_KEY_BYTES * len(self._reach) > REACH_CACHED_BYTES
            ):
                _, dropped = self._reach.popitem(last=False)
                self._reach_bytes -= len(dropped)
        return made

    def next_pool(self, pool: PoolState, manifest: BlockId) -> tuple[Compare, Put]:
        """Return what a commit needs to swap a pool's manifest."""
        record = replace(pool.record, manifest=manifest, generation=pool.record.generation + 1)
        return Compare(pool_key(record.id), pool.revision), Put(
            pool_key(record.id), record.encode()
        )

    def next_recent(self, pool: PoolState, root: bytes) -> tuple[list[Condition], list[Operation]]:
        """Return what a commit needs, beside what it relies on, to add a recent: nobody else may have."""
        key = recent_key(pool.record.id, pool.last_recent + 1)
        return [Compare(key, 0)], [Put(key, root)]

    def rely(
        self, pool: PoolState, on: Callable[[], Iterable[bytes]]
    ) -> tuple[list[Condition], list[Operation]]:
        """Return what a commit needs that makes something of a pool reachable: nothing of it may be gone by then.

        ``on`` gives bitsets over the pool's positions, of all that will be reachable or that a delta needs. It is asked
        while gc is at the pool only. Where gc is about to drop some of that, the commit takes it out of its hands.
        """
        key, condemned = condemned_key(pool.record.id), pool.condemned
        conditions: list[Condition] = [
            Compare(pool_key(pool.record.id), pool.revision),
            Compare(key, condemned.revision if condemned else 0),
            *(pool.lease.fences if pool.lease is not None else ()),
        ]
        if condemned is None:
            return conditions, []
        going = int.from_bytes(condemned.bits(pool.view), "little")
        first = (1 << pool.view.objects) - 1  # what is new has positions behind these
        if any(going & first & int.from_bytes(bits, "little") for bits in on()):
            return conditions, [Delete(key)]
        return conditions, []

    def no_recents(self, pool: PoolState) -> list[Condition]:
        """Return what makes a commit lose when the pool has got its first recent meanwhile."""
        return [Compare(recent_key(pool.record.id, 1), 0)]

    def close(self) -> None:
        """Close everything."""
        keep_off(self.blocks, None)
        self.workers.close()
        self.leases.close()
        self.journal.close()
        self.blocks.close()
