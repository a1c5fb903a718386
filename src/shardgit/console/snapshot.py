"""What the page shows at one moment."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import msgspec

from shardgit import clock, telemetry
from shardgit.console.desks import DeskRefused
from shardgit.console.health import Health, health_of
from shardgit.console.traffic import History, Point, Traffic, read_totals
from shardgit.errors import Unavailable
from shardgit.report import Hot, Slow, hottest
from shardgit.survey import Survey  # noqa: TC001 - msgspec looks at fields' types
from shardgit.version import VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.console.desks import Desks
    from shardgit.console.health import Served

HOT = 12
SLOW = 10
SAMPLE_MIN_S = 1.0  # between two looks at the counters
UNWATCHED_S = (
    10.0  # between two while nobody watches: one takes 18 ms of CPU with 2 workers and 90 methods
)


class Snapshot(msgspec.Struct, frozen=True):
    """All that the page shows but the history and the list of repositories.

    ``server`` tells one that was started again from the one before. ``survey`` is the last one that a worker gave,
    ``survey_age_s`` how old it is; None before the first.
    """

    time_ms: int
    server: str
    version: str
    up_s: float
    health: Health
    traffic: Traffic
    hot: list[Hot]
    slow: list[Slow]
    survey: Survey | None
    survey_age_s: float | None


class Snapshots:
    """Makes snapshots, and keeps the history, also while nobody watches."""

    def __init__(self, served: Served, desks: Desks, folder: Path) -> None:
        self._served = served
        self._desks = desks
        self._folder = folder
        self._history = History()
        self._server = os.urandom(8).hex()
        self._begun = self._sampled = time.monotonic()
        self._survey: Survey | None = None
        self._surveyed = 0.0
        self._refused = ""
        self._sampling = asyncio.Lock()

    def points(self, behind_ms: int) -> list[Point]:
        """Return the history behind a moment."""
        return [point for point in self._history.points if point.time_ms > behind_ms]

    async def keep_history(self) -> None:
        """Look at the counters once in a while; has no end."""
        age_s = 0.0
        while True:
            try:
                await self._sample(age_s)
            except Exception as error:  # once more in a while
                telemetry.log().error("history_not_kept", exc_info=error)
            age_s = UNWATCHED_S - 1
            await asyncio.sleep(UNWATCHED_S)

    async def make(self) -> Snapshot:
        """Return how things are now."""
        await self._sample(SAMPLE_MIN_S)
        await self.survey()  # else the last one stays, with its age
        reports = self._served.reports()
        slow = sorted((one for report in reports for one in report.slow), key=lambda s: -s.time_ms)
        now = time.monotonic()
        return Snapshot(
            time_ms=clock.now_ms(),
            server=self._server,
            version=VERSION,
            up_s=round(now - self._begun, 1),
            health=health_of(self._served, reports),
            traffic=self._history.now(),
            hot=hottest(reports, HOT),
            slow=slow[:SLOW],
            survey=self._survey,
            survey_age_s=round(now - self._surveyed, 1) if self._survey is not None else None,
        )

    async def survey(self) -> Survey | None:
        """Return how the store is now; None when no worker says so."""
        try:
            self._survey = await self._desks.survey()
        except Unavailable:
            return None
        except DeskRefused as refused:
            if self._refused != refused.answer.message:  # once, not with each tick
                self._refused = refused.answer.message
                telemetry.log().error("survey_refused", error=self._refused)
            return None
        self._refused = ""
        self._surveyed = time.monotonic()
        return self._survey

    async def _sample(self, age_s: float) -> None:
        """Look at the counters where the last look is that old."""
        async with self._sampling:
            if age_s and time.monotonic() - self._sampled < age_s:
                return
            self._sampled = time.monotonic()
            self._history.add(await asyncio.to_thread(read_totals, self._folder))
