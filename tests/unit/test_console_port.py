"""The admin port: who may see what, events, what a stuck worker does to it, repositories."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from base64 import b64encode
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from certificates import certificates
from consoling import BEYOND, Port, Served, port
from prometheus_client import generate_latest
from served import small_repository

from shardgit import clock
from shardgit.console import feed as feeds
from shardgit.console import gauges
from shardgit.console.feed import WATCHERS_MAX
from shardgit.console.gauges import tell_store
from shardgit.desk import listing
from shardgit.journal.interface import Put
from shardgit.journal.operations import operation_key
from shardgit.node import create_store, open_store
from shardgit.operate.operation import running, silent_control
from shardgit.progress import Progress
from shardgit.report import Report
from shardgit.service.access import Rights
from shardgit.service.importing import import_repository
from shardgit.service.repositories import Repositories
from shardgit.service.tokens import Tokens
from shardgit.survey import socket_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import msgspec

    from shardgit.service.store import Store

PAGES = ("/", "/static/main.js", "/events", "/repositories", "/size?name=demo")
SECRET = "a secret of scrapers"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "EVERY_S", 0.2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "store", shards=2)
    with open_store(tmp_path / "store", threads=1) as opened:
        yield opened


def bearer(token: str) -> str:
    return f"Bearer {token}"


def basic(token: str) -> str:
    return f"Basic {b64encode(f'me:{token}'.encode()).decode()}"


# ---- who may


async def test_on_loopback_everybody_sees_all(store: Store, tmp_path: Path) -> None:
    Repositories(store).create("demo")
    async with port(store, tmp_path) as here:
        for path in (*PAGES, "/metrics"):
            assert (await here.get(path))[0] == 200, path
        assert await here.get("/livez") == (200, "ok\n")
        assert await here.get("/readyz") == (200, "1 of 1 workers serve\n")
        assert (await here.get("/nothing"))[0] == 404
        async with here.session.post(f"http://{here.address}/metrics") as answer:
            assert answer.status == 405


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7423", "127.0.0.1.evil.example", ""]
)
async def test_on_loopback_a_strangers_name_is_refused(
    store: Store, tmp_path: Path, host: str
) -> None:
    Repositories(store).create("demo")
    async with port(store, tmp_path) as here:
        for path in (*PAGES, "/metrics"):
            status, words = await here.get(path, Host=host)
            assert status in (400, 403), path
            assert "demo" not in words
            assert "shardgit_" not in words
        assert await here.get("/readyz", Host=host) in [(200, "ready\n"), (400, "")] or not host


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:7423", "127.0.0.1", "127.1.2.3:1", "[::1]:7423"]
)
async def test_on_loopback_its_own_names_are_good(store: Store, tmp_path: Path, host: str) -> None:
    async with port(store, tmp_path) as here:
        assert (await here.get("/metrics", Host=host))[0] == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "unheard-of"])
async def test_a_page_of_another_site_gets_nothing_and_watches_nothing(
    store: Store, tmp_path: Path, site: str
) -> None:
    Repositories(store).create("demo")
    async with port(store, tmp_path) as here:
        for path in PAGES:
            status, words = await here.get(path, **{"Sec-Fetch-Site": site})
            assert (status, words) == (403, "this port answers to no page of another site\n")
        assert here.admin.feed.watchers == 0
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await here.get(path, **{"Sec-Fetch-Site": site}))[0] == 200, path
        for own in ("same-origin", "none"):
            for path in PAGES:
                assert (await here.get(path, **{"Sec-Fetch-Site": own}))[0] == 200, path


async def test_beyond_loopback_only_who_may_administer_sees_anything(
    store: Store, tmp_path: Path
) -> None:
    Repositories(store).create("demo")
    tokens = Tokens(store.journal)
    _, boss = tokens.create("boss", Rights(admin=True))
    _, reader = tokens.create("reader", Rights(read=("**",), write=("**",)))
    async with port(store, tmp_path, admin=BEYOND) as here:
        for path in (*PAGES, "/metrics"):
            assert (await here.get(path))[0] == 401, path
            for shown in (bearer("wrong"), basic("sgt_0_0"), "Digest x", bearer("")):
                assert (await here.get(path, Authorization=shown))[0] == 401, path
            assert (await here.get(path, Authorization=bearer(reader)))[0] == 403, path
            for shown in (bearer(boss), basic(boss)):
                assert (await here.get(path, Authorization=shown))[0] == 200, path
            # A name of its own is not asked for there: who reaches it shows a token.
            assert (await here.get(path, Authorization=bearer(boss), Host="git.example"))[0] == 200
        asked = await here.headers("/")
        assert asked["WWW-Authenticate"].startswith("Basic ")


async def test_beyond_loopback_strangers_learn_whether_it_is_ready_and_no_more(
    store: Store, tmp_path: Path
) -> None:
    _, boss = Tokens(store.journal).create("boss", Rights(admin=True))
    served = Served(
        told=[Report(0, 1, clock.now_ms(), {"disk": "gone"}, {"shard 1": "nearly full"})]
    )
    async with port(store, tmp_path, served=served, admin=BEYOND) as here:
        assert await here.get("/livez") == (200, "ok\n")
        assert await here.get("/readyz") == (503, "not ready\n")
        assert await here.get("/readyz", Authorization=bearer("x")) == (503, "not ready\n")
        status, words = await here.get("/readyz", Authorization=bearer(boss))
        assert (status, words) == (
            503,
            "1 of 1 workers serve\nproblem: disk: gone\nwarning: shard 1: nearly full\n",
        )
        served.told = []
        assert await here.get("/readyz") == (200, "ready\n")
        served.draining = True
        assert await here.get("/readyz") == (503, "not ready\n")


async def test_a_scrapers_secret_opens_metrics_alone_and_needs_no_worker(
    store: Store, tmp_path: Path
) -> None:
    Repositories(store).create("demo")
    file = tmp_path / "scrapers"
    file.write_text(f"{SECRET}\nthe one before it, which goes soon\n")
    async with port(store, tmp_path, admin=BEYOND, metrics_secret_file=str(file)) as here:
        assert (await here.get("/metrics", Authorization=bearer(SECRET)))[0] == 200
        assert (await here.get("/metrics", Authorization=basic(SECRET)))[0] == 401
        for path in PAGES:
            assert (await here.get(path, Authorization=bearer(SECRET)))[0] == 401, path
        here.served.serving.clear()
        assert (await here.get("/metrics", Authorization=bearer(SECRET)))[0] == 200
        _, boss = Tokens(store.journal).create("boss", Rights(admin=True))
        assert (await here.get("/metrics", Authorization=bearer(boss)))[0] == 503
        file.write_text("another secret, from now on\n")
        assert (await here.get("/metrics", Authorization=bearer(SECRET)))[0] == 503


async def test_with_auth_off_nobody_is_asked(store: Store, tmp_path: Path) -> None:
    async with port(store, tmp_path, admin=BEYOND, auth="off") as here:
        assert (await here.get("/metrics", Host="git.example"))[0] == 200


async def test_who_guesses_is_told_to_wait(store: Store, tmp_path: Path) -> None:
    async with port(store, tmp_path, admin=BEYOND) as here:
        found = [(await here.get("/", Authorization=bearer("guess")))[0] for _ in range(30)]
        assert found[0] == 401
        assert found[-1] == 429
        assert int((await here.headers("/", Authorization=bearer("guess")))["Retry-After"]) > 0


async def test_a_browser_whose_token_is_revoked_watches_no_more(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(feeds, "BEAT_S", 0.1)
    tokens = Tokens(store.journal)
    known, boss = tokens.create("boss", Rights(admin=True))
    async with port(store, tmp_path, admin=BEYOND) as here, asyncio.timeout(60):
        shown = {"Authorization": basic(boss)}
        async with here.session.get(f"http://{here.address}/events", headers=shown) as answer:
            await answer.content.readuntil(b"event: now")
            tokens.revoke(known.id)
            async for _ in answer.content:
                pass  # until the server ends it


async def test_beyond_loopback_it_speaks_tls_where_the_other_ports_do(
    store: Store, tmp_path: Path
) -> None:
    _, boss = Tokens(store.journal).create("boss", Rights(admin=True))
    made = certificates(tmp_path, ["127.0.0.1"])
    keys: dict[str, Any] = {
        "tls_certificate": str(made["peer_certificate"]),
        "tls_key": str(made["peer_key"]),
    }
    trusting = ssl.create_default_context(cafile=str(made["peer_ca"]))
    shown = {"Authorization": bearer(boss)}
    async with port(store, tmp_path, admin=BEYOND, **keys) as here:
        url = f"https://{here.address}/metrics"
        async with here.session.get(url, ssl=trusting, headers=shown) as answer:
            assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await here.get("/livez")
    async with port(store, tmp_path, **keys) as here:
        assert (await here.get("/metrics"))[0] == 200  # on loopback as ever


async def test_a_certificate_that_may_administer_does_for_a_token(
    store: Store, tmp_path: Path
) -> None:
    made = certificates(tmp_path, ["127.0.0.1"])
    keys: dict[str, Any] = {
        "tls_certificate": str(made["peer_certificate"]),
        "tls_key": str(made["peer_key"]),
        "tls_client_ca": str(made["peer_ca"]),
    }
    trusting = ssl.create_default_context(cafile=str(made["peer_ca"]))
    showing = ssl.create_default_context(cafile=str(made["peer_ca"]))
    showing.load_cert_chain(made["peer_certificate"], made["peer_key"])
    for rules, status in ((("* admin",), 200), (("* read=**",), 403)):
        async with port(store, tmp_path, admin=BEYOND, tls_clients=rules, **keys) as here:
            url = f"https://{here.address}/metrics"
            async with here.session.get(url, ssl=trusting) as answer:
                assert answer.status == 401
            async with aiohttp.ClientSession() as other, other.get(url, ssl=showing) as answer:
                assert answer.status == status


@pytest.mark.parametrize(
    "path", ["/", "/static/console.css", "/nothing", "/metrics", "/readyz", "/size?name=no"]
)
async def test_every_answer_keeps_browsers_from_doing_anything_else_with_it(
    store: Store, tmp_path: Path, path: str
) -> None:
    async with port(store, tmp_path) as here:
        told = await here.headers(path)
        policy = told["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert (told["X-Content-Type-Options"], told["X-Frame-Options"]) == ("nosniff", "DENY")
        assert told["Cross-Origin-Resource-Policy"] == "same-origin"


async def test_static_files_are_not_sent_again_while_they_are_the_same(
    store: Store, tmp_path: Path
) -> None:
    async with port(store, tmp_path) as here:
        told = await here.headers("/static/main.js")
        assert told["Content-Type"] == "text/javascript; charset=utf-8"
        assert await here.get("/static/main.js", **{"If-None-Match": told["ETag"]}) == (304, "")
        for name in ("..%2fport.py", "%2e%2e/port.py", "index.py", ""):
            assert (await here.get(f"/static/{name}"))[0] == 404, name


@pytest.mark.parametrize("tls", [False, True])
async def test_connections_that_ask_nothing_keep_nobody_from_health_and_metrics(
    store: Store, tmp_path: Path, *, tls: bool
) -> None:
    keys: dict[str, Any] = {}
    trusting: ssl.SSLContext | bool = True
    if tls:
        made = certificates(tmp_path, ["127.0.0.1"])
        keys = {
            "admin": BEYOND,
            "auth": "off",
            "tls_certificate": str(made["peer_certificate"]),
            "tls_key": str(made["peer_key"]),
        }
        trusting = ssl.create_default_context(cafile=str(made["peer_ca"]))
    async with port(store, tmp_path, **keys) as here, asyncio.timeout(60):
        host, number = here.address.split(":")
        loop = asyncio.get_running_loop()
        with ExitStack() as held:
            for at in range(700):
                silent = held.enter_context(socket.socket())
                silent.setblocking(False)
                silent.bind((f"127.0.{at % 16}.2", 0))
                await loop.sock_connect(silent, (host, int(number)))
            for path in ("/livez", "/readyz", "/metrics"):
                url = f"{'https' if tls else 'http'}://{here.address}{path}"
                async with here.session.get(url, ssl=trusting) as answer:
                    assert answer.status == 200, path


# ---- events


class Events:
    """The events of one connection."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content
        self.id = ""

    async def next(self) -> tuple[str, Any]:
        """Return the name and the data of the next one."""
        name = ""
        async with asyncio.timeout(60):
            while True:
                line = (await self._content.readuntil(b"\n")).decode().rstrip("\n")
                if line.startswith("id: "):
                    self.id = line.removeprefix("id: ")
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    return name, json.loads(line.removeprefix("data: "))


