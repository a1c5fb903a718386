"""Repositories by name: make, find, list, rename, delete, measure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints
from shardgit.errors import Conflict, LimitExceeded, ReadOnly, RepositoryExists
from shardgit.graph.closure import bit
from shardgit.journal.interface import Compare, Delete, Put, end_of
from shardgit.journal.records import (
    REPOSITORY_NAMES,
    NameRecord,
    RepositoryRecord,
    deleted_key,
    encode_deleted,
    name_key,
    repository_key,
)
from shardgit.oid import HashKind
from shardgit.refs.log import LogNote
from shardgit.service.access import Action
from shardgit.service.forks import fork
from shardgit.service.look import Look
from shardgit.service.names import check_repository_name
from shardgit.service.quotas import gone, moved
from shardgit.service.usages import NOT_COUNTED, Used, stored_bytes, used
from shardgit.service.writable import check_record, reason_of, writable

if TYPE_CHECKING:
    from shardgit.journal.interface import JournalSnapshot
    from shardgit.service.access import Rights
    from shardgit.service.store import Store

PAGE = 1_000
PASSED_OVER_MAX = 50_000  # names that begin as a glob does and do not match, of one page


@dataclass(frozen=True, slots=True)
class RepositoryInfo:
    """A repository as users see it. ``head`` is what HEAD points to, an id in hex when it is detached."""

    id: int
    name: str
    hash_kind: HashKind
    created_ms: int
    head: str
    forked_from: int = 0  # the id of the repository that it was forked from


@dataclass(frozen=True, slots=True)
class RepositoryStats:
    """Counts and sizes of a repository's pool."""

    objects: int
    reachable_objects: int
    stored_bytes: int
    segments: int
    runs: int
    refs: int
    generation: int
    shallow_commits: int = 0  # at which its history ends, of those that refs reach
    used: Used = NOT_COUNTED  # what counts for quotas
    read_only: str = ""  # why it takes no changes, "" when it does


