"""What carries commits to etcd: one transaction each, its outcome looked up when no answer comes."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints, metrics, telemetry
from shardgit.errors import Conflict, OutcomeUnknown, ShardgitError, StorageFull, Unavailable
from shardgit.journal.answers import copy_of
from shardgit.journal.etcd_commit import Answer, answer_of, question_of, transaction_of
from shardgit.journal.slots import Fate, look_up, resolve
from shardgit.journal.spilling import Spiller

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.etcd.client import Etcd
    from shardgit.etcdpb import etcd_pb2 as pb
    from shardgit.journal.bundles import Bundles
    from shardgit.journal.etcd_commit import Commit
    from shardgit.journal.etcd_rows import EtcdKeys
    from shardgit.journal.replica import Replica
    from shardgit.journal.slots import Slot, Slots

COMMIT_S = 4.5  # until a commit that no member takes is given up; failovers took 2.3 s at the most
ATTEMPT_S = 2.0  # without an answer, until its fate is looked up; elections take 0.8 to 2.6 s
RESOLVE_S = 0.5  # of one attempt to do so
PAUSE_S = 0.1
CLOSE_S = 15.0  # that closing waits for commits under way
SHOWN_S = 5.0  # that a commit waits for this node's replica to show it


@dataclass(slots=True)
class _Doubt:
    commit: Commit
    slot: Slot
    is_over: bool  # etcd has answered: it is done or never will be
    is_told: bool = False  # its caller has heard, or will by another way


class Committer:
    """Sends commits, up to one a slot at a time. Usable from many threads.

    An outcome that is not known when a commit's time is up is told as OutcomeUnknown; its slot is not used again before
    it is known.
    """

    def __init__(
        self, etcd: Etcd, keys: EtcdKeys, replica: Replica, slots: Slots, bundles: Bundles
    ) -> None:
        self._etcd = etcd
        self._keys = keys
        self._replica = replica
        self._slots = slots
        self._waiting: queue.SimpleQueue[Commit | None] = queue.SimpleQueue()
        self._doubts: list[_Doubt] = []
        self._changed = threading.Condition()
        self._under_way = 0
        self._closed = self._has_ended = False
        self.listeners: tuple[Callable[[], None], ...] = ()
        self._spiller = Spiller(bundles, replica.cache, self._forward, self._end)
        self._writer = threading.Thread(target=self._write, name="journal-writer", daemon=True)
        self._resolver = threading.Thread(target=self._decide, name="journal-resolver", daemon=True)
        self._writer.start()
        self._resolver.start()

    def submit(self, commit: Commit) -> None:
        """Carry a commit to etcd; its answer is called on some thread."""
        with self._changed:
            if self._closed:
                raise Unavailable("journal is closed")
            self._under_way += 1
        if commit.large():
            self._spiller.take(commit)
        else:
            self._waiting.put(commit)

    def _forward(self, commit: Commit) -> None:
        """Go on with a commit whose large values are in a bundle: its time begins now."""
        commit.deadline = clock.monotonic() + COMMIT_S
        self._waiting.put(commit)

    def waiting(self) -> int:
        """Return about how many commits are under way."""
        return self._under_way

    def _end(self, commit: Commit, outcome: int | BaseException) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()
        commit.answer(outcome if isinstance(outcome, int) else copy_of(outcome))
        metrics.commit_told(metrics.outcome_of(outcome), time.monotonic() - commit.asked_s)

    # -- sending

    def _write(self) -> None:
        while (commit := self._waiting.get()) is not None:
            self._send(commit)
            del commit  # it leads to a whole push

    def _send(self, commit: Commit) -> None:
        """Send a commit that cannot have happened yet, nor happen otherwise."""
        left = commit.deadline - clock.monotonic()
        if left <= 0:
            self._end(commit, Unavailable("commit was not taken by etcd in time"))
            return
        slot: Slot | None = None
        try:
            if commit.operations:
                slot = self._slots.take(left)
                if slot is None:
                    self._end(commit, Unavailable("too many commits are under way"))
                    return
                request = transaction_of(commit, self._keys, slot)
            else:
                request = question_of(commit, self._keys)
            faultpoints.reach("journal.before_commit")
            # commit point: etcd takes all of it or nothing. A crash before leaves nothing but a bundle that no row
            # names; after it the commit is or is not there, whole, and nobody was told.
            self._etcd.txn_soon(
                request, partial(self._heard, commit, slot), timeout_s=min(left, ATTEMPT_S)
            )
        except Exception as error:  # nothing was sent
            if slot is not None:
                self._slots.give(slot)
            self._again(commit, error)
            if isinstance(error, Unavailable):
                clock.sleep(PAUSE_S)
                self._end_late()

    def _end_late(self) -> None:
        """Tell those whose time was up while the writer itself waited for etcd."""
        now = clock.monotonic()
        for _ in range(self._waiting.qsize()):
            one = self._waiting.get()
            if one is not None and one.deadline <= now:
                self._end(one, Unavailable("commit was not taken by etcd in time"))
            else:
                self._waiting.put(one)

    def _again(self, commit: Commit, error: Exception) -> None:
        """Send a commit again that is known not to have happened, unless that will not help or its time is up."""
        with self._changed:  # of a writer that has ended nobody would hear
            goes_on = (
                not self._has_ended
                and isinstance(error, Unavailable)
                and clock.monotonic() < commit.deadline
            )
            if goes_on:
                self._waiting.put(commit)
        if not goes_on:
            self._end(commit, error)

    # -- hearing

    def _heard(
        self, commit: Commit, slot: Slot | None, outcome: pb.TxnResponse | ShardgitError
    ) -> None:
        """Go on with what came of a transaction; on a thread of gRPC's."""
        try:
            if isinstance(outcome, ShardgitError):
                self._failed(commit, slot, outcome)
                return
            answer = answer_of(outcome, slot, commit)
            if slot is not None and not answer.slot_revision:
                self._slots.drop(slot)  # for all that is known the commit lost for that alone
                self._again(commit, Unavailable("lease in etcd has ended"))
                return
            if slot is not None:
                slot.revision = answer.slot_revision
                self._slots.give(slot)
            self._answered(commit, answer)
        except Exception as error:  # else nobody would ever hear of it
            self._end(commit, error)

    def _answered(self, commit: Commit, answer: Answer) -> None:
        if answer.won:
            faultpoints.reach("journal.after_commit")
            metrics.JOURNAL_TRANSACTIONS.labels("committed").inc()
            told: int | ShardgitError = answer.revision
        elif answer.is_fenced:
            metrics.JOURNAL_TRANSACTIONS.labels("fenced").inc()
            self._end(commit, Unavailable("this node was not heard of for too long; try again"))
            return
        else:
            metrics.JOURNAL_TRANSACTIONS.labels("lost").inc()
            told = Conflict("journal has changed")
        # Who lost looks again, and must see to what.
        self._replica.when_applied(
            answer.revision, partial(self._shown, commit, told), timeout_s=SHOWN_S
        )

    def _shown(self, commit: Commit, outcome: int | ShardgitError, came: bool) -> None:
        if not came:
            metrics.JOURNAL_BEHIND.inc()
        if isinstance(outcome, int):
            for listener in self.listeners:
                listener()
        self._end(commit, outcome)

    def _failed(self, commit: Commit, slot: Slot | None, error: ShardgitError) -> None:
        is_open = isinstance(error, OutcomeUnknown | StorageFull)
        outcome = "unanswered" if isinstance(error, OutcomeUnknown) else "refused"
        metrics.JOURNAL_TRANSACTIONS.labels(outcome).inc()
        if slot is not None and is_open:
            with self._changed:
                doubt = _Doubt(commit, slot, is_over=isinstance(error, StorageFull))
                self._doubts.append(doubt)
                self._changed.notify_all()
            return
        if slot is not None:
            self._slots.give(slot)
        # A moment later, and not on gRPC's own thread: whoever waits there holds up all that it has to tell.
        timer = threading.Timer(PAUSE_S, self._again, (commit, error))
        timer.daemon = True
        timer.start()

    # -- doubts

    def _decide(self) -> None:
        """Look up the fate of commits without an answer until each is known."""
        while True:
            with self._changed:
                while not self._doubts and not self._is_over():
                    self._changed.wait()
                if self._is_over():
                    return
                doubts = list(self._doubts)
            settled = []
            for doubt in doubts:
                try:
                    if self._decided(doubt):
                        settled.append(id(doubt))
                except Exception as error:  # the others are to be decided all the same
                    telemetry.log().error("doubt_not_decided", exc_info=error)
                self._tell_late()
            with self._changed:
                self._doubts = [one for one in self._doubts if id(one) not in settled]
            if not settled:
                clock.sleep(PAUSE_S)

    def _is_over(self) -> bool:
        return self._closed and not self._under_way

    def _decided(self, doubt: _Doubt) -> bool:
        ask = look_up if doubt.is_over else resolve
        try:
            fate = ask(self._etcd, doubt.slot, doubt.commit.id, timeout_s=RESOLVE_S)
        except StorageFull:
            # The mark does not fit either. What etcd refuses for that is not done later, but an earlier one may be:
            # deciding has to wait for space.
            return False
        except ShardgitError:
            return False
        was_told, doubt.is_told = doubt.is_told, True
        if fate is None:
            self._slots.drop(doubt.slot)
        else:
            self._slots.give(doubt.slot)
        if not was_told:
            self._fated(doubt, fate)
        return True

    def _fated(self, doubt: _Doubt, fate: Fate | None) -> None:
        if fate is None:
            self._end(doubt.commit, OutcomeUnknown("lease in etcd has ended: no trace is left"))
        elif fate.revision is not None:
            self._answered(doubt.commit, Answer(True, fate.revision, fate.revision))
        elif doubt.is_over:
            self._end(doubt.commit, StorageFull("etcd has no space left"))
        else:
            self._again(doubt.commit, Unavailable("commit was cancelled: etcd gave no answer"))

    def _tell_late(self) -> None:
        """Tell those whose time is up, of doubts that came while others were looked up, too."""
        now = clock.monotonic()
        with self._changed:
            every = list(self._doubts)
        for doubt in every:
            if not doubt.is_told and doubt.commit.deadline <= now:
                doubt.is_told = True
                self._end(doubt.commit, OutcomeUnknown("etcd gave no answer in time"))

    def close(self) -> None:
        """Finish the commits that wait, or tell them that their time is up."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            end = clock.monotonic() + CLOSE_S
            while self._under_way and (left := end - clock.monotonic()) > 0:
                self._changed.wait(left)
        self._spiller.close()
        with self._changed:
            self._has_ended = True
            self._waiting.put(None)
        self._writer.join()
        with self._changed:
            self._changed.notify_all()
        self._resolver.join()
