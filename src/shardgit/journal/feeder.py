"""What keeps a node's replica up to date: one process of the node loads it from etcd and applies a watch."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lmdb

from shardgit import metrics, telemetry
from shardgit.errors import DataLoss, HistoryGone, JournalCorrupt, ShardgitError, Unavailable
from shardgit.etcd.watching import Changes, WatchEnded
from shardgit.etcdpb import etcd_pb2 as pb
from shardgit.filelock import FileLock
from shardgit.journal.etcd_pages import pages
from shardgit.journal.etcd_rows import LEASED, is_whole
from shardgit.journal.interface import KEY_MAX_BYTES, end_of
from shardgit.journal.replica import ReplicaState, forget_shown, shown_by
from shardgit.journal.replica_status import NOTHING
from shardgit.journal.rows import frame_row, typed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from shardgit.etcd.client import Etcd
    from shardgit.etcd.watching import Watching
    from shardgit.journal.etcd_rows import EtcdKeys
    from shardgit.journal.replica import Replica
    from shardgit.lmdbenv import Environment

TURN_S = 0.1  # how long another process of the node may be dead before one of us feeds the replica
SILENCE_S = 1.0  # without an event until the watch is asked for a sign of life; again as long, and it is given up
PAUSE_S = 0.2
LOAD_BYTES = 32 << 20  # of one transaction while a replica is loaded
FORGET_EACH = 256
DAMAGED = b"\0" * 9
"""Stands for a row that etcd gave damaged: whoever reads it hears JournalCorrupt."""


@dataclass(slots=True)
class _Retired:
    generation: int
    oldest: int


class Feeder:
    """A thread that feeds the replica while no other process of the node does."""

    def __init__(self, etcd: Etcd, keys: EtcdKeys, replica: Replica, folder: Path) -> None:
        self._etcd = etcd
        self._keys = keys
        self._replica = replica
        self._status = replica.status
        self._lock = FileLock(folder / "feeder.lock")
        self._closed = threading.Event()
        self._retired: list[_Retired] = []
        self._forget_in = 0
        self._state = ReplicaState(0, 0, 0)
        self._watching: Watching | None = None
        self.failure: ShardgitError | None = None
        """What keeps this process from feeding the replica, while it is its turn."""
        self._thread = threading.Thread(target=self._run, name="journal-feeder", daemon=True)

    def begin(self) -> None:
        """Begin the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop; another process of the node goes on."""
        self._closed.set()
        if self._watching is not None:
            self._watching.end()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                try:
                    self._run_once()
                except (
                    Exception
                ) as error:  # this thread must not end: without it no snapshot moves on
                    self.failure = Unavailable("replica failed", cause=repr(error)[:300])
                    telemetry.log().error("replica_not_fed", exc_info=error)
                    self._closed.wait(PAUSE_S)
        finally:
            self._replica.is_fed_here = False
            self._lock.release()

    def _run_once(self) -> None:
        """Feed, if that is this process's turn; else wait for it a moment."""
        if not self._lock.try_take():
            self._closed.wait(TURN_S)
            return
        if not self._replica.is_fed_here:
            self._replica.is_fed_here = True
            self._remove_left()
        self._serve()

    def _serve(self) -> None:
        """Feed until something fails."""
        try:
            self._state = self._known() or self._load()
            while not self._closed.is_set():
                self.failure = None
                try:
                    self._follow()
                    # The members may be others now than those that were watched, or set back.
                    if not self._closed.is_set():
                        self._state = self._known() or self._load()
                except HistoryGone:
                    self._state = self._unmissed() or self._load()
        except (ShardgitError, lmdb.Error) as error:
            if self._closed.is_set():
                return
            if isinstance(error, DataLoss | lmdb.Error):
                self._status.report(self._status.generation)  # so that it is made anew
            self.failure = error if isinstance(error, ShardgitError) else _failed(error)
            telemetry.log().warning("replica_not_fed", error=str(self.failure))
            self._closed.wait(PAUSE_S)

    def _remove_left(self) -> None:
        """Remove the generations that an earlier feeder had retired, or not finished; not those that are read still."""
        current = self._status.generation
        self._retired = []
        for folder in self._status.folders():
            number = _number_of(folder)
            if number == current:
                continue
            oldest = self._read_still(number)
            if oldest is not None:
                self._retired.append(_Retired(number, oldest))
            elif self._replica.drop(number):
                shutil.rmtree(folder, ignore_errors=True)
        self._status.retire(min((one.oldest for one in self._retired), default=NOTHING))

    def _read_still(self, generation: int) -> int | None:
        """Return the oldest revision that readers of an earlier generation show, None when nobody reads it."""
        try:
            environment = self._replica.environment(generation)
            if not environment.has_readers():
                return None
            number = environment.oldest_reader()
            with typed(self._replica.path), environment.read() as transaction:
                return shown_by(transaction, number)
        except (ShardgitError, lmdb.Error):
            return None  # not finished, or damaged

    def _known(self) -> ReplicaState | None:
        """Return the state of the replica that is there, None when it is of no use."""
        generation = self._status.generation
        if not generation or self._status.damaged == generation:
            return None
        try:
            environment = self._replica.environment(generation)
            environment.reader_check()
            with typed(self._replica.path), environment.read() as transaction:
                state = ReplicaState.get(transaction)
        except DataLoss:
            return None
        head, header = self._head()
        # Another cluster, or one that was set back: revisions say nothing then.
        if header.cluster_id != state.cluster or header.revision < state.watched:
            return None
        if head < state.revision:
            return None
        if head == state.revision:  # no commit was missed, whatever others did in the meantime
            state = self._caught_up(environment, state, header)
        self._publish(generation, state)
        return state

    def _head(self) -> tuple[int, pb.ResponseHeader]:
        """Return the journal's revision by a linearizable read, and the answer's header."""
        found = self._etcd.range(pb.RangeRequest(key=self._keys.head))
        return (found.kvs[0].mod_revision if found.kvs else 0), found.header

    def _unmissed(self) -> ReplicaState | None:
        """Return from where a watch can go on whose history is gone, None when there was a commit meanwhile."""
        head, header = self._head()
        state = self._state
        if head != state.revision or header.cluster_id != state.cluster:
            return None
        environment = self._replica.environment(self._status.generation)
        return self._caught_up(environment, state, header)

    def _caught_up(
        self, environment: Environment, state: ReplicaState, header: pb.ResponseHeader
    ) -> ReplicaState:
        """Take the rows on leases over as they are now, and go on from there: no commit was missed."""
        if header.revision == state.watched:
            return state
        low = self._keys.row(LEASED)
        leased = self._pages(header.revision, low, end_of(low))
        rows = {self._keys.key(row.key): row for page in leased for row in page}
        made = ReplicaState(state.revision, header.revision, state.cluster)
        with typed(self._replica.path), environment.write() as transaction:
            with transaction.cursor() as cursor:
                found = cursor.set_range(LEASED)
                while found and (key := bytes(cursor.key())).startswith(LEASED):
                    found = cursor.next() if key in rows else cursor.delete()
            for row in rows.values():
                self._put(transaction, row, append=False)
            made.put(transaction)
        return made

    def _load(self) -> ReplicaState:
        """Make a new generation from all rows as they are at one revision."""
        generation = max([self._status.generation, *map(_number_of, self._status.folders())]) + 1
        metrics.REPLICA_LOADS.inc()
        telemetry.log().info("replica_load", generation=generation)
        try:
            head, header = self._head()
            environment = self._replica.environment(generation, create=True)
            self._fill(environment, self._pages(header.revision, self._keys.rows, self._keys.slots))
            state = ReplicaState(head, header.revision, header.cluster_id)
            with typed(self._replica.path), environment.write() as transaction:
                state.put(transaction)
        except BaseException:
            self._replica.drop(generation)
            shutil.rmtree(self._status.folder(generation), ignore_errors=True)
            raise
        before = self._status.generation
        if before:
            self._retired.append(_Retired(before, self._oldest_of(before)))
            self._status.retire(min(one.oldest for one in self._retired))
        self._publish(generation, state)
        return state

    def _oldest_of(self, generation: int) -> int:
        """Return the oldest revision that readers of a generation may show; 0 when that cannot be told."""
        try:
            return self._replica.oldest()
        except (ShardgitError, lmdb.Error):
            return 0

    def _pages(self, revision: int, low: bytes, high: bytes) -> Iterator[Sequence[pb.KeyValue]]:
        """Return the rows from ``low`` to ``high`` by rising key as they are at a revision of etcd."""
        for page in pages(self._etcd, revision, low, high):
            if self._closed.is_set():
                raise Unavailable("journal is closed")
            yield page

    def _fill(self, environment: Environment, pages: Iterator[Sequence[pb.KeyValue]]) -> None:
        page: Sequence[pb.KeyValue] | None = next(pages, None)
        while page is not None:
            size = 0
            with typed(self._replica.path), environment.write() as transaction:
                while page is not None and size < LOAD_BYTES:
                    for row in page:
                        size += self._put(transaction, row, append=True)
                    page = next(pages, None)

    def _put(self, transaction: lmdb.Transaction, row: pb.KeyValue, *, append: bool) -> int:
        key = self._keys.key(row.key)
        value = row.value
        if not self._keys.is_row(row.key) or len(key) > KEY_MAX_BYTES:
            return 0  # not of the journal's making
        if not is_whole(key, value):
            telemetry.log().error("etcd_row_damaged", key=key.hex())
            value = DAMAGED
        framed = frame_row(key, row.mod_revision, value)
        transaction.put(key, framed, append=append)
        return len(framed)

    def _follow(self) -> None:
        """Apply what a watch brings until it ends; HistoryGone when it cannot go on, JournalCorrupt for damage."""
        generation = self._status.generation
        environment = self._replica.environment(generation)
        # From what was seen already, once more: etcd before 3.4.36 and 3.5.18 forgets deletions of the very revision
        # that it compacts to, and says nothing to a watch that begins there. One that begins before hears of it.
        watching = self._etcd.watch(*self._keys.watched, self._state.watched)
        self._watching = watching
        try:
            while True:
                found = self._next(watching)
                if self._closed.is_set():  # also when the watch was begun too late to be ended
                    return
                if self._status.damaged == generation:
                    raise JournalCorrupt("replica is damaged", generation=generation)
                if isinstance(found, WatchEnded):
                    break
                if found.events:
                    self._state = self._apply(environment, found.events)
                    self._publish(generation, self._state)
                self._drop_retired()
        finally:
            watching.end()
        if found.compacted:
            raise HistoryGone("history of etcd is gone", watched=self._state.watched)
        telemetry.log().info("watch_ended", cause=found.cause, member=watching.member.target)
        watching.member.token = (
            ""  # a member that was started anew knows none, and a watch is not told so
        )
        self._etcd.turn(watching.member)
        self._closed.wait(PAUSE_S)

    def _next(self, watching: Watching) -> Changes | WatchEnded:
        """Return what comes; a watch that shows no sign of life has ended."""
        found = watching.take(SILENCE_S)
        if found is None:
            watching.ask_progress()
            found = watching.take(SILENCE_S)
        return found or WatchEnded("no sign of life")

    def _apply(self, environment: Environment, events: Sequence[pb.Event]) -> ReplicaState:
        """Apply whole revisions of etcd in one transaction."""
        state = self._state
        revision, watched = state.revision, state.watched
        self._forget_in -= 1
        oldest = environment.oldest_reader() if self._forget_in < 0 else 0
        with typed(self._replica.path), environment.write() as transaction:
            for event in events:
                row = event.kv
                if row.mod_revision <= state.watched:
                    continue
                watched = max(watched, row.mod_revision)
                is_put = event.type == pb.Event.PUT
                if row.key == self._keys.head:
                    revision = row.mod_revision if is_put else 0
                elif is_put:
                    self._put(transaction, row, append=False)
                elif self._keys.is_row(row.key):
                    transaction.delete(self._keys.key(row.key))
            if oldest:
                forget_shown(transaction, oldest)
                self._forget_in = FORGET_EACH
            state = ReplicaState(revision, watched, state.cluster)
            state.put(transaction)
        return state

    def _publish(self, generation: int, state: ReplicaState) -> None:
        self._status.publish(generation, state.revision)
        self._replica.tell()

    def _drop_retired(self) -> None:
        """Remove generations that nobody reads any more."""
        if not self._retired:
            return
        left = []
        for one in self._retired:
            if self._is_read(one.generation) or not self._replica.drop(one.generation):
                left.append(one)
            else:
                shutil.rmtree(self._status.folder(one.generation), ignore_errors=True)
        if len(left) < len(self._retired):
            self._retired = left
            self._status.retire(min((one.oldest for one in left), default=NOTHING))

    def _is_read(self, generation: int) -> bool:
        try:
            return self._replica.environment(generation).has_readers()
        except DataLoss:  # nobody can open it either
            return False


def _number_of(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def _failed(error: lmdb.Error) -> Unavailable:
    return Unavailable("replica failed", cause=str(error))
