"""A worker's report of itself: written every few seconds, and what its gRPC health says."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from grpc_health.v1 import health_pb2

from shardgit import clock, countfile, telemetry
from shardgit.report import Report, write_report
from shardgit.service.health import Health
from shardgit.workers import meanwhile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from grpc_health.v1 import health

    from shardgit.service.store import Store

EVERY_S = 2.0
LOOK_MAX_S = 10.0  # a look that takes longer is a problem itself
HOT = 20


class Reporter:
    """Looks after a worker's store, and tells the supervisor and gRPC's clients how it is."""

    def __init__(
        self,
        store: Store,
        number: int,
        servicer: health.aio.HealthServicer,
        services: Sequence[str],
    ) -> None:
        self._store = store
        self._number = number
        self._servicer = servicer
        self._services = services
        self._health = Health(store)
        self._folder = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""))
        self._is_well = True
        self._is_draining = False
        self._counts_well = True

    @contextlib.asynccontextmanager
    async def reporting(self) -> AsyncIterator[None]:
        """Report until the block is left."""
        await self._once()
        async with meanwhile(self._again(), "report"):
            yield

    async def drain(self) -> None:
        """Have gRPC's clients look for another server."""
        self._is_draining = True
        await self._servicer.enter_graceful_shutdown()

    async def _again(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self._once()
            except Exception as error:  # once more in a moment
                telemetry.log().error("report_failed", exc_info=error)

    async def _once(self) -> None:
        problems: dict[str, str] = {}
        looking = asyncio.ensure_future(self._store.workers.run(self._health.look))
        done, _ = await asyncio.wait({looking}, timeout=LOOK_MAX_S)
        if done:
            looking.result()
        else:
            problems["threads"] = f"nothing was done for {LOOK_MAX_S:.0f} s"
        problems |= self._health.problems
        for file in list(countfile.astray.values()):
            file.go_home()
        report = Report(
            self._number,
            os.getpid(),
            clock.now_ms(),
            problems,
            {**self._health.warnings, **self._astray()},
            self._store.heat.hottest(HOT),
            list(telemetry.slow_requests),
        )
        await self._tell(is_well=not problems)
        if self._folder.is_dir():
            try:
                await asyncio.to_thread(write_report, self._folder, report)
            except OSError as error:  # the supervisor takes the last one
                telemetry.log().error("report_not_written", error=str(error))
        if not done:
            await asyncio.wait({looking})

    def _astray(self) -> dict[str, str]:
        """Return a warning while there is no room for what this worker counts."""
        is_well = not countfile.astray
        if is_well != self._counts_well:
            self._counts_well = is_well
            level = logging.INFO if is_well else logging.ERROR
            telemetry.log().log(level, "counts_kept" if is_well else "counts_not_kept")
        return {} if is_well else {"metrics": "there is no room for what workers count"}

    async def _tell(self, *, is_well: bool) -> None:
        if is_well == self._is_well or self._is_draining:
            return
        self._is_well = is_well
        level = logging.INFO if is_well else logging.ERROR
        telemetry.log().log(level, "health_changed", well=is_well)
        status = health_pb2.HealthCheckResponse
        for name in ("", *self._services):
            await self._servicer.set(name, status.SERVING if is_well else status.NOT_SERVING)
