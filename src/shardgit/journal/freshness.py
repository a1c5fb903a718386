"""Reads that show what was committed anywhere: one question to etcd for all who wait."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from shardgit import clock, telemetry
from shardgit.errors import ShardgitError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.journal.replica import Replica

ASK_S = 5.0  # of one question; it goes from member to member
AWAY_S = 0.25  # between questions while etcd does not answer


class Freshness:
    """A thread that asks for the journal's revision and waits until the replica shows it.

    Who comes while a question is under way waits for the next one: the answer to the first may be older than the call.
    """

    def __init__(self, ask: Callable[[], int], replica: Replica, *, timeout_s: float) -> None:
        self._ask = ask
        self._replica = replica
        self._timeout_s = timeout_s
        self._waiting: list[Callable[[ShardgitError | None], None]] = []
        self._changed = threading.Condition()
        self._closed = False
        self.is_away = False
        """The last question had no answer, or the replica did not follow: who may read stale rows need not wait."""
        self._thread = threading.Thread(target=self._run, name="journal-fresh", daemon=True)
        self._thread.start()

    def soon(self, answer: Callable[[ShardgitError | None], None]) -> None:
        """Call ``answer``, on some thread, once snapshots are fresh, or with the reason why they are not."""
        with self._changed:
            if self._closed:
                raise Unavailable("journal is closed")
            self._waiting.append(answer)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    if not self._changed.wait(AWAY_S if self.is_away else None):
                        break
                if self._closed:
                    waiting, self._waiting = self._waiting, []
                    break
                waiting, self._waiting = self._waiting, []
            self._round(waiting)
        for answer in waiting:
            answer(Unavailable("journal is closed"))

    def _round(self, waiting: list[Callable[[ShardgitError | None], None]]) -> None:
        try:
            revision = self._ask()
        except Exception as error:  # whatever it is: this thread must not end
            if not isinstance(error, ShardgitError):
                telemetry.log().error("freshness_not_known", exc_info=error)
            self.is_away = True
            for answer in waiting:
                answer(Unavailable("journal does not answer", cause=str(error)))
            if not self._closed:
                clock.sleep(AWAY_S)
            return

        def shown(came: bool) -> None:
            self.is_away = not came
            late = None if came else Unavailable("this node is behind the journal")
            for answer in waiting:
                answer(late)

        self._replica.when_applied(revision, shown, timeout_s=self._timeout_s)

    def close(self) -> None:
        """Stop; who waits hears Unavailable."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
