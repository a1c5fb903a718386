"""What the processes of all nodes may still read, or are about to name: each says so while a gc asks.

    gc puts the question         ->  every process puts an answer, under its session, whenever it keeps that alive
    a session without an answer  ->  is waited for; one that has ended is not: what it commits later, its fences fail

So nothing is told while nobody asks, and no clock and no silence is taken for an answer.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.cluster.records import AnswerRecord, answer_key, sessions_of
from shardgit.errors import ShardgitError, Unavailable
from shardgit.journal.interface import Compare, Delete, Put

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.cluster.records import SessionRecord
    from shardgit.cluster.session import Heard, Session
    from shardgit.holders import LocalHolders
    from shardgit.journal.interface import Journal

QUESTION_KEY = b"Yg"
QUESTION_BYTES = 16
POLL_S = 0.1
CLOCK_STEP_MS = 60_000  # that a node's clock may be set back while it is asked


class ClusterHolders:
    """See Holders. ``session`` answers for this process from now on."""

    def __init__(
        self, journal: Journal, session: Session, local: LocalHolders, *, answer_s: float = 30.0
    ) -> None:
        self.journal = journal
        self.answer_s = answer_s
        self._local = local
        self._session = session
        session.at_keep(self._answer)

    def _answer(self, heard: Heard) -> None:
        with self.journal.snapshot() as snapshot:
            row = snapshot.get(QUESTION_KEY)
        if row is None:
            return
        now = clock.now_ms()
        answer = AnswerRecord(row.revision, self._local.oldest(), self._local.before_ms(), now)
        self._session.tell(heard, answer_key(heard.id), answer.encode())

    @contextmanager
    def asking(self) -> Iterator[_Question]:
        """See Holders."""
        asked = self.journal.commit_sync([], [Put(QUESTION_KEY, os.urandom(QUESTION_BYTES))])
        try:
            yield _Question(self, asked)
        finally:
            with suppress(ShardgitError):  # the next one takes it out
                self.journal.commit_sync([Compare(QUESTION_KEY, asked)], [Delete(QUESTION_KEY)])


@dataclass(frozen=True, slots=True)
class _Said:
    session: SessionRecord
    answer: AnswerRecord | None  # None: nothing yet to this question

    @property
    def who(self) -> str:
        return f"process {self.session.pid} of node {self.session.node}"


class _Question:
    """See Asked."""

    def __init__(self, holders: ClusterHolders, revision: int) -> None:
        self._holders = holders
        self._revision = revision

    def _said(self) -> list[_Said]:
        """Return what each process that is heard of said."""
        journal = self._holders.journal
        journal.fresh_sync()
        found = []
        with journal.snapshot() as snapshot:
            for session, record in sessions_of(snapshot):
                row = snapshot.get(answer_key(session))
                answer = AnswerRecord.decode(row.value) if row is not None else None
                if answer is not None and answer.question != self._revision:
                    answer = None
                found.append(_Said(record, answer))
        return found

    def before_ms(self) -> int:
        """See Asked: of all clocks, since each block bears the time of the one who made it."""
        end = clock.monotonic() + self._holders.answer_s
        while True:
            said = self._said()
            silent = [one.who for one in said if one.answer is None]
            if not silent:
                break
            if clock.monotonic() >= end:
                raise Unavailable("processes do not say what they read", processes=silent[:10])
            clock.sleep(POLL_S)
        return min(one.answer.before_ms for one in said if one.answer) - CLOCK_STEP_MS

    def awaited(self, revision: int, before_ms: int) -> tuple[str, ...]:
        """See Asked."""
        return tuple(
            one.who
            for one in self._said()
            if one.answer is None
            or one.answer.revision < revision
            or one.answer.before_ms < before_ms
        )
