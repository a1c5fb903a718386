"""Rows whose time is over: deleted repositories, old ref logs, uploads, LFS objects that nobody sees, empty pools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints
from shardgit.journal.graft_records import grafts_key
from shardgit.journal.interface import Compare, Delete, DeleteRange, end_of
from shardgit.journal.lfs_records import (
    LFS_SOURCES,
    LfsRecord,
    decode_sources,
    lfs_object_key,
    lfs_owned_key,
    lfs_sources_key,
)
from shardgit.journal.records import (
    RefsHead,
    RepositoryRecord,
    decode_deleted,
    log_key,
    log_range,
    pool_key,
    ref_key,
    refs_head_key,
    repository_key,
)
from shardgit.journal.uploads import UploadRecord, uploads_head_key, uploads_range
from shardgit.oid import PoolId, RepositoryId
from shardgit.pool.condemned import condemned_key
from shardgit.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.journal.interface import JournalSnapshot, Operation, Row
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

LOG_KEPT_MIN = 100  # newest rows of a log that stay, however old: imports look for the last change
ROWS_BATCH = 10_000  # of one range that goes in one commit: 20 ms of the journal's writer
KEYS_BATCH = 100


@dataclass(frozen=True, slots=True)
class Trimmed:
    """How many rows went."""

    repositories: int = 0
    log_rows: int = 0
    uploads: int = 0
    lfs_objects: int = 0
    pools: int = 0


def trim(
    store: Store,
    *,
    grace_ms: int,
    log_retention_ms: int,
    control: Control,
    pool: PoolId | None = None,
    dry_run: bool = False,
) -> Trimmed:
    """Delete the rows whose time is over, those of one pool's repositories or all.

    Killed at any point, it goes on where it was when it is begun again.
    """
    job = _Trim(store, clock.now_ms(), control, pool, dry_run=dry_run)
    return Trimmed(
        repositories=job.deleted_repositories(grace_ms),
        log_rows=job.logs(max(log_retention_ms, grace_ms)),
        uploads=job.uploads(int(store.limits.upload_grace_s * 1_000)),
        lfs_objects=job.lfs(grace_ms),
        pools=job.pools(),
    )


class _Trim:
    """One pass. Each step takes a snapshot of its own, and compares what it deletes by."""

    def __init__(
        self,
        store: Store,
        now_ms: int,
        control: Control,
        pool: PoolId | None,
        *,
        dry_run: bool,
    ) -> None:
        self.store = store
        self.now_ms = now_ms
        self.control = control
        self.pool = pool
        self.dry_run = dry_run

    def _commit(self, conditions: list[Compare], operations: list[Operation]) -> bool:
        self.control.pace(0)
        faultpoints.reach("gc.before_rows")
        # commit point: each commit deletes what nobody can ask for any more.
        done = self.store.try_commit(conditions, operations)
        faultpoints.reach("gc.after_rows")
        return done

    # ---- deleted repositories ----

    def deleted_repositories(self, grace_ms: int) -> int:
        """Drop the repositories that were deleted longer ago than the grace period."""
        with self.store.journal.snapshot() as snapshot:
            rows = list(snapshot.range(b"D", b"E"))
            sources = _sources(snapshot)
        gone = 0
        for row in rows:
            deleted_ms, value = decode_deleted(row.value)
            mine = self.pool in (None, RepositoryRecord.decode(value).pool)
            if mine and deleted_ms <= self.now_ms - grace_ms:
                number = RepositoryId(int.from_bytes(row.key[1:], "big"))
                gone += self.dry_run or self._drop(number, row, keep_lfs=number in sources)
        if not self.dry_run:
            self._leftovers(sources)
        return gone

    def _drop(self, number: RepositoryId, row: Row, *, keep_lfs: bool) -> bool:
        """Drop one; False when it was brought back meanwhile."""
        self._shorten(number, row)
        prefixes = [ref_key(number, b""), uploads_head_key(number), b"E" + row.key[1:]]
        prefixes += [b"W" + row.key[1:]]
        if not keep_lfs:
            prefixes.append(lfs_owned_key(number))
        return self._commit(
            [Compare(row.key, row.revision)],
            [
                Delete(row.key),
                Delete(refs_head_key(number)),
                Delete(lfs_sources_key(number)),
                Delete(grafts_key(number)),
                DeleteRange(*log_range(number)),
                *(DeleteRange(prefix, end_of(prefix)) for prefix in prefixes),
            ],
        )

    def _shorten(self, number: RepositoryId, row: Row) -> None:
        """Delete a long log in steps: nobody waits for the journal's writer while a million rows go."""
        while True:
            with self.store.journal.snapshot() as snapshot:
                sequences = _ends(snapshot, number)
            if sequences is None or sequences[1] - sequences[0] <= ROWS_BATCH:
                return
            first = sequences[0]
            if not self._commit(
                [Compare(row.key, row.revision)],
                [DeleteRange(log_key(number, first), log_key(number, first + ROWS_BATCH))],
            ):
                return

    def _leftovers(self, sources: set[RepositoryId]) -> None:
        """Delete rows of repositories that are no more: LFS rows that forks needed, and what hooks were told late."""
        for table in (b"Fr", b"E"):
            with self.store.journal.snapshot() as snapshot:
                dead = [
                    number
                    for number in _numbers(snapshot, table)
                    if number not in sources and not _is_there(snapshot, number)
                ]
            for number in dead:
                low = table + number.to_bytes(8, "big")
                self._commit([], [DeleteRange(low, end_of(low))])

    # ---- logs ----

    def logs(self, retention_ms: int) -> int:
        """Delete log rows older than the retention, from the front, all but the newest few."""
        with self.store.journal.snapshot() as snapshot:
            numbers = [one.id for one in _records(snapshot) if self.pool in (None, one.pool)]
        return sum(self._log(number, retention_ms) for number in numbers)

    def _log(self, number: RepositoryId, retention_ms: int) -> int:
        gone = 0
        while True:
            with self.store.journal.snapshot() as snapshot:
                ends = _ends(snapshot, number)
                if ends is None:
                    return gone
                first, last = ends
                upto = first
                for row in snapshot.range(
                    *log_range(number),
                    limit=min(ROWS_BATCH, max(last - LOG_KEPT_MIN - first + 1, 0)),
                ):
                    if self.store.refs.entry(row).time_ms > self.now_ms - retention_ms:
                        break
                    upto += 1
            if upto == first:
                return gone
            gone += upto - first
            if self.dry_run:
                return gone
            self._commit([], [DeleteRange(log_key(number, first), log_key(number, upto))])

    # ---- uploads ----

    def uploads(self, grace_ms: int) -> int:
        """Delete the uploads that no longer count."""
        with self.store.journal.snapshot() as snapshot:
            mine = {one.id for one in _records(snapshot) if self.pool in (None, one.pool)}
            numbers = [number for number in _numbers(snapshot, b"U") if number in mine]
        gone = 0
        for number in numbers:
            with self.store.journal.snapshot() as snapshot:
                keys = [
                    row.key
                    for row in snapshot.range(*uploads_range(number))
                    if UploadRecord.decode(row.value).time_ms < self.now_ms - grace_ms
                ]
            gone += len(keys)
            for at in range(0, 0 if self.dry_run else len(keys), KEYS_BATCH):
                self._commit([], [Delete(key) for key in keys[at : at + KEYS_BATCH]])
        return gone

    # ---- LFS objects ----

    def lfs(self, grace_ms: int) -> int:
        """Delete the LFS objects that no repository of their pool sees."""
        with self.store.journal.snapshot() as snapshot:
            pools = sorted({row.key[2:18] for row in snapshot.range(b"Fo", b"Fp")})
        pools = [raw for raw in pools if self.pool in (None, PoolId(raw))]
        gone = 0
        for raw in pools:
            pool = PoolId(raw)
            with self.store.journal.snapshot() as snapshot:
                seen = _lfs_seen(snapshot, pool)
                low = lfs_object_key(pool, b"")
                dead = [
                    row
                    for row in snapshot.range(low, end_of(low))
                    if row.key[18:] not in seen
                    and LfsRecord.decode(row.value).created_ms <= self.now_ms - grace_ms
                ]
            for row in dead:
                # Whoever begins to see it writes the row anew in the same commit.
                gone += self.dry_run or self._commit(
                    [Compare(row.key, row.revision)], [Delete(row.key)]
                )
        return gone

    # ---- pools ----

    def pools(self) -> int:
        """Delete pools without any repository: nobody can ever name one of theirs again."""
        with self.store.journal.snapshot() as snapshot:
            used = {record.pool for record in _records(snapshot)}
            rows = [
                row
                for row in snapshot.range(b"P", b"Q")
                if PoolId(row.key[1:]) not in used and self.pool in (None, PoolId(row.key[1:]))
            ]
        gone = 0
        for number, row in enumerate(rows):
            self.control.report(Progress("dropping pools", number, len(rows), "objects"))
            pool = PoolId(row.key[1:])
            assert row.key == pool_key(pool)
            recents, lfs = b"S" + pool, lfs_object_key(pool, b"")
            gone += self.dry_run or self._commit(
                [Compare(row.key, row.revision)],
                [
                    Delete(row.key),
                    Delete(condemned_key(pool)),
                    DeleteRange(recents, end_of(recents)),
                    DeleteRange(lfs, end_of(lfs)),
                ],
            )
        return gone