@asynccontextmanager
async def watching(here: Port, **headers: str) -> AsyncIterator[Events]:
    async with here.session.get(f"http://{here.address}/events", headers=headers) as answer:
        assert answer.status == 200
        yield Events(answer.content)


async def test_browsers_share_one_producer_which_rests_when_nobody_watches(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "EVERY_S", 0.01)
    async with port(store, tmp_path) as here, asyncio.timeout(60):
        feed = here.admin.feed
        produce, go_on, asked = feed._make, asyncio.Semaphore(0), asyncio.Event()

        async def when_told() -> msgspec.Struct:
            asked.set()
            await go_on.acquire()
            return await produce()

        monkeypatch.setattr(feed, "_make", when_told)
        assert feed.produced == 0
        async with AsyncExitStack() as held:
            all_of_them = [await held.enter_async_context(watching(here)) for _ in range(5)]
            assert feed.watchers == 5
            for number in (1, 2):
                go_on.release()
                seen = []
                for each in all_of_them:
                    if number == 1:
                        assert (await each.next())[0] == "history"
                    name, snapshot = await each.next()
                    assert name == "now"
                    seen.append(snapshot["time_ms"])
                assert feed.produced == number
                assert len(set(seen)) == 1
            asked.clear()
            await asked.wait()  # the third is being made
        while feed.watchers:
            await asyncio.sleep(0.01)
        go_on.release()
        while feed.produced < 3:
            await asyncio.sleep(0.01)
        asked.clear()
        await asyncio.sleep(0.5)  # five times as long as from one to the next
        assert not asked.is_set()
        async with watching(here):
            await asked.wait()
            go_on.release()


