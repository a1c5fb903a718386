"""What gc must keep of a pool: all that its roots reach, as one snapshot of the journal shows them.

Roots are refs and HEADs of the pool's repositories, deleted ones that can be brought back among them; what refs moved
away from within the grace period; what was uploaded and no ref names yet; and recents, whole.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.errors import DataLoss
from shardgit.graph.closure import closure
from shardgit.journal.interface import end_of
from shardgit.journal.records import (
    RepositoryRecord,
    decode_deleted,
    deleted_key,
    repository_key,
)
from shardgit.oid import hex_of
from shardgit.pool.grafts import Grafts
from shardgit.refs.change import HEAD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.oid import ObjectId, PoolId, RepositoryId
    from shardgit.pool.view import PoolView
    from shardgit.service.store import Store

SKEW_MS = (
    86_400_000  # log rows of a clock that went back stand behind older ones, by no more than this
)


class Members:
    """The repositories of each pool, deleted ones too. A later snapshot costs by what was made since."""

    def __init__(self) -> None:
        self._pools: dict[PoolId, set[RepositoryId]] = defaultdict(set)
        self._last = 0

    def look(self, snapshot: JournalSnapshot) -> None:
        """Take in the repositories that were made since the last look: ids rise and are never used twice."""
        for table in (b"I", b"D"):
            low = table + (self._last + 1).to_bytes(8, "big")
            for row in snapshot.range(low, end_of(table)):
                value = row.value if table == b"I" else decode_deleted(row.value)[1]
                record = RepositoryRecord.decode(value)
                self._pools[record.pool].add(record.id)
        self._last = max((max(ids) for ids in self._pools.values()), default=0)

    def pools(self) -> list[PoolId]:
        """Return the pools that have, or had, repositories."""
        return list(self._pools)

    def of(self, snapshot: JournalSnapshot, pool: PoolId) -> Iterator[RepositoryRecord]:
        """Return the repositories of a pool that can be named or brought back."""
        self.look(snapshot)
        for number in sorted(self._pools.get(pool, ())):
            row = snapshot.get(repository_key(number))
            if row is not None:
                yield RepositoryRecord.decode(row.value)
            elif (gone := snapshot.get(deleted_key(number))) is not None:
                yield RepositoryRecord.decode(decode_deleted(gone.value)[1])


class Roots:
    """The objects that a pool's repositories hold on to, told apart by how."""

    def __init__(self, store: Store, grace_ms: int) -> None:
        self.store = store
        self.grace_ms = grace_ms
        self.named: set[ObjectId] = set()  # by refs: they must be there
        self.held: set[ObjectId] = set()  # by the log, and as uploads: they may be gone already
        self._listed: set[bytes] = set()

    def add(self, snapshot: JournalSnapshot, record: RepositoryRecord) -> None:
        """Take in a repository's roots."""
        refs = self.store.refs
        key = refs.state_key(snapshot, record)
        if key not in self._listed:  # forks share what they began with
            self._listed.add(key)
            self.named.update(
                ref.target for ref in refs.list(snapshot, record) if ref.target is not None
            )
            head = refs.get(snapshot, record, HEAD)
            if head is not None and head.target is not None:
                self.named.add(head.target)
        self._add_log(snapshot, record)
        uploads = self.store.uploads
        for upload in uploads.fresh(snapshot, record.id):
            self.held.update(uploads.ids(upload.record))

    def _add_log(self, snapshot: JournalSnapshot, record: RepositoryRecord) -> None:
        since = clock.now_ms() - self.grace_ms
        for entry in self.store.refs.log(snapshot, record):
            if entry.time_ms <= since - SKEW_MS:
                break
            if entry.time_ms <= since:
                continue
            # What a fork was made with was in no ref of its before, and its snapshot may be large.
            for change in replace(entry.changes, made=None):
                if change.old is not None and change.old.target is not None:
                    self.held.add(change.old.target)


def roots_of(
    store: Store, snapshot: JournalSnapshot, pool: PoolId, members: Members, grace_ms: int
) -> Roots:
    """Return the roots of a pool."""
    roots = Roots(store, grace_ms)
    for record in members.of(snapshot, pool):
        roots.add(snapshot, record)
    return roots


def kept(view: PoolView, roots: Roots, more: Iterable[int] = ()) -> bytes:
    """Return the bitset over positions of what roots, and the objects at positions ``more``, reach.

    DataLoss when what a ref names, or anything that is reached, is not in the pool.
    """
    named = sorted(roots.named)
    tips = view.positions(named)
    for oid, at in zip(named, tips, strict=True):
        if at < 0:
            raise DataLoss("a ref names an object that the pool lacks", oid=hex_of(oid))
    tips += [at for at in view.positions(sorted(roots.held)) if at >= 0]
    for run in view.recents:
        tips += range(run.start, run.start + run.record.objects)
    tips += more
    if view.awaited:
        # History may end there in some repository. That it ends sooner in others, whatever the pool has, is not looked
        # at: what is behind their grafts is kept as long as the pool reaches it.
        view = view.with_grafts(Grafts.of(view.ids_at(sorted(view.awaited))))
    return closure(view, tips)


def all_of(runs: Sequence[range]) -> Iterator[int]:
    """Return all positions of spans."""
    for span in runs:
        yield from span
