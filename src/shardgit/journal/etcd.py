"""The journal of a cluster: etcd decides, every node reads its own replica.

See docs/formats/journal.md.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from shardgit import clock, metrics
from shardgit.errors import Internal, ShardgitError, Unavailable
from shardgit.etcd.client import Etcd
from shardgit.etcdpb import etcd_pb2 as pb
from shardgit.journal.answers import CommitsSoon, settle, settle_there
from shardgit.journal.bundle_cache import BundleCache
from shardgit.journal.committing import COMMIT_S, Committer
from shardgit.journal.etcd_commit import Commit
from shardgit.journal.etcd_rows import SPILLED_TABLES, EtcdKeys, Reference, decode_value
from shardgit.journal.feeder import Feeder
from shardgit.journal.fences import standing
from shardgit.journal.freshness import ASK_S, Freshness
from shardgit.journal.interface import check_commit, end_of
from shardgit.journal.mode import fenced
from shardgit.journal.replica import Replica
from shardgit.journal.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from shardgit.etcd.access import Access
    from shardgit.journal.bundles import Bundles
    from shardgit.journal.interface import Condition, JournalSnapshot, Operation
    from shardgit.journal.replica import ReplicaSnapshot
    from shardgit.kept import Looked

OPEN_S = 30.0  # until the replica is whole, of a journal that is opened
FRESH_S = 5.0  # that a read waits which must not be stale
STALE_S = 1.0  # and one that may


class EtcdJournal(CommitsSoon):
    """The journal of one node of a cluster; any number of its processes have it open.

    ``folder`` is the node's own, and may be lost at any time; ``prefix`` is where the journal stands in etcd. A
    commit's revision is etcd's own; it is told once this node's snapshots show it. OutcomeUnknown (Unavailable) when
    etcd did not say in time what became of it. Opening waits for a whole replica: Unavailable when none comes in time.
    """

    def __init__(
        self,
        folder: Path,
        access: Access,
        bundles: Bundles,
        *,
        prefix: bytes = b"shardgit/",
        open_s: float = OPEN_S,
    ) -> None:
        self._pid = os.getpid()
        self._path = str(folder)
        self._closed = False
        self._lock = threading.Lock()
        self.keys = EtcdKeys(prefix)
        with ExitStack() as made:
            self.etcd = Etcd(access)
            made.callback(self.etcd.close)
            self.cache = BundleCache(bundles, folder / "bundles")
            made.callback(self.cache.close)
            self._replica = Replica(folder / "replica", self.cache)
            made.callback(self._replica.close)
            self._feeder = Feeder(self.etcd, self.keys, self._replica, folder / "replica")
            self._feeder.begin()
            made.callback(self._feeder.close)
            self.await_replaced(0, timeout_s=open_s)
            self._freshness = Freshness(self._ask, self._ask_soon, self._replica, timeout_s=FRESH_S)
            made.callback(self._freshness.close)
            slots = Slots(self.etcd, self.keys)
            made.callback(slots.close)
            self._committer = Committer(self.etcd, self.keys, self._replica, slots, bundles)
            made.callback(self._committer.close)
            self._made = made.pop_all()

    def _ask(self) -> int:
        applied = self._replica.applied()  # before: it may go on while the answer is on its way
        found = self.etcd.range(pb.RangeRequest(key=self.keys.head), timeout_s=ASK_S)
        return _head_in(found, applied)

    def _ask_soon(self, answer: Callable[[int | Exception], None]) -> None:
        """Ask one member, once."""
        applied = self._replica.applied()

        def heard(found: pb.RangeResponse | ShardgitError) -> None:
            if isinstance(found, ShardgitError):
                answer(found)
                return
            try:
                answer(_head_in(found, applied))
            except Unavailable as error:
                answer(error)

        self.etcd.range_soon(pb.RangeRequest(key=self.keys.head), heard)

    @property
    def is_away(self) -> bool:
        """Whether etcd did not answer when it was asked last."""
        return self._freshness.is_away

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise Internal("a journal was used across a fork", path=self._path)
        if self._closed:
            raise Unavailable("journal is closed", path=self._path)

    def sizes(self) -> dict[str, int]:
        """See StoreJournal: those of the node's replica."""
        return self._replica.sizes()

    def waiting(self) -> int:
        """See StoreJournal."""
        return self._committer.waiting()

    def caches(self) -> dict[str, Looked]:
        """See StoreJournal."""
        return {"bundles": self.cache}

    @contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call ``listener`` behind each commit of this process, on some thread.

        It must be quick and raise nothing.
        """
        with self._lock:
            self._committer.listeners = (*self._committer.listeners, listener)
        try:
            yield
        finally:
            with self._lock:
                left = [one for one in self._committer.listeners if one is not listener]
                self._committer.listeners = tuple(left)

    @contextmanager
    def snapshot(self) -> Iterator[JournalSnapshot]:
        """See Journal. What lies in bundles is fetched when it is read."""
        with self.replica_snapshot() as opened:
            yield opened

    @contextmanager
    def replica_snapshot(self) -> Iterator[ReplicaSnapshot]:
        """Open a snapshot that also tells how rows stand in etcd."""
        self._check_open()
        with self._replica.snapshot() as opened:
            yield opened

    def generation(self) -> int:
        """Return the number of this node's replica: another each time it comes anew."""
        return self._replica.status.generation

    def await_replaced(self, generation: int, *, timeout_s: float = OPEN_S) -> None:
        """Wait until a replica that was condemned has come anew. Errors: Unavailable when none comes in time."""
        end = clock.monotonic() + timeout_s
        while self._replica.status.generation <= generation:
            if self._closed:
                raise Unavailable("journal is closed", path=self._path)
            if clock.monotonic() >= end:
                raise self._feeder.failure or Unavailable("replica did not come in time")
            clock.sleep(0.02)

    def bundles_named(self) -> set[bytes]:
        """Return the bundles that rows name, as this node's replica shows them."""
        named: set[bytes] = set()
        with self.replica_snapshot() as opened:
            for table in SPILLED_TABLES:
                for row in opened.stored(table, end_of(table)):
                    found = decode_value(row.key, row.value)
                    if isinstance(found, Reference):
                        named.add(found.bundle)
        return named

    def revision(self) -> int:
        """See Journal: the last commit that this node's replica shows."""
        self._check_open()
        return self._replica.applied()

    def oldest_snapshot(self) -> int:
        """See Journal; of the processes of this node."""
        self._check_open()
        return self._replica.oldest()

    def begin(self) -> None:
        """Begin the threads now; they are."""
        self._check_open()

    def commit_soon(
        self,
        conditions: Sequence[Condition],
        operations: Sequence[Operation],
        answer: Callable[[int | BaseException], None],
    ) -> None:
        """Commit behind the caller, who goes on: ``answer`` hears, on some thread, the revision or the error.

        It must be quick and raise nothing.
        """
        check_commit(conditions, operations)
        self._check_open()
        # Leases and turns fence by the same session.
        held, told = fenced(self, conditions, operations, answer)
        every = tuple(dict.fromkeys((*held, *standing())))
        self._committer.submit(Commit(every, operations, told, clock.monotonic() + COMMIT_S))

    def fresh_sync(self, *, stale_ok: bool = False) -> None:
        """See Journal."""
        self._check_open()
        if stale_ok and self._freshness.is_away:
            metrics.JOURNAL_STALE.inc()
            return
        future: Future[int] = Future()
        self._freshness.soon(lambda error: _settle_once(future, 0 if error is None else error))
        try:
            future.result(STALE_S if stale_ok else FRESH_S)
        except (TimeoutError, Unavailable) as cause:
            self._stale(cause, stale_ok=stale_ok)

    async def fresh(self, *, stale_ok: bool = False) -> None:
        """See Journal."""
        self._check_open()
        if stale_ok and self._freshness.is_away:
            metrics.JOURNAL_STALE.inc()
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._freshness.soon(
            lambda error: settle_there(loop, future, 0 if error is None else error)
        )
        try:
            async with asyncio.timeout(STALE_S if stale_ok else FRESH_S):
                await future
        except (TimeoutError, Unavailable) as cause:
            self._stale(cause, stale_ok=stale_ok)

    def _stale(self, cause: Exception, *, stale_ok: bool) -> None:
        if stale_ok and not self._closed:
            metrics.JOURNAL_STALE.inc()
        elif isinstance(cause, ShardgitError):
            raise cause
        else:
            raise Unavailable("journal does not answer in time") from cause

    def close(self) -> None:
        """See Journal. In a forked child it does nothing: threads and files are the parent's."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._made.close()


def _head_in(found: pb.RangeResponse, applied: int) -> int:
    """Return the journal's revision that etcd has answered; ``applied`` is what the replica had before."""
    if found.header.revision < applied:
        raise Unavailable("etcd was set back behind this node's replica")
    return found.kvs[0].mod_revision if found.kvs else 0


def _settle_once(future: Future[int], outcome: int | BaseException) -> None:
    with suppress(Exception):  # who gave up is not told
        settle(future, outcome)