async def test_a_snapshot_shows_shards_operations_health_and_what_is_slow(
    store: Store, tmp_path: Path
) -> None:
    served = Served(told=[Report(0, 1, clock.now_ms(), {"disk": "gone"})])
    async with port(store, tmp_path, served=served) as here, watching(here) as events:
        await events.next()
        with running(store, "gc"):
            silent_control().report(Progress("collecting pools", 1, 4, "objects"))
            _, snapshot = await events.next()
            while not snapshot["survey"]["operations"]:
                _, snapshot = await events.next()
    survey = snapshot["survey"]
    assert [(one["id"], one["state"]) for one in survey["shards"]] == [(0, "active"), (1, "active")]
    assert sum(one["partitions"] for one in survey["shards"]) == 65_536
    assert all(one["free_bytes"] > 0 and one["file_bytes"] > 0 for one in survey["shards"])
    (gc,) = survey["operations"]
    assert (gc["kind"], gc["stage"], gc["done"], gc["total"]) == ("gc", "collecting pools", 1, 4)
    assert snapshot["health"]["state"] == "down"
    assert snapshot["health"]["problems"] == [{"what": "disk", "words": "gone", "workers": 1}]
    assert str(tmp_path) not in json.dumps(snapshot)


async def test_who_comes_back_gets_the_points_that_it_lacks(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "EVERY_S", 1.1)
    async with port(store, tmp_path) as here:
        async with watching(here) as events:
            for _ in range(4):
                await events.next()
            last = events.id
        async with watching(here) as events:
            _, every = await events.next()
        async with watching(here, **{"Last-Event-ID": last}) as events:
            _, behind = await events.next()
        run, _, at = last.partition("-")
        assert len(every) >= 2
        assert behind == [point for point in every if point[0] > int(at)]
        assert len(behind) < len(every)
        for other in (f"x{run}-{at}", f"{run}-x", f"{run}-" + "9" * 40, "-", "\u00e9"):
            async with watching(here, **{"Last-Event-ID": other}) as events:
                assert (await events.next())[1][: len(every)] == every