class Repositories:
    """The repositories of a store. Methods run in the calling thread."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def create(
        self, name: str, hash_kind: HashKind = HashKind.SHA1, *, note: LogNote | None = None
    ) -> RepositoryInfo:
        """Make an empty repository. Errors: InvalidRepositoryName, RepositoryExists."""
        self.store.create_repository(name, hash_kind, note=note)
        return self.get(name)

    def get(self, name: str) -> RepositoryInfo:
        """Return a repository; RepositoryMissing without."""
        with self.store.journal.snapshot() as snapshot:
            return self._info(snapshot, self.store.repository(snapshot, name))

    def page(
        self, rights: Rights, *, prefix: str, after: str, limit: int
    ) -> tuple[list[RepositoryInfo], str]:
        """Return repositories as ``list`` does, those alone that may be read, and behind which of them to go on.

        "" when that were all. Only names are looked at that begin as a glob does. Errors: LimitExceeded when so many of
        these do not match that a page would take seconds; a longer ``prefix`` helps. No page ends behind one of
        them: its token would tell the name.
        """
        found: list[RepositoryInfo] = []
        passed_over = 0
        with self.store.journal.snapshot() as snapshot:
            for start in rights.beginnings(Action.READ):
                if not (start.startswith(prefix) or prefix.startswith(start)):
                    continue
                low = max(
                    name_key(start), name_key(prefix), name_key(after) + b"\0" if after else b""
                )
                high = min(end_of(name_key(start)), end_of(name_key(prefix)))
                for row in snapshot.range(low, high) if low < high else ():
                    name = row.key.removeprefix(REPOSITORY_NAMES).decode()
                    if rights.allow(Action.READ, name):
                        record = self.store.repository(snapshot, name)
                        found.append(self._info(snapshot, record))
                        if len(found) == limit:
                            return found, name
                        continue
                    passed_over += 1
                    if passed_over > PASSED_OVER_MAX:
                        raise LimitExceeded(
                            "too many other repositories lie between; say a prefix",
                            limit=PASSED_OVER_MAX,
                        )
        return found, ""

    def list(self, *, prefix: str = "", after: str = "", limit: int = PAGE) -> list[RepositoryInfo]:
        """Return up to ``limit`` repositories by rising name, from the one behind ``after``."""
        start = max(name_key(prefix), name_key(after) + b"\0" if after else b"")
        with self.store.journal.snapshot() as snapshot:
            rows = snapshot.range(start, end_of(name_key(prefix)), limit=limit)
            names = [row.key.removeprefix(REPOSITORY_NAMES).decode() for row in rows]
            return [self._info(snapshot, self.store.repository(snapshot, name)) for name in names]

    def _info(self, snapshot: JournalSnapshot, record: RepositoryRecord) -> RepositoryInfo:
        head = self.store.refs.get(snapshot, record, b"HEAD")
        text = ""
        if head is not None:
            text = (
                head.symbolic.decode("utf-8", "replace")
                if head.symbolic
                else head.target.hex()
                if head.target
                else ""
            )
        return RepositoryInfo(
            record.id, record.name, record.hash_kind, record.created_ms, text, record.parent
        )

    def delete(self, name: str, *, note: LogNote | None = None) -> None:
        """Take a repository's name away; its refs and objects stay for gc's grace period. Errors: ReadOnly."""
        with self.store.journal.snapshot() as snapshot:
            held = writable(snapshot, self.store.repository(snapshot, name))
            record = held.record
            row = snapshot.get(name_key(name))
            change = self.store.refs.remark(snapshot, record, note or LogNote("", "delete"))
            counts = gone(snapshot, record)
        # commit point: before it the repository is there, after it the name is free.
        faultpoints.reach("repository.before_delete")
        done = self.store.try_commit(
            [
                Compare(name_key(name), row.revision if row else 0),
                held.unchanged,
                *change.conditions,
                *counts[0],
            ],
            [
                *change.operations,
                *counts[1],
                Delete(name_key(name)),
                Delete(repository_key(record.id)),
                Put(deleted_key(record.id), encode_deleted(clock.now_ms(), record)),
            ],
        )
        faultpoints.reach("repository.after_delete")
        if not done:
            raise Conflict("repository changed meanwhile; look again", repository=name)

    def rename(self, name: str, new_name: str, *, note: LogNote | None = None) -> RepositoryInfo:
        """Give a repository another name.

        Errors: RepositoryMissing, RepositoryExists, InvalidRepositoryName, QuotaExceeded, ReadOnly.
        """
        check_repository_name(new_name, max_bytes=self.store.limits.repository_name_max_bytes)
        with self.store.journal.snapshot() as snapshot:
            held = writable(snapshot, self.store.repository(snapshot, name))
            record = held.record
            if snapshot.get(name_key(new_name)) is not None:
                raise RepositoryExists("repository exists already", repository=new_name)
            row = snapshot.get(name_key(name))
            said = note or LogNote("", f"rename from {name} to {new_name}")
            change = self.store.refs.remark(snapshot, record, said)
            after = replace(record, name=new_name)
            owned = moved(self.store, snapshot, record, after)
        # commit point: before it the old name stands, after it the new one.
        faultpoints.reach("repository.before_rename")
        done = self.store.try_commit(
            [
                Compare(name_key(new_name), 0),
                Compare(name_key(name), row.revision if row else 0),
                held.unchanged,
                *change.conditions,
                *owned[0],
            ],
            [
                *change.operations,
                *owned[1],
                Delete(name_key(name)),
                Put(name_key(new_name), NameRecord(record.id).encode()),
                Put(repository_key(record.id), after.encode()),
            ],
        )
        faultpoints.reach("repository.after_rename")
        if not done:
            raise Conflict("repository changed meanwhile; look again", repository=name)
        return self.get(new_name)

    def fork(self, source: str, target: str, *, note: LogNote | None = None) -> RepositoryInfo:
        """Make a repository with the refs of another; see service.forks."""
        fork(self.store, source, target, note)
        return self.get(target)

    def stats(self, name: str) -> RepositoryStats:
        """Count a repository's objects, blocks and refs."""
        look = Look(self.store, name)
        with self.store.journal.snapshot() as snapshot:
            refs = self.store.refs.head(snapshot, look.record).count
        takes, why = used(self.store, name), _why(look.record)
        if look.view is None:
            return RepositoryStats(0, 0, 0, 0, 0, refs, 0, 0, takes, why)
        view = look.view
        return RepositoryStats(
            objects=look.view.objects,
            reachable_objects=int.from_bytes(look.reachable, "little").bit_count(),
            stored_bytes=stored_bytes(view),
            segments=len(view.segments),
            runs=len(view.runs),
            refs=refs,
            generation=view.manifest.generation,
            shallow_commits=sum(bit(look.reachable, at) for at in view.cut),
            used=takes,
            read_only=why,
        )


def _why(record: RepositoryRecord) -> str:
    """Return why a repository takes no changes, "" when it does."""
    try:
        check_record(record)
    except ReadOnly as error:
        return reason_of(error)
    return ""
