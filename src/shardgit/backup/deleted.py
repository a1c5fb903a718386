"""Deleted repositories whose rows are still in the journal, and bringing them back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit.errors import Conflict, JournalCorrupt, LimitExceeded, RepositoryExists
from shardgit.faultpoints import reach
from shardgit.journal.interface import Compare, Delete, Put, end_of
from shardgit.journal.records import (
    NameRecord,
    RefsHead,
    RepositoryRecord,
    decode_counter,
    deleted_key,
    log_key,
    name_key,
    refs_head_key,
    repository_key,
)
from shardgit.oid import RepositoryId
from shardgit.refs.log import encode_entry
from shardgit.service.names import check_repository_name
from shardgit.service.usages import recount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.journal.interface import JournalSnapshot, Operation
    from shardgit.refs.log import LogNote
    from shardgit.service.store import Store

DELETED = deleted_key(RepositoryId(0))[:1]
COUNTER_BYTES = 16


@dataclass(frozen=True, slots=True)
class Deleted:
    """A deleted repository, when that was, and the revision of its row."""

    record: RepositoryRecord
    deleted_ms: int
    revision: int

    def there_at(self, time_ms: int | None) -> bool:
        """Return whether it was there at a time; always without one."""
        return time_ms is None or self.record.created_ms <= time_ms < self.deleted_ms


def deleted_repositories(snapshot: JournalSnapshot) -> Iterator[Deleted]:
    """Return the deleted repositories, the one that was made first first; lazy."""
    for row in snapshot.range(DELETED, end_of(DELETED)):
        if len(row.value) < COUNTER_BYTES:
            raise JournalCorrupt("row of a deleted repository is cut short", key=row.key.hex())
        deleted_ms = decode_counter(row.value[:COUNTER_BYTES])
        record = RepositoryRecord.decode(row.value[COUNTER_BYTES:])
        if record.name.startswith("\0"):
            continue  # of a restore that was stopped: not whole, and gc's
        yield Deleted(record, deleted_ms, row.revision)


def find_deleted(
    snapshot: JournalSnapshot, name: str, time_ms: int | None = None
) -> Deleted | None:
    """Return the repository of that name that was deleted last, of those that were there at ``time_ms``."""
    found = [
        one
        for one in deleted_repositories(snapshot)
        if one.record.name == name and one.there_at(time_ms)
    ]
    return max(found, key=lambda one: one.deleted_ms, default=None)


def undelete(store: Store, gone: Deleted, name: str, note: LogNote) -> RepositoryRecord:
    """Give a deleted repository a name again, with all that it had. Errors: RepositoryExists, Conflict."""
    check_repository_name(name, max_bytes=store.limits.repository_name_max_bytes)
    record = replace(gone.record, name=name)
    with store.journal.snapshot() as snapshot:
        if snapshot.get(name_key(name)) is not None:
            raise RepositoryExists("repository exists already", repository=name)
        head_row = snapshot.get(refs_head_key(record.id))
        head = RefsHead(None, 0) if head_row is None else RefsHead.decode(head_row.value)
    reach("undelete.before_commit")
    # commit point: before it the repository is deleted, after it it is there, whole.
    done = store.try_commit(
        [
            Compare(deleted_key(record.id), gone.revision),
            Compare(name_key(name), 0),
            Compare(refs_head_key(record.id), head_row.revision if head_row else 0),
        ],
        [
            Delete(deleted_key(record.id)),
            Put(repository_key(record.id), record.encode()),
            Put(name_key(name), NameRecord(record.id).encode()),
            *noted(record, head, note),
        ],
    )
    if not done:
        raise Conflict("repository changed meanwhile; look again", repository=name)
    reach("undelete.after_commit")
    recount(store, record)
    return record


def noted(record: RepositoryRecord, head: RefsHead, note: LogNote) -> list[Operation]:
    """Return the steps that leave a note in a repository's log."""
    entry = encode_entry((), note, pool=record.pool, hash_kind=record.hash_kind, put=_no_blocks)
    sequence = head.sequence + 1
    return [
        Put(refs_head_key(record.id), replace(head, sequence=sequence).encode()),
        Put(log_key(record.id, sequence), entry),
    ]


def _no_blocks(blocks: object) -> None:
    raise LimitExceeded("note is too large for a log row")