async def test_too_many_browsers_are_told_to_come_again(store: Store, tmp_path: Path) -> None:
    async with port(store, tmp_path) as here, AsyncExitStack() as held:
        connector = aiohttp.TCPConnector(limit=0)
        await here.session.close()
        here.session = await held.enter_async_context(aiohttp.ClientSession(connector=connector))
        for _ in range(WATCHERS_MAX):
            await held.enter_async_context(watching(here))
        assert (await here.get("/events"))[0] == 429
        assert (await here.headers("/events"))["Retry-After"] == "5"
        assert (await here.get("/livez"))[0] == 200


async def test_a_browser_that_takes_nothing_is_dropped(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "STALL_S", 0.5)
    async with port(store, tmp_path) as here:
        here.served.told = [Report(0, 1, clock.now_ms(), {"x": "y" * 4_000_000})]
        host, number = here.address.split(":")
        with socket.create_connection((host, int(number))) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            slow.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(60):
                while not here.admin.feed.watchers:
                    await asyncio.sleep(0.01)
                while here.admin.feed.watchers:
                    await asyncio.sleep(0.01)
        assert (await here.get("/livez"))[0] == 200


async def test_the_history_goes_on_behind_a_file_that_could_not_be_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shardgit.console.snapshot.UNWATCHED_S", 0.05)
    (tmp_path / "metrics").mkdir()
    empty = tmp_path / "metrics" / "counter_7.db"
    empty.touch()
    seen = ""
    async with port(store, tmp_path) as here, asyncio.timeout(60):
        while "history_not_kept" not in seen:
            await asyncio.sleep(0.01)
            captured = capfd.readouterr()
            seen += captured.out + captured.err
        assert here.admin._snapshots.points(-1) == []
        empty.unlink()
        while not here.admin._snapshots.points(-1):
            await asyncio.sleep(0.01)


