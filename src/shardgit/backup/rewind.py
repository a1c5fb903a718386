"""Refs as they were at a moment: what the log says came later is undone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import DataLoss, LogPositionUnknown, RepositoryMissing
from shardgit.refs.change import HEAD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.journal.records import RepositoryRecord
    from shardgit.pool.view import PoolView
    from shardgit.refs.ref import Ref
    from shardgit.refs.table import RefTable
    from shardgit.service.store import PoolState, Store


@dataclass(frozen=True, slots=True)
class RefsThen:
    """A repository's refs at a moment, behind the log row numbered ``sequence``.

    ``undone`` holds, by name, what each ref that has moved since was then; None where there was none.
    """

    sequence: int
    undone: dict[bytes, Ref | None]

    def refs(
        self, table: RefTable, snapshot: JournalSnapshot, record: RepositoryRecord
    ) -> Iterator[Ref]:
        """Return the refs under refs/ by rising name; lazy."""
        back = sorted(
            (name, ref) for name, ref in self.undone.items() if ref is not None and name != HEAD
        )
        at = 0
        for ref in table.list(snapshot, record):
            while at < len(back) and back[at][0] < ref.name:
                yield _ref(back[at])
                at += 1
            if ref.name not in self.undone:
                yield ref
        while at < len(back):
            yield _ref(back[at])
            at += 1

    def head(
        self, table: RefTable, snapshot: JournalSnapshot, record: RepositoryRecord
    ) -> Ref | None:
        """Return HEAD."""
        return self.undone[HEAD] if HEAD in self.undone else table.get(snapshot, record, HEAD)


def _ref(one: tuple[bytes, Ref | None]) -> Ref:
    assert one[1] is not None
    return one[1]


def refs_then(
    table: RefTable, snapshot: JournalSnapshot, record: RepositoryRecord, time_ms: int | None
) -> RefsThen:
    """Return a repository's refs at a time, as of the last log row that is not later; those of now without one.

    Errors: RepositoryMissing when there was no such repository yet, LogPositionUnknown when the log no longer tells.
    """
    head = table.head(snapshot, record)
    undone: dict[bytes, Ref | None] = {}
    if time_ms is None:
        return RefsThen(head.sequence, undone)
    oldest = head.sequence + 1
    for entry in table.log(snapshot, record):
        if entry.time_ms <= time_ms:
            return RefsThen(entry.sequence, undone)
        for change in entry.changes:
            undone[change.name] = change.old
        oldest = entry.sequence
    if oldest > 1:
        raise LogPositionUnknown(
            "the ref log no longer goes back to that moment", repository=record.name
        )
    raise RepositoryMissing("repository did not exist at that moment", repository=record.name)


def check_targets(view: PoolView | None, refs: Iterable[Ref], name: str) -> None:
    """Raise DataLoss when a ref names an object that the pool no longer has."""
    waiting: list[Ref] = []

    def look() -> None:
        found = (
            view.positions([ref.target for ref in waiting if ref.target is not None])
            if view is not None
            else [-1] * len(waiting)
        )
        for ref, position in zip(waiting, found, strict=True):
            if position < 0:
                raise DataLoss(
                    "an object of that moment is gone",
                    repository=name,
                    ref=ref.name.decode("utf-8", "replace"),
                )
        waiting.clear()

    for ref in refs:
        if ref.target is not None:
            waiting.append(ref)
            if len(waiting) == 4_096:
                look()
    look()


def reached_by(store: Store, pool: PoolState, refs: Iterable[Ref]) -> bytes:
    """Return the bitset over a pool's positions of all that refs reach."""
    targets = sorted({ref.target for ref in refs if ref.target is not None})
    return store.closure_of(pool.view, [at for at in pool.view.positions(targets) if at >= 0])
