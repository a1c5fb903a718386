"""The log of a repository's refs: pages, newest first; what a ref was, and making it that again."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from shardgit import faultpoints
from shardgit.errors import Conflict, DataLoss, ObjectMissing, RefMissing
from shardgit.oid import hex_of
from shardgit.refs.name import check_ref_name
from shardgit.refs.update import ANY, RefUpdate
from shardgit.service.look import Look
from shardgit.service.ref_updates import RefJudge
from shardgit.service.writable import writable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.errors import ShardgitError
    from shardgit.journal.interface import Condition, Operation
    from shardgit.oid import ObjectId
    from shardgit.refs.log import LogChange, LogEntry, LogNote
    from shardgit.refs.ref import Ref
    from shardgit.service.access import Principal
    from shardgit.service.store import Store

CHANGES_SHOWN = 100  # of an entry, where all refs are asked for
ROWS_READ = 20_000  # of the log, for one page
CERTIFICATE_SHOWN_BYTES = 64 << 10
PAGE_BYTES = 512 << 10
ROUNDS_MAX = 256  # tries against other writers; each round one of them wins


@dataclass(frozen=True, slots=True)
class LogRow:
    """An entry and some of its changes: that of one ref, or the first ones."""

    entry: LogEntry
    changes: tuple[LogChange, ...]

    @property
    def certificate(self) -> bytes:
        """The certificate of a signed push, b"" without one or when it is large."""
        if self.entry.changes.certificate_bytes > CERTIFICATE_SHOWN_BYTES:
            return b""
        return self.entry.certificate


def log_page(
    store: Store, name: str, ref: bytes | None, *, before: int | None = None, limit: int = 100
) -> tuple[list[LogRow], int]:
    """Return up to ``limit`` entries that touched ``ref`` (any without), newest first.

    Beside them the place to go on from as ``before``, 0 at the end. A page may be short, even
    empty, before that.
    """
    found: list[LogRow] = []
    read = size = 0
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
        for entry in store.refs.log(snapshot, record, before=before):
            read += 1
            row = _row(entry, ref)
            if row is not None:
                found.append(row)
                size += _size(row)
            if len(found) == limit or read == ROWS_READ or size > PAGE_BYTES:
                return found, entry.sequence if entry.sequence > 1 else 0
    return found, 0


def _row(entry: LogEntry, ref: bytes | None) -> LogRow | None:
    if ref is None:
        return LogRow(entry, tuple(islice(entry.changes, CHANGES_SHOWN)))
    change = entry.changes.of(ref)
    return None if change is None else LogRow(entry, (change,))


def _size(row: LogRow) -> int:
    entry = row.entry
    shown = min(entry.changes.certificate_bytes, CERTIFICATE_SHOWN_BYTES)
    texts = len(entry.actor) + len(entry.message) + len(entry.address)
    return 64 + texts + shown + sum(200 + len(change.name) for change in row.changes)


def log_rows(
    store: Store, name: str, ref: bytes | None, *, limit: int | None = None
) -> Iterator[LogRow]:
    """Return the entries that touched ``ref`` (any without), newest first, page by page."""
    before, left = None, limit
    while left is None or left > 0:
        rows, before = log_page(store, name, ref, before=before, limit=min(left or 1_000, 1_000))
        yield from rows
        left = None if left is None else left - len(rows)
        if not before:
            return


def ref_at(
    rows: Iterator[LogRow], name: str, ref: bytes, *, time_ms: int | None = None, back: int = 0
) -> Ref | None:
    """Return what a ref was at a time, or ``back`` moves ago; None when it did not exist.

    ``rows`` are those of the ref, newest first. RefMissing when the log does not tell: it begins
    later, or has fewer moves.
    """
    shown = ref.decode("utf-8", "replace")
    oldest: LogChange | None = None
    for number, row in enumerate(rows):
        (oldest,) = row.changes
        if time_ms is not None and row.entry.time_ms <= time_ms:
            return oldest.new
        if time_ms is None and number == back:
            return oldest.new
    if oldest is not None and oldest.old is None and time_ms is not None:
        return None  # it was made later
    raise RefMissing("ref log does not go back that far", ref=shown, repository=name)


def restoring(
    store: Store, name: str, ref: bytes, *, time_ms: int | None = None, back: int = 0
) -> RefUpdate:
    """Return the update that makes a ref again what it was at a time, or ``back`` moves ago.

    What it named need not be reachable any more, but the pool must still have it whole. Errors:
    RefMissing when the log does not tell, or when there was no such ref; ObjectMissing.
    """
    shown = ref.decode("utf-8", "replace")
    check_ref_name(ref)
    was = ref_at(log_rows(store, name, ref), name, ref, time_ms=time_ms, back=back)
    if was is None:
        raise RefMissing(
            "ref did not exist then; its log has its moves", ref=shown, repository=name
        )
    if was.target is not None:
        _whole(store, name, was.target, shown)
    return RefUpdate(ref, ANY, was.target, was.peeled, was.symbolic)


def restore_ref(
    store: Store,
    name: str,
    update: RefUpdate,
    *,
    note: LogNote,
    principal: Principal,
    override: bool = False,
) -> tuple[Ref, int]:
    """Make an update of ``restoring`` come true; returns what the ref is again and its log row.

    The repository's policy holds as for a push, unless it is overridden. Errors: Refused, also
    when another ref is in the way; Conflict.
    """
    for _ in range(ROUNDS_MAX):
        judge = RefJudge(Look(store, name), principal)
        conditions: list[Condition] = []
        operations: list[Operation] = []
        if update.new is not None:
            shown = update.name.decode("utf-8", "replace")
            conditions, operations = _whole(store, name, update.new, shown)
        with store.journal.snapshot() as snapshot:
            held = writable(snapshot, judge.look.record)
            failed: dict[bytes, ShardgitError] = {}
            if not override and not judge.policy(snapshot, [update], failed):
                raise failed[update.name]
            change = store.refs.update(snapshot, judge.look.record, [update], note)
        # commit point: before it the ref is as it was, after it as it had been.
        faultpoints.reach("restore.before_commit")
        lease = judge.look.state.pool.lease
        fences = lease.fences if lease is not None else ()
        if store.try_commit(
            [held.unchanged, *change.conditions, *conditions, *fences],
            [*change.operations, *operations],
        ):
            faultpoints.reach("restore.after_commit")
            return update.ref, change.sequence
    raise Conflict("refs change too fast", repository=name)


def _whole(
    store: Store, name: str, oid: ObjectId, ref: str
) -> tuple[list[Condition], list[Operation]]:
    """Return what a commit needs that names an object again.

    ObjectMissing unless the pool has it and all that it reaches.
    """
    with store.journal.snapshot() as snapshot:
        state = store.state(snapshot, name)
    view = store.view(state.pool)
    (at,) = view.positions([oid]) if view is not None else (-1,)
    try:
        if view is not None and at >= 0:
            reached = store.closure_of(view, [at])
            conditions, operations = store.rely(state.pool, lambda: [reached])
            return [state.unchanged, *conditions], operations
    except DataLoss as cause:
        raise ObjectMissing(
            "the store no longer has all of it", oid=hex_of(oid), ref=ref, repository=name
        ) from cause
    raise ObjectMissing(
        "the store no longer has the object", oid=hex_of(oid), ref=ref, repository=name
    )