async def test_a_rebalance_of_a_later_version_hides_nothing_else(
    store: Store, tmp_path: Path
) -> None:
    await store.journal.commit([], [Put(operation_key("rebalance"), b"\xffof another time")])
    async with port(store, tmp_path) as here:
        survey = await here.admin.desks.survey()
        assert len(survey.shards) == 2
        assert [one.kind for one in survey.ended] == []


async def test_of_a_store_that_no_worker_sees_metrics_tell_nothing(
    store: Store, tmp_path: Path
) -> None:
    async with port(store, tmp_path) as here:
        tell_store(await here.admin.desks.survey())
        told = {name.split("{")[0] for name in generate_latest(gauges.REGISTRY).decode().split()}
        names = {"shardgit_ring_epoch", "shardgit_ring_moving_partitions", "shardgit_shards"}
        assert names <= told
        tell_store(None)
        words = generate_latest(gauges.REGISTRY).decode().splitlines()
        assert not [line for line in words if line.split("{")[0].split(" ")[0] in names]
        tell_store(await here.admin.desks.survey())
        assert gauges.REGISTRY.get_sample_value("shardgit_ring_epoch") is not None


# ---- workers that are stuck


async def test_the_next_worker_is_asked_when_one_is_stuck(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgit.console.desks.WAIT_S", 0.5)
    monkeypatch.setattr("shardgit.console.desks.MEASURE_WAIT_S", 0.5)
    Repositories(store).create("demo")
    served = Served(serving={0, 1}, count=2)
    async with port(store, tmp_path, served=served) as here:
        stuck = here.folder / "desk-1"
        (here.folder / "desk-0").rename(stuck)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(here.folder / "desk-0"))
            silent.listen(64)
            assert (await here.get("/size?name=demo"))[0] == 200
            async with watching(here) as events, asyncio.timeout(30):
                await events.next()
                _, snapshot = await events.next()
            assert len(snapshot["survey"]["shards"]) == 2
            served.serving = {0}
            here.admin.desks.serving = served.serving
            assert await here.get("/repositories") == (503, "no worker answers\n")


