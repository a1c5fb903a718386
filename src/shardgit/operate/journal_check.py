"""Does etcd have the journal's rows whole, does this node's replica show them, are values in bundles still there?"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import DataLoss, HistoryGone
from shardgit.etcdpb import etcd_pb2 as pb
from shardgit.journal.etcd_pages import pages
from shardgit.journal.etcd_rows import LEASED, Reference, decode_value, is_whole
from shardgit.journal.interface import END

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.journal.etcd import EtcdJournal
    from shardgit.journal.replica import ReplicaSnapshot
    from shardgit.operate.operation import Control

TRIES = 3  # against a compaction of etcd meanwhile


@dataclass(frozen=True, slots=True)
class RowFault:
    """A row that is not as it must be. ``is_replicas``: only this node's copy of it, which is made anew by itself."""

    key: bytes
    what: str
    is_replicas: bool = False


@dataclass(frozen=True, slots=True)
class RowsChecked:
    """How many rows there are, and what is wrong with some. ``condemned`` is the replica's generation that goes."""

    rows: int
    faults: tuple[RowFault, ...]
    condemned: int = 0


def check_rows(journal: EtcdJournal, control: Control) -> RowsChecked:
    """Read all rows from etcd, as they were at one revision, and hold this node's replica against them.

    A replica that differs is thrown away, and has come anew on return. Errors: Unavailable, Stopped.
    """
    for number in range(TRIES):
        with suppress(*((HistoryGone,) if number < TRIES - 1 else ())):
            return _check_once(journal, control)
    raise AssertionError


def _check_once(journal: EtcdJournal, control: Control) -> RowsChecked:
    head = journal.etcd.range(pb.RangeRequest(key=journal.keys.head))
    journal.fresh_sync()
    with journal.replica_snapshot() as snapshot:
        if not snapshot.revision:
            return RowsChecked(0, ())
        is_still = head.kvs and head.kvs[0].mod_revision == snapshot.revision
        # Of a journal that rests etcd may have dropped what was when it last changed.
        at = head.header.revision if is_still else snapshot.revision
        found = _checked(journal, snapshot, at, control)
    if found.condemned:
        journal.await_replaced(found.condemned)
    return found


def _checked(
    journal: EtcdJournal, snapshot: ReplicaSnapshot, at: int, control: Control
) -> RowsChecked:
    faults: list[RowFault] = []
    rows = 0
    shown = _Shown(snapshot)
    for key, stored, revision in _of_etcd(journal, at, control):
        rows += 1
        faults += map(_only_here, shown.before(key))
        here = shown.take(key)
        if not is_whole(key, stored):
            faults.append(RowFault(key, "row in etcd is damaged"))
            continue
        if here != (stored, revision):
            faults.append(RowFault(key, "this node's replica differs from etcd", is_replicas=True))
        try:
            found = decode_value(key, stored)
            if isinstance(found, Reference):
                journal.cache.check(found, key)
        except DataLoss as error:
            faults.append(RowFault(key, str(error)))
    faults += map(_only_here, shown.before(END))
    condemned = snapshot.condemn() if any(one.is_replicas for one in faults) else 0
    return RowsChecked(rows, tuple(faults), condemned)


def _of_etcd(
    journal: EtcdJournal, revision: int, control: Control
) -> Iterator[tuple[bytes, bytes, int]]:
    """Return key, stored value and revision of each row, as etcd had them at a revision of its own."""
    for page in pages(journal.etcd, revision, journal.keys.rows, journal.keys.slots):
        for row in page:
            key = journal.keys.key(row.key)
            if journal.keys.is_row(row.key) and not key.startswith(LEASED):
                yield key, row.value, row.mod_revision
        control.pace(sum(len(row.value) for row in page))


def _only_here(key: bytes) -> RowFault:
    return RowFault(key, "this node's replica has a row that etcd has not", is_replicas=True)


class _Shown:
    """The rows of a replica by rising key, each taken once."""

    def __init__(self, snapshot: ReplicaSnapshot) -> None:
        self._rows = snapshot.stored(b"\0", END)
        self._next = self._step()

    def _step(self) -> tuple[bytes, tuple[bytes, int]] | None:
        for row in self._rows:
            if not row.key.startswith(LEASED):
                return row.key, (row.value, row.revision)
        return None

    def before(self, key: bytes) -> Iterator[bytes]:
        """Return the keys before one, which are passed over."""
        while self._next is not None and self._next[0] < key:
            yield self._next[0]
            self._next = self._step()

    def take(self, key: bytes) -> tuple[bytes, int] | None:
        """Return what stands under a key, and go on."""
        if self._next is None or self._next[0] != key:
            return None
        found, self._next = self._next[1], self._step()
        return found
