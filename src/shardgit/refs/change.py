"""Turning changes of refs into steps of a journal commit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from shardgit.errors import LimitExceeded, RepositoryMissing
from shardgit.journal.interface import END, Compare, CompareRange, Delete, DeleteRange, Put
from shardgit.journal.records import (
    RefsHead,
    log_key,
    loose_range,
    ref_key,
    refs_head_key,
    repository_key,
)
from shardgit.refs.log import SYSTEM, LogChange, LogNote, Made, encode_entry
from shardgit.refs.page import changes_of_refs, changes_of_rows, changes_over
from shardgit.refs.ref import Ref, encode_row
from shardgit.refs.snapshot import RefSnapshot

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableSequence, Sequence

    from shardgit.blocks.interface import BlockStore
    from shardgit.journal.interface import Condition, JournalSnapshot, Operation
    from shardgit.journal.records import RepositoryRecord

# Loose rows of one commit; with more a snapshot is written. HEAD, refs head, log row and three
# conditions come on top, so 22 of the 128 steps stay for what goes into the same commit.
CHANGES_MAX = 100
LOOSE_MAX = 1_024  # loose rows of a repository before they are folded into a snapshot
HEAD = b"HEAD"


@dataclass(frozen=True, slots=True)
class RefsChange:
    """What a change of refs adds to a journal commit; the blocks that it names are put already.

    ``sequence`` is the number of its log row, that of the last one when nothing changes.
    """

    conditions: tuple[Condition, ...]
    operations: tuple[Operation, ...]
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Shared:
    """A refs head without loose rows, and the steps after which it is the repository's own."""

    head: RefsHead
    change: RefsChange


class RefsBefore(Protocol):
    """The refs that are to change."""

    def snapshot(self, head: RefsHead) -> RefSnapshot | None:
        """Return the snapshot that a head names."""

    def loose(
        self, journal: JournalSnapshot, repository: RepositoryRecord, name: bytes
    ) -> Ref | None:
        """Return a loose row's ref."""


