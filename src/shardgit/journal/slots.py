"""Slots: one key in etcd for each commit under way, which tells afterwards what became of it.

A commit compares its slot's revision and puts its request id there. When no answer comes, a transaction that compares
the same revision and puts a cancel mark decides: if it wins, the commit can never happen any more; if it loses, the
slot says whether the commit did, and when.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import clock, telemetry
from shardgit.errors import ShardgitError
from shardgit.etcdpb import etcd_pb2 as pb

if TYPE_CHECKING:
    from shardgit.etcd.client import Etcd
    from shardgit.journal.etcd_rows import EtcdKeys

SLOTS = 64  # commits of one process that may be under way in etcd at once
LEASE_S = 60  # how long the slots of a process that died stay
MAKE_S = 1.0  # of each of the two requests that make some, until another member is asked
CANCELLED = b"x"


@dataclass(slots=True)
class Slot:
    """A key that is ours alone, its revision, and the lease that it hangs on."""

    key: bytes
    revision: int
    lease: int

    def compare(self) -> pb.Compare:
        """Return the condition that nobody has used the slot since."""
        return pb.Compare(target=pb.Compare.MOD, key=self.key, mod_revision=self.revision)

    def put(self, value: bytes) -> pb.RequestOp:
        """Return the operation that uses it."""
        return pb.RequestOp(request_put=pb.PutRequest(key=self.key, value=value, lease=self.lease))

    def get(self) -> pb.RequestOp:
        """Return the operation that looks at it."""
        return pb.RequestOp(request_range=pb.RangeRequest(key=self.key))


class Slots:
    """The slots of this process, made when the first is taken, and again when their lease has ended."""

    def __init__(self, etcd: Etcd, keys: EtcdKeys, *, count: int = SLOTS) -> None:
        self._etcd = etcd
        self._prefix = keys.slots
        self._count = count
        self._free: list[Slot] = []
        self._lease = 0
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="journal-lease", daemon=True)
        self._keeper.start()

    def take(self, timeout_s: float) -> Slot | None:
        """Take a slot, None when none comes free in time; one thread may. Errors of etcd, when it must make some."""
        end = clock.monotonic() + timeout_s
        while True:
            with self._changed:
                if self._free:
                    return self._free.pop()
                left = end - clock.monotonic()
                if left <= 0:
                    return None
                if self._lease:
                    self._changed.wait(left)
                    continue
            self._make(left)  # without the lock: answers that give slots back come meanwhile

    def give(self, slot: Slot) -> None:
        """Give a slot back whose revision is known."""
        with self._changed:
            if slot.lease == self._lease:
                self._free.append(slot)
            self._changed.notify()

    def drop(self, slot: Slot) -> None:
        """Give a slot up that is no longer there: all of its lease are gone."""
        with self._changed:
            self._lost(slot.lease)
            self._changed.notify_all()

    def _lost(self, lease: int) -> None:
        if lease == self._lease:
            self._lease = 0
            self._free.clear()

    def _make(self, timeout_s: float) -> None:
        """Make slots under a new lease and a new name; what an attempt without an answer made, the lease removes."""
        timeout_s = min(timeout_s, MAKE_S)
        lease = self._etcd.lease_grant(LEASE_S, timeout_s=timeout_s)
        prefix = self._prefix + os.urandom(16)
        slots = [
            Slot(prefix + number.to_bytes(2, "big"), 0, lease) for number in range(self._count)
        ]
        made = self._etcd.txn(
            pb.TxnRequest(success=[slot.put(b"") for slot in slots]), timeout_s=timeout_s
        )
        for slot in slots:
            slot.revision = made.header.revision
        with self._changed:
            self._lease = lease
            self._free = slots

    def _keep(self) -> None:
        while not self._closed.wait(LEASE_S / 6):
            lease = self._lease
            if not lease:
                continue
            try:
                left = self._etcd.lease_keep_alive(lease)
            except ShardgitError:
                continue  # it has five more tries
            except Exception as error:  # this thread must not end: with it the slots would
                telemetry.log().error("slots_not_kept", exc_info=error)
                continue
            if not left:
                with self._changed:
                    self._lost(lease)
                    self._changed.notify_all()

    def close(self) -> None:
        """Let go of the slots, in etcd too when it answers."""
        self._closed.set()
        self._keeper.join()
        with self._changed:
            lease, self._lease = self._lease, 0
            self._free.clear()
        if lease:
            try:
                self._etcd.lease_revoke(lease, timeout_s=1.0)
            except ShardgitError:
                return  # it ends by itself


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a commit without an answer: the revision that it has, or None when it never happens."""

    revision: int | None


def resolve(etcd: Etcd, slot: Slot, request_id: bytes, *, timeout_s: float) -> Fate | None:
    """Decide a commit's fate; None when its slot is gone, and with it what would tell.

    Safe to call again after any error: Unavailable, StorageFull and others as of Etcd.txn.
    """
    mark = CANCELLED + request_id
    request = pb.TxnRequest(
        compare=[slot.compare()], success=[slot.put(mark)], failure=[slot.get()]
    )
    found = etcd.txn(request, timeout_s=timeout_s)
    if found.succeeded:
        slot.revision = found.header.revision
        return Fate(None)
    return _fate_in(found.responses[0].response_range, slot, request_id)


def look_up(etcd: Etcd, slot: Slot, request_id: bytes, *, timeout_s: float) -> Fate | None:
    """Tell the fate of a commit that etcd has answered, one way or the other, so that it cannot happen any more."""
    found = etcd.range(pb.RangeRequest(key=slot.key), timeout_s=timeout_s)
    return _fate_in(found, slot, request_id)


def _fate_in(found: pb.RangeResponse, slot: Slot, request_id: bytes) -> Fate | None:
    if not found.kvs:
        return None
    row = found.kvs[0]
    was_put = row.mod_revision != slot.revision
    slot.revision = row.mod_revision
    return Fate(row.mod_revision if was_put and row.value == request_id else None)
