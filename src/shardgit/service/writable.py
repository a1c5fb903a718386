"""Whether changes are taken: the store may be read-only, and a repository.

A commit that changes a repository compares what was seen here, so that none passes once the repository was made
read-only; the store's mode is compared by the journal itself (journal/mode.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import ReadOnly, RepositoryMissing
from shardgit.journal.interface import Compare
from shardgit.journal.mode import UNSAID, check_mode
from shardgit.journal.records import RepositoryRecord, repository_key
from shardgit.service.remote_url import without_secret
from shardgit.service.settings import settings_of

if TYPE_CHECKING:
    from shardgit.journal.interface import JournalSnapshot


@dataclass(frozen=True, slots=True)
class Writable:
    """A repository that takes changes, as it is now, and the condition that it still does."""

    record: RepositoryRecord
    unchanged: Compare


def writable(
    snapshot: JournalSnapshot, record: RepositoryRecord, *, syncs: bool = False
) -> Writable:
    """Return a repository as a snapshot shows it; ``syncs``: for what brings a mirror in step.

    Errors: ReadOnly, RepositoryMissing.
    """
    check_mode(snapshot)
    row = snapshot.get(repository_key(record.id))
    if row is None:
        raise RepositoryMissing("repository does not exist", repository=record.name)
    now = RepositoryRecord.decode(row.value)
    check_record(now, syncs=syncs)
    return Writable(now, Compare(row.key, row.revision))


def check_record(record: RepositoryRecord, *, syncs: bool = False) -> None:
    """Raise ReadOnly for a repository that takes no changes."""
    settings = settings_of(record)
    if settings.mirror.url and not syncs:
        raise ReadOnly(
            "repository is read-only",
            why=f"it is a mirror of {without_secret(settings.mirror.url)}; push there",
            repository=record.name,
        )
    if settings.read_only:
        raise ReadOnly(
            "repository is read-only",
            why=settings.read_only_why or UNSAID,
            repository=record.name,
        )


def reason_of(error: ReadOnly) -> str:
    """Return what a user is told who would change what is read-only."""
    return f"{error.message}: {error.facts.get('why') or UNSAID}"
