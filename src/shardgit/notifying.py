"""What a service manager is told: systemd's protocol of datagrams at NOTIFY_SOCKET."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING

from shardgit import telemetry

if TYPE_CHECKING:
    from collections.abc import Mapping


class Notifier:
    """Tells that the server is ready, reloads or stops, and lives. Says nothing where nobody asks."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        where = environment.get("NOTIFY_SOCKET", "")
        self._where = f"\0{where[1:]}" if where.startswith("@") else where
        theirs = environment.get("WATCHDOG_PID", "") in {"", str(os.getpid())}
        interval = environment.get("WATCHDOG_USEC", "") if theirs else ""
        self._every_s = int(interval) / 2_000_000 if interval.isdigit() else 0.0

    def ready(self) -> None:
        """Tell that the server serves, also after a reload."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """Tell that a reload has begun."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """Tell that the server ends."""
        self._tell("STOPPING=1")

    async def watched(self) -> None:
        """Tell again and again that this event loop runs, where a watchdog waits for it."""
        while self._where and self._every_s:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self._every_s)

    def _tell(self, text: str) -> None:
        if not self._where:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as made:
                made.setblocking(False)
                made.sendto(text.encode(), self._where)
        except OSError as error:
            telemetry.log().warning("not_notified", error=str(error))