class ChangeWriter:
    """Plans the steps of a commit: loose rows or a new snapshot, the refs head, one log row."""

    def __init__(self, blocks: BlockStore, refs: RefsBefore) -> None:
        self._blocks = blocks
        self._refs = refs

    def write(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        changes: Mapping[bytes, Ref],
        before: Mapping[bytes, Ref | None],
        note: LogNote | None,
        *,
        always: bool = False,
    ) -> RefsChange:
        """Return the steps that make ``changes``; none without any, unless the note goes in ``always``.

        Errors: RepositoryMissing, LimitExceeded for a note that is too large.
        """
        own = journal.get(repository_key(repository.id))
        if own is None:
            raise RepositoryMissing("repository does not exist", repository=repository.name)
        row = journal.get(refs_head_key(repository.id))
        head = RefsHead(None, 0) if row is None else RefsHead.decode(row.value)
        conditions: list[Condition] = [
            Compare(repository_key(repository.id), own.revision),
            Compare(refs_head_key(repository.id), row.revision if row else 0),
        ]
        if not changes and not always:
            return RefsChange(tuple(conditions), (), head.sequence)
        operations: list[Operation] = []
        if HEAD in changes:
            value = encode_row(changes[HEAD], repository.hash_kind)
            operations.append(Put(ref_key(repository.id, HEAD), value))
        rest = sorted((ref for ref in changes.values() if ref.name != HEAD), key=_name_of)
        made: Made | None = None
        if len(rest) <= CHANGES_MAX and head.loose + len(rest) <= LOOSE_MAX:
            now = self._write_loose(journal, repository, head, rest, operations)
        else:
            now = self._write_snapshot(journal, repository, head, rest, before)
            low, high = loose_range(repository.id)
            conditions.append(CompareRange(low, high, journal.revision))
            operations.append(DeleteRange(low, high))
            if now.snapshot is not None and not head.count and not head.loose:
                made = Made(now.snapshot, now.count)
        now = replace(now, sequence=head.sequence + 1)
        logged = ([changes[HEAD]] if HEAD in changes else []) + ([] if made else rest)
        entry = encode_entry(
            (LogChange(ref.name, before.get(ref.name), _standing(ref)) for ref in logged),
            note or SYSTEM,
            pool=repository.pool,
            hash_kind=repository.hash_kind,
            put=self._blocks.put_many_sync,
            made=made,
        )
        operations.append(Put(refs_head_key(repository.id), now.encode()))
        operations.append(Put(log_key(repository.id, now.sequence), entry))
        return RefsChange(tuple(conditions), tuple(operations), now.sequence)

    def _write_loose(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        head: RefsHead,
        changes: Sequence[Ref],
        operations: MutableSequence[Operation],
    ) -> RefsHead:
        snapshot = self._refs.snapshot(head)
        count, loose = head.count, head.loose
        for ref in changes:
            key = ref_key(repository.id, ref.name)
            row = self._refs.loose(journal, repository, ref.name)
            packed = snapshot.get(ref.name) if snapshot else None
            stood = row.stands if row is not None else packed is not None
            count += ref.stands - stood
            if ref.stands or packed is not None:
                operations.append(Put(key, encode_row(ref, repository.hash_kind)))
                loose += row is None
            else:
                operations.append(Delete(key))
                loose -= row is not None
        return replace(head, count=count, loose=loose)

    def _write_snapshot(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        head: RefsHead,
        changes: Sequence[Ref],
        before: Mapping[bytes, Ref | None],
    ) -> RefsHead:
        kind, start = repository.hash_kind, len(ref_key(repository.id, b""))
        rows = journal.range(*loose_range(repository.id))
        merged = changes_over(
            changes_of_rows(rows, start=start, hash_kind=kind),
            changes_of_refs(changes, kind),
            kind,
            b"",
            END,
        )
        count = head.count + sum(ref.stands - (before.get(ref.name) is not None) for ref in changes)
        snapshot = self._refs.snapshot(head) or RefSnapshot.empty(self._blocks, kind)
        made = snapshot.with_changes(merged, count=count, pool=repository.pool)
        # Durable before the commit that names them; a crash between leaves blocks that gc drops.
        self._blocks.put_many_sync(made.blocks)
        return RefsHead(made.root, count, 0, kind if made.root else None, head.sequence)

    def share(self, journal: JournalSnapshot, repository: RepositoryRecord) -> Shared:
        """Return refs without loose rows, for a fork to share, and what makes the repository's own so.

        Errors: RepositoryMissing.
        """
        own = journal.get(repository_key(repository.id))
        if own is None:
            raise RepositoryMissing("repository does not exist", repository=repository.name)
        row = journal.get(refs_head_key(repository.id))
        head = RefsHead(None, 0) if row is None else RefsHead.decode(row.value)
        conditions: list[Condition] = [
            Compare(repository_key(repository.id), own.revision),
            Compare(refs_head_key(repository.id), row.revision if row else 0),
        ]
        if not head.loose:
            return Shared(head, RefsChange(tuple(conditions), (), head.sequence))
        now = self._write_snapshot(journal, repository, head, (), {})
        low, high = loose_range(repository.id)
        conditions.append(CompareRange(low, high, journal.revision))
        operations = (DeleteRange(low, high), Put(refs_head_key(repository.id), now.encode()))
        return Shared(now, RefsChange(tuple(conditions), operations, now.sequence))


def first_steps(
    repository: RepositoryRecord, head: Ref, note: LogNote | None, made: RefsHead | None = None
) -> tuple[Operation, ...]:
    """Return the steps that give a new repository its HEAD, and the refs of a snapshot with ``made``."""
    start = replace(made or RefsHead(None, 0), sequence=1)
    entry = encode_entry(
        [LogChange(HEAD, None, head)],
        note or LogNote("", "create"),
        pool=repository.pool,
        hash_kind=repository.hash_kind,
        put=_no_blocks,
        made=Made(start.snapshot, start.count) if start.snapshot else None,
    )
    return (
        Put(refs_head_key(repository.id), start.encode()),
        Put(ref_key(repository.id, HEAD), encode_row(head, repository.hash_kind)),
        Put(log_key(repository.id, start.sequence), entry),
    )


def _no_blocks(blocks: object) -> None:
    raise LimitExceeded("note is too large for the first log row of a repository")


def _name_of(ref: Ref) -> bytes:
    return ref.name


def _standing(ref: Ref) -> Ref | None:
    return ref if ref.stands else None
