"""Reads that show what was committed anywhere: one question to etcd for all who wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from shardgit import clock, telemetry
from shardgit.errors import ShardgitError, Unavailable

if TYPE_CHECKING:
    from shardgit.journal.replica import Replica

ASK_S = (
    4.0  # of a question that is asked again, from member to member, behind the second of the first
)
AWAY_S = 0.25  # between questions while etcd does not answer


Answer = Callable[[ShardgitError | None], None]


class Freshness:
    """Asks for the journal's revision and waits until the replica shows it.

    Who comes while a question is under way waits for the next one: the answer to the first may be older than the call.
    A question is sent on the thread of who comes first, and heard on gRPC's. Once one went wrong, a thread asks from
    member to member, until all is well again.
    """

    def __init__(
        self,
        ask: Callable[[], int],
        ask_soon: Callable[[Callable[[int | Exception], None]], None],
        replica: Replica,
        *,
        timeout_s: float,
    ) -> None:
        self._ask = ask
        self._ask_soon = ask_soon
        self._replica = replica
        self._timeout_s = timeout_s
        self._waiting: list[Answer] = []
        self._is_asking = False
        self._is_troubled = False  # the thread asks
        self._changed = threading.Condition()
        self._closed = False
        self.is_away = False
        """The last question had no answer, or the replica did not follow: who may read stale rows need not wait."""
        self._thread = threading.Thread(target=self._run, name="journal-fresh", daemon=True)
        self._thread.start()

    def soon(self, answer: Answer) -> None:
        """Call ``answer``, on some thread, once snapshots are fresh, or with the reason why they are not."""
        with self._changed:
            if self._closed:
                raise Unavailable("journal is closed")
            self._waiting.append(answer)
            if self._is_asking or self._is_troubled:
                return
            self._is_asking = True
        self._send()

    def _send(self) -> None:
        """Send the question of all who wait, if any do."""
        with self._changed:
            if not self._waiting or self._is_troubled or self._closed:
                self._is_asking = False
                return
            waiting, self._waiting = self._waiting, []
        try:
            self._ask_soon(partial(self._heard, waiting))
        except Exception as error:  # nothing was sent
            self._heard(waiting, error)

    def _heard(self, waiting: list[Answer], found: int | Exception) -> None:
        if isinstance(found, int):
            self._show(waiting, found)
            self._send()
            return
        with self._changed:
            self._is_asking = False
            self._is_troubled = True
            if not self._closed:
                self._waiting += waiting
                waiting = []
            self._changed.notify()
        for answer in waiting:
            answer(Unavailable("journal is closed"))

    def _show(self, waiting: list[Answer], revision: int) -> None:
        """Answer once the replica shows a revision."""

        def shown(came: bool) -> None:
            self.is_away = not came
            if not came:
                with self._changed:
                    self._is_troubled = True
                    self._changed.notify()
            late = None if came else Unavailable("this node is behind the journal")
            for answer in waiting:
                answer(late)

        self._replica.when_applied(revision, shown, timeout_s=self._timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._is_troubled and not self._closed:
                    self._changed.wait()
                waiting, self._waiting = self._waiting, []
                if self._closed:
                    break
            self._round(waiting)
        for answer in waiting:
            answer(Unavailable("journal is closed"))

    def _round(self, waiting: list[Answer]) -> None:
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
        with self._changed:
            self._is_troubled = False
            self._is_asking = True
        self._show(waiting, revision)
        self._send()  # for those who came meanwhile

    def close(self) -> None:
        """Stop; who waits hears Unavailable."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