async def test_a_page_without_any_worker_shows_what_was_last_known(
    store: Store, tmp_path: Path
) -> None:
    async with port(store, tmp_path) as here, watching(here) as events:
        await events.next()
        _, before = await events.next()
        assert before["survey_age_s"] < 60
        here.served.serving.clear()
        _, after = await events.next()
        while after["health"]["state"] != "down":
            _, after = await events.next()
        assert after["survey"] == before["survey"]
        assert after["survey_age_s"] > before["survey_age_s"]


def test_a_desk_is_found_in_a_folder_whose_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    opened = os.open(deep, os.O_RDONLY | os.O_DIRECTORY)
    try:
        path = socket_path(deep, 3, opened=opened)
        with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
            one.bind(path)
            one.listen()
            other.connect(path)
            assert (deep / "desk-3").is_socket()
    finally:
        os.close(opened)


# ---- repositories


async def pages(here: Port, words: str) -> list[list[str]]:
    """Return the names of all pages of a search."""
    found, after = [], ""
    while True:
        _, text = await here.get(f"/repositories?words={words}&after={after}")
        page = json.loads(text)
        found.append([row["name"] for row in page["rows"]])
        after = page["after"]
        if not after:
            return found


async def names_of(here: Port, words: str) -> list[str]:
    return [name for page in await pages(here, words) for name in page]


async def test_repositories_are_searched_and_paged_by_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"team{n % 3}/app-{n:02}" for n in range(50)]
    for name in names:
        Repositories(store).create(name)
    async with port(store, tmp_path) as here:
        assert await names_of(here, "") == sorted(names)
        assert [len(page) for page in await pages(here, "")] == [20, 20, 10]
        assert await names_of(here, "TEAM1") == [n for n in sorted(names) if "team1" in n]
        assert await pages(here, "app-07") == [["team1/app-07"]]
        assert await pages(here, "nothing") == [[]]
        monkeypatch.setattr(listing, "PASSED_MAX", 7)  # a page is as short as that then
        assert await names_of(here, "app-07") == ["team1/app-07"]
        assert max(len(page) for page in await pages(here, "")) == 7


async def test_a_repositorys_size_is_that_of_its_pool_and_follows_it(
    store: Store, tmp_path: Path
) -> None:
    source = small_repository(tmp_path / "source")
    import_repository(store, "demo", str(source))
    Repositories(store).fork("demo", "fork")
    async with port(store, tmp_path) as here:
        _, text = await here.get("/size?name=demo")
        size = json.loads(text)
        assert (size["refs"], size["objects"]) == (2, Repositories(store).stats("demo").objects)
        assert size["stored_bytes"] == Repositories(store).stats("demo").stored_bytes > 0
        _, text = await here.get("/size?name=fork")
        assert json.loads(text) == {**size, "name": "fork"}
        assert (await here.get("/size?name=gone"))[0] == 404


@pytest.mark.parametrize(
    "query",
    ["words=" + "x" * 300, "words=%00", "after=%0a", f"after={'x' * 5_000}", "words=%ed%a0%80"],
)
async def test_a_search_for_nonsense_is_refused_in_words(
    store: Store, tmp_path: Path, query: str
) -> None:
    async with port(store, tmp_path) as here:
        status, words = await here.get(f"/repositories?{query}")
        assert (status, json.loads(words) if status == 200 else words) in [
            (400, words),
            (200, {"rows": [], "after": ""}),
        ]
