"""Deleted repositories that gc has not dropped yet, as operators see them, and bringing them back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.backup.deleted import deleted_repositories, find_deleted, undelete
from shardgit.errors import Conflict, RepositoryMissing

if TYPE_CHECKING:
    from shardgit.backup.deleted import Deleted
    from shardgit.journal.interface import JournalSnapshot
    from shardgit.refs.log import LogNote
    from shardgit.service.store import Store

ROUNDS_MAX = 16


@dataclass(frozen=True, slots=True)
class DeletedRepository:
    """A repository as it was when it was deleted."""

    id: int
    name: str
    created_ms: int
    deleted_ms: int
    forked_from: int = 0


@dataclass(frozen=True, slots=True)
class Undeleted:
    """A repository that is back, and the name that it has now."""

    repository: DeletedRepository
    name: str


def list_deleted(store: Store) -> list[DeletedRepository]:
    """Return the deleted repositories that can be brought back, the one that was deleted first first."""
    with store.journal.snapshot() as snapshot:
        found = [_seen(one) for one in deleted_repositories(snapshot)]
    return sorted(found, key=lambda one: (one.deleted_ms, one.id))


def undelete_repository(
    store: Store, name: str, *, number: int = 0, new_name: str = "", note: LogNote
) -> Undeleted:
    """Bring a deleted repository back, with all that it had: the one with an id, else the last one of a name.

    Errors: RepositoryMissing when there is none, or gc was faster; RepositoryExists when the name is another's.
    """
    for _ in range(ROUNDS_MAX):
        with store.journal.snapshot() as snapshot:
            gone = _found(snapshot, name, number)
        if gone is None:
            raise RepositoryMissing(
                "no deleted repository of that name or id is kept", repository=name, id=number
            )
        try:
            record = undelete(store, gone, new_name or gone.record.name, note)
        except Conflict:
            continue  # gc or another was at it; the next look tells
        return Undeleted(_seen(gone), record.name)
    raise Conflict("repository is being changed by many at once", repository=name)


def _found(snapshot: JournalSnapshot, name: str, number: int) -> Deleted | None:
    if not number:
        return find_deleted(snapshot, name)
    return next((one for one in deleted_repositories(snapshot) if one.record.id == number), None)


def _seen(one: Deleted) -> DeletedRepository:
    record = one.record
    return DeletedRepository(
        record.id, record.name, record.created_ms, one.deleted_ms, record.parent
    )