def _records(snapshot: JournalSnapshot) -> Iterator[RepositoryRecord]:
    for row in snapshot.range(b"I", b"J"):
        yield RepositoryRecord.decode(row.value)
    for row in snapshot.range(b"D", b"E"):
        yield RepositoryRecord.decode(decode_deleted(row.value)[1])


def _is_there(snapshot: JournalSnapshot, number: RepositoryId) -> bool:
    return (
        snapshot.get(repository_key(number)) is not None
        or snapshot.get(b"D" + number.to_bytes(8, "big")) is not None
    )


def _numbers(snapshot: JournalSnapshot, table: bytes) -> Iterator[RepositoryId]:
    """Return the repositories that have rows under a prefix, without looking at all of them."""
    low, end = table, end_of(table)
    while (row := next(snapshot.range(low, end, limit=1), None)) is not None:
        number = RepositoryId(int.from_bytes(row.key[len(table) : len(table) + 8], "big"))
        yield number
        low = end_of(table + number.to_bytes(8, "big"))


def _ends(snapshot: JournalSnapshot, number: RepositoryId) -> tuple[int, int] | None:
    """Return the first and the last sequence of a log, None without rows."""
    low, high = log_range(number)
    row = next(snapshot.range(low, high, limit=1), None)
    head = snapshot.get(refs_head_key(number))
    if row is None or head is None:
        return None
    return int.from_bytes(row.key[-8:], "big"), RefsHead.decode(head.value).sequence


def _sources(snapshot: JournalSnapshot) -> set[RepositoryId]:
    """Return the repositories whose LFS objects forks see."""
    found: set[RepositoryId] = set()
    for row in snapshot.range(LFS_SOURCES, end_of(LFS_SOURCES)):
        found.update(source.repository for source in decode_sources(row.value))
    return found


def _lfs_seen(snapshot: JournalSnapshot, pool: PoolId) -> set[bytes]:
    """Return the LFS objects that some repository of a pool sees."""
    limits: dict[RepositoryId, int] = {}  # up to which revision a repository's rows count
    for record in _records(snapshot):
        if record.pool == pool:
            limits[record.id] = 1 << 63
            row = snapshot.get(lfs_sources_key(record.id))
            for source in decode_sources(row.value) if row else ():
                limits[source.repository] = max(limits.get(source.repository, 0), source.revision)
    seen: set[bytes] = set()
    for number, most in limits.items():
        low = lfs_owned_key(number)
        seen.update(
            row.key[len(low) :] for row in snapshot.range(low, end_of(low)) if row.revision <= most
        )
    return seen
