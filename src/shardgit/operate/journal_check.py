"""Does etcd have the journal's rows whole, does this node's replica show them, are values in bundles still there?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import DataLoss, HistoryGone, JournalCorrupt
from shardgit.etcdpb import etcd_pb2 as pb
from shardgit.journal.etcd_pages import pages
from shardgit.journal.etcd_rows import LEASED, Reference, decode_value, is_whole
from shardgit.journal.interface import END

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.journal.etcd import EtcdJournal
    from shardgit.journal.replica import ReplicaSnapshot
    from shardgit.operate.operation import Control

TRIES = 3  # against a compaction of etcd meanwhile, or a replica that comes anew
RENEWED_S = 600.0  # until a replica of very many rows is there again
BUNDLES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class RowFault:
    """A row that is not as it must be."""

    key: bytes
    what: str


@dataclass(frozen=True, slots=True)
class RowsChecked:
    """How many rows there are, and what is wrong with some.

    ``spilled`` are those whose values lie in bundles. ``renewed``: this node's replica was not what etcd has, and has
    come anew.
    """

    rows: int
    faults: tuple[RowFault, ...]
    spilled: tuple[tuple[bytes, Reference], ...]
    renewed: bool = False


def check_rows(journal: EtcdJournal) -> RowsChecked:
    """Read all rows from etcd, as they were at one revision, and hold this node's replica against them.

    Values in bundles are not looked at. Errors: Unavailable.
    """
    renewed = False
    for _ in range(TRIES):
        head = journal.etcd.range(pb.RangeRequest(key=journal.keys.head))
        journal.fresh_sync()
        generation = journal.generation()
        try:
            with journal.replica_snapshot() as snapshot:
                checked, is_same = _checked(journal, snapshot, head)
                if not is_same:
                    snapshot.condemn()
        except HistoryGone:
            continue
        except JournalCorrupt:  # it has told of itself, and does not even open
            is_same, checked = False, None
        if not is_same:
            renewed = True
            journal.await_replaced(generation, timeout_s=RENEWED_S)
        if checked is not None:
            return RowsChecked(checked.rows, checked.faults, checked.spilled, renewed)
    raise HistoryGone("etcd drops its history faster than it can be read")


def _checked(
    journal: EtcdJournal, snapshot: ReplicaSnapshot, head: pb.RangeResponse
) -> tuple[RowsChecked, bool]:
    """Return what etcd's rows are like, and whether the replica shows the same."""
    if not snapshot.revision:
        return RowsChecked(0, (), ()), True
    is_still = head.kvs and head.kvs[0].mod_revision == snapshot.revision
    # Of a journal that rests etcd may have dropped what was when it last changed.
    at = head.header.revision if is_still else snapshot.revision
    faults: list[RowFault] = []
    spilled: list[tuple[bytes, Reference]] = []
    rows, is_same = 0, True
    shown = _Shown(snapshot)
    for key, stored, revision in _of_etcd(journal, at):
        rows += 1
        is_same = shown.is_next(key, stored, revision) and is_same
        if not is_whole(key, stored):
            faults.append(RowFault(key, "row in etcd is damaged"))
            continue
        try:
            found = decode_value(key, stored)
        except DataLoss as error:
            faults.append(RowFault(key, str(error)))
        else:
            if isinstance(found, Reference):
                spilled.append((key, found))
    return RowsChecked(rows, tuple(faults), tuple(spilled)), is_same and shown.is_at_end()


def _of_etcd(journal: EtcdJournal, revision: int) -> Iterator[tuple[bytes, bytes, int]]:
    """Return key, stored value and revision of each row, as etcd had them at a revision of its own."""
    for page in pages(journal.etcd, revision, journal.keys.rows, journal.keys.slots):
        for row in page:
            key = journal.keys.key(row.key)
            if journal.keys.is_row(row.key) and not key.startswith(LEASED):
                yield key, row.value, row.mod_revision


class _Shown:
    """The rows of a replica by rising key, as far as it can be read."""

    def __init__(self, snapshot: ReplicaSnapshot) -> None:
        self._rows = snapshot.stored(b"\0", END)
        self._fits = True

    def _step(self) -> tuple[bytes, bytes, int] | None:
        try:
            for row in self._rows:
                if not row.key.startswith(LEASED):
                    return row.key, row.value, row.revision
        except DataLoss:
            self._fits = False
        return None

    def is_next(self, key: bytes, stored: bytes, revision: int) -> bool:
        """Say whether the next row is this one; one that etcd gave damaged is marked so."""
        if not self._fits:
            return False
        found = self._step()
        if found is None or found[0] != key:
            self._fits = False  # from here on nothing fits
            return False
        return found[1:] == (stored, revision) or not is_whole(key, stored)

    def is_at_end(self) -> bool:
        """Say whether that was all."""
        return self._fits and self._step() is None and self._fits


def check_bundles(
    journal: EtcdJournal,
    spilled: tuple[tuple[bytes, Reference], ...],
    control: Control,
    faults: list[RowFault],
) -> int:
    """Read values where bundles are kept, and add what is wrong to ``faults``; returns how many bytes were read.

    A row that has changed meanwhile is no fault. Errors: Unavailable, Stopped; ``faults`` has what was found so far.
    """
    size = 0

    def check(one: tuple[bytes, Reference]) -> str:
        try:
            journal.cache.check(one[1], one[0])
        except JournalCorrupt as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(BUNDLES_AT_ONCE, thread_name_prefix="check-bundles") as readers:
        for at in range(0, len(spilled), BUNDLES_AT_ONCE):
            some = spilled[at : at + BUNDLES_AT_ONCE]
            for (key, reference), what in zip(some, readers.map(check, some), strict=True):
                if not what:
                    size += reference.length
                elif _is_still(journal, key, reference):
                    faults.append(RowFault(key, what))
            control.pace(sum(reference.length for _, reference in some))
    return size


def _is_still(journal: EtcdJournal, key: bytes, reference: Reference) -> bool:
    journal.fresh_sync()
    try:
        with journal.replica_snapshot() as snapshot:
            for row in snapshot.stored(key, key + b"\0"):
                return decode_value(key, row.value) == reference
    except DataLoss:
        return True  # for all that can be told
    return False
