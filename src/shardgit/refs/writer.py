"""Committing changes of refs, and trying again when another writer was faster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit import faultpoints
from shardgit.errors import Conflict
from shardgit.journal.records import refs_head_key, repository_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from shardgit.journal.interface import Condition, Journal, JournalSnapshot, Operation
    from shardgit.journal.records import RepositoryRecord
    from shardgit.refs.change import RefsChange
    from shardgit.refs.log import LogNote
    from shardgit.refs.ref import Ref
    from shardgit.refs.table import RefTable
    from shardgit.refs.update import RefUpdate
    from shardgit.workers import Workers

# Each round one of the writers that wait wins, so this many side by side on one repository all win.
ROUNDS_MAX = 256


class RefWriter:
    """Makes changes of refs durable, with other conditions and operations in the same commit.

    A change that loses to another of the same repository is planned anew from a fresh look; one
    whose own old values, or whose extra conditions, do not hold is Conflict. update_sync and
    replace_all_sync run in a worker thread, the others on the event loop.
    """

    def __init__(self, table: RefTable, journal: Journal, workers: Workers) -> None:
        self._table = table
        self._journal = journal
        self._workers = workers

    def update_sync(
        self,
        repository: RepositoryRecord,
        updates: Sequence[RefUpdate],
        *,
        note: LogNote | None = None,
        conditions: Sequence[Condition] = (),
        operations: Sequence[Operation] = (),
    ) -> int:
        """Make all updates or none; returns the revision. Errors: as RefTable.update."""
        return self._run(
            repository,
            lambda snapshot: self._table.update(snapshot, repository, updates, note),
            conditions,
            operations,
        )

    async def update(
        self,
        repository: RepositoryRecord,
        updates: Sequence[RefUpdate],
        *,
        note: LogNote | None = None,
        conditions: Sequence[Condition] = (),
        operations: Sequence[Operation] = (),
    ) -> int:
        """Do what update_sync does."""
        return await self._arun(
            repository,
            lambda snapshot: self._table.update(snapshot, repository, updates, note),
            conditions,
            operations,
        )

    def replace_all_sync(
        self,
        repository: RepositoryRecord,
        refs: Iterable[Ref],
        head: Ref | None,
        *,
        note: LogNote | None = None,
        conditions: Sequence[Condition] = (),
        operations: Sequence[Operation] = (),
    ) -> int:
        """Leave the repository with exactly ``refs``; returns the revision."""
        kept = list(refs)
        return self._run(
            repository,
            lambda snapshot: self._table.replace_all(snapshot, repository, kept, head, note),
            conditions,
            operations,
        )

    async def replace_all(
        self,
        repository: RepositoryRecord,
        refs: Iterable[Ref],
        head: Ref | None,
        *,
        note: LogNote | None = None,
        conditions: Sequence[Condition] = (),
        operations: Sequence[Operation] = (),
    ) -> int:
        """Do what replace_all_sync does."""
        kept = list(refs)
        return await self._arun(
            repository,
            lambda snapshot: self._table.replace_all(snapshot, repository, kept, head, note),
            conditions,
            operations,
        )

    def _run(
        self,
        repository: RepositoryRecord,
        plan: Callable[[JournalSnapshot], RefsChange],
        conditions: Sequence[Condition],
        operations: Sequence[Operation],
    ) -> int:
        for _ in range(ROUNDS_MAX):
            change, state = self._plan(repository, plan)
            try:
                # commit point: a crash before it leaves the refs as they were and at most blocks
                # that nothing names, a crash after it all of the change.
                faultpoints.reach("refs.before_commit")
                revision = self._journal.commit_sync(
                    [*change.conditions, *conditions], [*change.operations, *operations]
                )
            except Conflict:
                if self._state(repository) == state:
                    raise  # not for another's change of these refs
            else:
                faultpoints.reach("refs.after_commit")
                return revision
        raise Conflict("refs change too fast", repository=repository.name)

    async def _arun(
        self,
        repository: RepositoryRecord,
        plan: Callable[[JournalSnapshot], RefsChange],
        conditions: Sequence[Condition],
        operations: Sequence[Operation],
    ) -> int:
        for _ in range(ROUNDS_MAX):
            change, state = await self._workers.run(self._plan, repository, plan)
            try:
                # commit point: as in _run.
                faultpoints.reach("refs.before_commit")
                revision = await self._journal.commit(
                    [*change.conditions, *conditions], [*change.operations, *operations]
                )
            except Conflict:
                if self._state(repository) == state:
                    raise
            else:
                faultpoints.reach("refs.after_commit")
                return revision
        raise Conflict("refs change too fast", repository=repository.name)

    def _plan(
        self, repository: RepositoryRecord, plan: Callable[[JournalSnapshot], RefsChange]
    ) -> tuple[RefsChange, tuple[int, int]]:
        with self._journal.snapshot() as snapshot:
            return plan(snapshot), _state_of(snapshot, repository)

    def _state(self, repository: RepositoryRecord) -> tuple[int, int]:
        with self._journal.snapshot() as snapshot:
            return _state_of(snapshot, repository)


def _state_of(snapshot: JournalSnapshot, repository: RepositoryRecord) -> tuple[int, int]:
    head = snapshot.get(refs_head_key(repository.id))
    own = snapshot.get(repository_key(repository.id))
    return head.revision if head else 0, own.revision if own else 0
