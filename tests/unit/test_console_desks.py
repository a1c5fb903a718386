"""What slow questions to workers do to others, and answers that are too long."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from consoling import BEYOND, Served, port

from shardgit.desk.listing import Sizes
from shardgit.desk.surveying import survey
from shardgit.node import create_store, open_store
from shardgit.service.access import Rights
from shardgit.service.repositories import Repositories
from shardgit.service.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store
    from shardgit.survey import RepositorySize, Survey


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "store", shards=2)
    with open_store(tmp_path / "store", threads=1) as opened:
        yield opened


class Measuring:
    """Sizes that are measured when it is let go on, and whose they were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.begun: list[str] = []
        measure = Sizes.of

        def of(sizes: Sizes, name: str) -> RepositorySize:
            self.begun.append(name)
            assert self.go_on.wait(60)
            return measure(sizes, name)

        monkeypatch.setattr(Sizes, "of", of)

    async def until_one_is_measured(self) -> None:
        async with asyncio.timeout(60):
            while not self.begun:
                await asyncio.sleep(0.01)


async def test_slow_measurements_keep_nobody_from_anything_else(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Repositories(store).create("demo")
    measuring = Measuring(monkeypatch)
    _, boss = Tokens(store.journal).create("boss", Rights(admin=True))
    shown = {"Authorization": f"Bearer {boss}"}
    async with port(store, tmp_path, admin=BEYOND) as here:
        await here.session.close()
        here.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        asked = [asyncio.create_task(here.get("/size?name=demo", **shown)) for _ in range(20)]
        try:
            await measuring.until_one_is_measured()
            for path in ("/repositories", "/metrics", "/", "/events"):
                assert (await here.get(path, **shown))[0] == 200, path
        finally:
            measuring.go_on.set()
        assert {(await each)[0] for each in asked} == {200}


async def test_what_is_measured_for_nobody_any_more_is_not_begun(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["first", "gone", "last"]
    for name in names:
        Repositories(store).create(name)
    measuring = Measuring(monkeypatch)
    async with port(store, tmp_path) as here:
        one, other = here.admin.desks, asyncio.create_task(here.get("/size?name=first"))
        await measuring.until_one_is_measured()
        gone = asyncio.create_task(one.size("gone"))
        await asyncio.sleep(0.2)  # it has come to the desk by then, or never comes
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        last = asyncio.create_task(here.get("/size?name=last"))
        await asyncio.sleep(0.2)
        measuring.go_on.set()
        assert (await other)[0] == (await last)[0] == 200
    assert measuring.begun == ["first", "last"]


async def test_who_asks_while_a_survey_hangs_waits_for_that_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgit.console.desks.WAIT_S", 0.3)
    Repositories(store).create("demo")
    go_on, begun = threading.Event(), []

    def hangs(asked: Store) -> Survey:
        begun.append(1)
        assert go_on.wait(60)
        return survey(asked)

    monkeypatch.setattr("shardgit.desk.server.survey", hangs)
    async with port(store, tmp_path) as here:
        try:
            for _ in range(3):
                assert (await here.get("/metrics"))[0] == 200
            monkeypatch.setattr("shardgit.console.desks.WAIT_S", 30)
            assert (await here.get("/repositories"))[0] == 200
            assert len(begun) == 1
        finally:
            go_on.set()
        assert len((await here.admin.desks.survey()).shards) == 2


async def test_an_answer_past_the_bound_is_refused(store: Store, tmp_path: Path) -> None:
    async def talks(_: web.Request) -> web.Response:
        return web.Response(body=b" " * (5 << 20))

    served = Served(serving={1})
    async with port(store, tmp_path, served=served) as here:
        app = web.Application()
        app.router.add_get("/repositories", talks)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(here.folder / "desk-1")).start()
        assert await here.get("/repositories") == (500, "a worker says too much\n")
        await runner.cleanup()
