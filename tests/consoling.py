"""An admin port in the process of a test, over a real store and its desk, without a supervisor."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

from shardgit.config import ServeConfig
from shardgit.console.port import AdminPort
from shardgit.desk.server import Desk
from shardgit.door import doorkeeper_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from shardgit.report import Report
    from shardgit.service.store import Store

BEYOND = (
    "192.0.2.1:7423"  # what the configuration says; the tests' sockets are of loopback all the same
)


@dataclass
class Served:
    """A supervisor of workers that are not there."""

    serving: set[int] = field(default_factory=lambda: {0})
    count: int = 1
    draining: bool = False
    started: bool = True
    restarts: int = 0
    told: list[Report] = field(default_factory=list)

    def metrics(self) -> bytes:
        return b"shardgit_workers 1.0\n"

    def reports(self) -> list[Report]:
        return self.told


class Port:
    """A served port, and a client of it."""

    def __init__(self, admin: AdminPort, served: Served, address: str, folder: Path) -> None:
        self.admin = admin
        self.served = served
        self.address = address
        self.folder = folder
        self.session = aiohttp.ClientSession()

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Return status and text; of events the first bytes."""
        async with self.session.get(f"http://{self.address}{path}", headers=headers) as answer:
            if answer.content_type == "text/event-stream":
                return answer.status, (await answer.content.read(10)).decode()
            return answer.status, await answer.text()

    async def headers(self, path: str, **headers: str) -> Mapping[str, str]:
        async with self.session.get(f"http://{self.address}{path}", headers=headers) as answer:
            return answer.headers


@asynccontextmanager
async def port(
    store: Store, tmp_path: Path, *, served: Served | None = None, **keys: Any
) -> AsyncIterator[Port]:
    """Serve the port of a configuration on loopback, with the desk of worker 0."""
    folder = tmp_path / "metrics"
    folder.mkdir(exist_ok=True)
    config = ServeConfig(data=str(tmp_path / "store"), **keys)
    served = served or Served()
    desk = Desk(store, doorkeeper_of(config, store.journal, required=True))
    admin = AdminPort(config, served, folder)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        async with desk.serving(folder, 0), admin.serving([listener]):
            made = Port(admin, served, address, folder)
            try:
                yield made
            finally:
                await made.session.close()
