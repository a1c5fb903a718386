"""The console, as people see it: in a real Chromium, over a real server with real clients."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browsing import Page, browser, chromium, paging
from consoling import BEYOND, port
from served import Server, clean_environment, git, serving, shardgit, small_repository

from shardgit.desk import listing
from shardgit.node import create_store, open_store
from shardgit.operate.operation import running, silent_control
from shardgit.progress import Progress
from shardgit.service.access import Rights
from shardgit.service.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PROGRAM = chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium: .ci/browser-setup")

MARKUP = "<img/src=x/onerror=alert(1)>"  # what a ref may be called, and what a path may hold
REPOSITORIES = 23
SLOW_S = 0.000_001  # so every request is slow
SEEN = "Number(document.body.dataset.seen ?? 0)"
AXE = importlib.util.find_spec("axe_core_python")


@pytest.fixture(scope="module")
def tool() -> Iterator[int]:
    assert PROGRAM is not None
    with browser(PROGRAM) as number:
        yield number


@pytest.fixture
async def page(tool: int) -> AsyncIterator[Page]:
    """A tab that must have had nothing to complain about."""
    async with paging(tool) as opened:
        await opened.size(1280)
        yield opened
        assert opened.problems == []
        assert opened.dialogs == []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("console")
    source = small_repository(folder / "source", commits=6)
    git(source, "checkout", "-q", "-b", MARKUP)
    (source / "noise").write_bytes(os.urandom(200_000))
    git(source, "add", ".")
    git(source, "commit", "-q", "-m", "noise")
    done = shardgit("init", "data", "--shards", "3", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = shardgit("repo", "import", "demo", "source", cwd=folder)
    assert done.returncode == 0, done.stderr
    with open_store(folder / "data") as store:
        for number in range(REPOSITORIES - 1):
            store.create_repository(f"team/app-{number:02}")
    return folder / "data"


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[Server]:
    with serving(data, "--workers", "2", environment=slow()) as started:
        yield started


def slow() -> dict[str, str]:
    return {"SHARDGIT_SLOW_REQUEST_S": str(SLOW_S), "SHARDGIT_MAINTENANCE": "off"}


async def look(page: Page, server: Server) -> None:
    """Open the console and wait until it shows the store."""
    await page.open(f"http://{server.admin}/")
    await page.until(f"{SEEN} > 0 && document.querySelectorAll('#bars tbody tr').length > 0")


async def work(server: Server, times: int = 4) -> None:
    for _ in range(times):
        await asyncio.to_thread(git, Path("/"), "ls-remote", server.url("demo"))


async def test_shards_and_repositories_are_what_the_commands_say(
    page: Page, server: Server, data: Path
) -> None:
    await look(page, server)
    done = shardgit("shard", "list", "--data", str(data), "--json", cwd=data.parent)
    shards = json.loads(done.stdout)["shards"]
    rows = await page.run(
        "[...document.querySelectorAll('#bars tbody tr')].map((row) => row.innerText)"
    )
    assert len(rows) == len(shards) == 3
    for row, shard in zip(rows, shards, strict=True):
        assert row.split()[:2] == [str(shard["id"]), "●"]
        assert "active" in row
        assert f"{shard['blocks']}" in row.split()
    arcs = await page.run(
        "[...document.querySelectorAll('#ring .arc')].map((arc) => arc.getAttribute('fill'))"
    )
    assert len(set(arcs)) == 3  # a colour and a pattern each
    name = await page.run("document.querySelector('#ring svg').getAttribute('aria-label')")
    assert name.startswith("Ring of 3 shards: shard 0 33.3 %")
    # Sizes come one after another, for the rows that are there.
    await page.until("!document.querySelector('#list').innerText.includes('…')")
    done = shardgit("repo", "show", "demo", "--data", str(data), "--json", cwd=data.parent)
    objects = json.loads(done.stdout)["objects"]
    first = await page.run("document.querySelector('#list tbody tr').innerText.split(/\\s+/)")
    assert first[0] == "demo"
    assert f"{objects:,}" in first
    assert await page.run("document.querySelectorAll('#list tbody tr').length") == 20
    await page.run("document.querySelector('#next').click()")
    await page.until(f"document.querySelectorAll('#list tbody tr').length === {REPOSITORIES - 20}")
    await page.run("document.querySelector('#before').click()")
    await page.until("document.querySelectorAll('#list tbody tr').length === 20")


async def test_a_search_by_keyboard_finds_a_repository(page: Page, server: Server) -> None:
    await look(page, server)
    await page.run("document.querySelector('#words').focus()")
    await page.type("APP-07")
    await page.press("Enter")
    await page.until("document.querySelectorAll('#list tbody tr').length === 1")
    assert (await page.text("#list tbody th")) == "team/app-07"
    await page.run("document.querySelector('#words').value = 'nobody'")
    await page.press("Enter")
    await page.until("document.querySelector('#list-words').textContent.includes('No name')")


async def test_a_search_goes_on_over_pages_without_a_row(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PASSED_MAX", 1)  # so a page is of one name
    create_store(tmp_path / "store", shards=2)
    with open_store(tmp_path / "store", threads=1) as store:
        for name in (*(f"app-{number:02}" for number in range(60)), "zz"):
            store.create_repository(name)
        async with port(store, tmp_path) as here:
            await page.open(f"http://{here.address}/")
            await page.until("document.querySelectorAll('#list tbody tr').length === 1")
            for words, found in (("app-4", "app-40"), ("app-2", "app-20")):
                await page.run(f"document.querySelector('#words').value = '{words}'")
                await page.run("document.querySelector('#search').requestSubmit()")
                await page.until(
                    f"document.querySelector('#list tbody th')?.textContent === '{found}'"
                )
            # It is bounded: behind 50 names it asks.
            await page.run("document.querySelector('#words').value = 'zz'")
            await page.run("document.querySelector('#search').requestSubmit()")
            further = "document.querySelector('#list-words').textContent.includes('looks further')"
            await page.until(further)
            await page.run("document.querySelector('#next').click()")
            await page.until("document.querySelector('#list tbody th')?.textContent === 'zz'")
            await page.run("document.querySelector('#before').click()")
            await page.until(further)


async def test_traffic_moves_the_numbers_and_shows_what_is_hot_and_slow(
    page: Page, server: Server, tmp_path: Path
) -> None:
    await look(page, server)
    before = await page.run("document.querySelector('#slow-table tbody').children.length")
    await asyncio.to_thread(git, tmp_path, "clone", "-q", server.url("demo"), "clone")
    clone = tmp_path / "clone"
    (clone / "fresh").write_text("fresh\n")
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "fresh")
    await asyncio.to_thread(git, clone, "push", "-q", "origin", "HEAD:refs/heads/fresh")
    await work(server)
    await page.until("document.querySelector('#hot-table tbody th')?.textContent === 'demo'")
    await page.until(
        "['http info_refs', 'http upload_pack', 'http receive_pack'].every((name) =>"
        " document.querySelector('#methods').innerText.includes(name))"
    )
    await page.until("document.querySelector('#tiles .tile .figure').textContent > '0'")
    await page.until(
        f"document.querySelector('#slow-table tbody').children.length > {min(before, 9)}"
    )
    # With what its time went into: as a bar and in words.
    await page.until(
        "[...document.querySelectorAll('#slow-table .into')].some((cell) =>"
        " /work .+s/.test(cell.innerText) && cell.querySelectorAll('.bar rect').length)"
    )
    # Each point is drawn, and read off with the arrow keys.
    await page.until("document.querySelector('#chart .line.requests') !== null")
    await page.until("document.querySelector('#chart').getAttribute('aria-valuemax') > '0'")
    await page.run("document.querySelector('#chart').focus()")
    await page.press("Home")
    first = await page.run("document.querySelector('#chart').getAttribute('aria-valuetext')")
    await page.press("End")
    last = await page.run("document.querySelector('#chart').getAttribute('aria-valuetext')")
    assert "requests/s" in first
    assert first != last
    # The same in numbers, for who cannot see it.
    await page.run("document.querySelector('details').open = true")
    await page.until("document.querySelectorAll('#history tbody tr').length > 0")
    # A page that is opened later has the last minutes at once.
    await look(page, server)
    await page.until("document.querySelector('#chart .line.requests') !== null")


async def test_operations_of_other_processes_show_their_progress(
    page: Page, server: Server, data: Path
) -> None:
    await look(page, server)
    assert await page.text("#operations-none") == "Nothing runs."
    slowly = ("shard", "verify", "--data", str(data), "--throttle", "1KiB/s")
    verifying = subprocess.Popen(
        [sys.executable, "-m", "shardgit", *slowly],
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await page.until("document.querySelector('#running')?.innerText.includes('walking pages')")
        assert not await page.run("document.querySelector('#operations-none').checkVisibility()")
        named = [one["name"] for one in await page.tree() if one["role"] == "progressbar"]
        assert named == ["Verification"]
        bar = "document.querySelector('#operation-gc')?.closest('li').querySelector('progress')"
        with open_store(data) as store, running(store, "gc"):
            for step in (1, 3):
                silent_control().report(Progress(f"step {step}", step << 20, 4 << 20, "bytes"))
                await page.until(f"{bar}?.value === {step / 4}")
                words = await page.text("#operation-gc")
                assert words == "Garbage collection"
                told = await page.run(f"{bar}.closest('li').innerText")
                assert f"step {step}: {step}.0 MiB of 4.0 MiB, {step * 25}.0 %" in told
    finally:
        verifying.send_signal(signal.SIGKILL)  # what it leaves is seen to be dead
        verifying.wait()
    await page.until("document.querySelectorAll('#running li').length === 0")


async def test_markup_from_outside_stays_text(page: Page, server: Server, data: Path) -> None:
    await look(page, server)
    host, _, number = server.http.rpartition(":")
    with socket.create_connection((host, int(number))) as client:
        path = "/%3Cimg%20src=x%20onerror=alert(2)%3E/info/refs?service=git-upload-pack"
        client.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        while client.recv(4_096):
            pass
    await page.until("document.querySelector('#slow-table').innerText.includes('onerror=alert(2)')")
    await page.until(f"document.querySelector('#list').innerText.includes({json.dumps(MARKUP)})")
    await page.run(f"document.querySelector('#words').value = {json.dumps(MARKUP)}")
    await page.run("document.querySelector('#search').requestSubmit()")
    await page.until("document.querySelector('#list-words').textContent.includes('No name')")
    images = "document.querySelectorAll('img:not(.brand img)').length"
    assert await page.run(images) == 0
    # And if a mistake of ours made markup of it, the policy would stop that.
    refused = (
        "(() => { try { document.body.innerHTML = '<b>x</b>'; } catch (e) { return e.name; } })()"
    )
    assert await page.run(refused) == "TypeError"
    page.problems.clear()  # that it told of, which was to be seen


async def test_the_keyboard_reaches_everything_and_the_focus_is_seen(
    page: Page, server: Server
) -> None:
    await look(page, server)
    reached: list[str] = []
    for _ in range(40):
        await page.press("Tab")
        here = await page.run(
            "(() => { const at = document.activeElement; const style = getComputedStyle(at);"
            " return [at.id || at.getAttribute('href') || at.textContent, at.matches(':focus-visible'),"
            " parseFloat(style.outlineWidth), at.tagName]; })()"
        )
        if here[3] == "BODY" or here[0] in reached:
            break
        assert here[1], here
        assert here[2] >= 2, here
        reached.append(here[0])
    wanted = await page.run(
        "[...document.querySelectorAll('a[href], button:enabled, input, summary, [tabindex=\"0\"]')]"
        ".filter((at) => at.checkVisibility() && !at.closest('noscript'))"
        ".map((at) => at.id || at.getAttribute('href') || at.textContent)"
    )
    assert reached == wanted
    assert reached[0] == "#main"
    await page.run("document.querySelector('#theme').focus()")
    for theme in ("light", "dark", "system"):
        await page.press("Enter")
        assert await page.text("#theme") == f"Theme: {theme}"


async def test_a_screen_reader_finds_its_way(page: Page, server: Server) -> None:
    await look(page, server)
    tree = await page.tree()
    roles = [one["role"] for one in tree]
    for role in ("banner", "navigation", "main", "contentinfo", "search", "status"):
        assert roles.count(role) == 1, role
    headings = [one["name"] for one in tree if one["role"] == "heading"]
    assert headings[:3] == ["shardgit", "Now", "Traffic"]
    assert {"Health", "Shards", "Operations", "Slow requests", "Repositories"} <= set(headings)
    levels = await page.run(
        "[...document.querySelectorAll('h1, h2, h3')].filter((h) => h.checkVisibility())"
        ".map((h) => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert await page.run("[...document.querySelectorAll('table')].every((t) => t.caption)")
    nameless = [
        one
        for one in tree
        if one["role"] in ("button", "link", "searchbox", "table", "slider", "progressbar")
        and not one["name"]
    ]
    assert nameless == []


async def test_health_alone_is_read_out(page: Page, server: Server) -> None:
    await look(page, server)
    assert (await page.text("#announce")) == "Health: all is well"
    assert await page.run("document.querySelectorAll('[aria-live]').length") == 1
    await page.run(
        "window.heard = []; new MutationObserver(() => heard.push(document.querySelector('#announce')"
        ".textContent)).observe(document.querySelector('#announce'), {childList: true, subtree: true,"
        " characterData: true}); true"
    )
    seen = await page.run(SEEN)
    await work(server, 2)
    await page.until(f"{SEEN} > {seen + 1}")
    assert await page.run("heard") == []
    while not await page.run("heard.length"):  # one that is back at once is seen by nobody
        for worker in server.workers():
            os.kill(worker, signal.SIGKILL)
        await asyncio.sleep(0.5)
    assert (await page.run("heard"))[0] in {"Health: problems", "Health: does not serve"}
    await page.until("heard[heard.length - 1] === 'Health: all is well'")
    await page.until("document.querySelector('#health-line').textContent.includes(' restart')")


@pytest.mark.skipif(AXE is None, reason="axe-core-python is not installed")
@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)]
)
async def test_axe_finds_nothing(page: Page, server: Server, scheme: str, width: int) -> None:
    await page.prefer(prefers_color_scheme=scheme)
    await page.size(width)
    await work(server, 2)
    await look(page, server)
    await page.until("document.querySelectorAll('#slow-table tbody tr').length > 0")
    assert AXE is not None
    assert AXE.origin is not None
    await page.run(Path(AXE.origin).with_name("axe.min.js").read_text() + ";true")
    found: dict[str, Any] = await page.run("axe.run()")
    said = [
        (one["id"], node["html"][:200], node["failureSummary"])
        for one in found["violations"]
        for node in one["nodes"]
    ]
    assert said == []
    assert len(found["passes"]) > 25
    colours = [one for one in found["passes"] if one["id"] == "color-contrast"]
    assert len(colours[0]["nodes"]) > 40


@pytest.mark.parametrize("width", [360, 720, 1021, 1920])
async def test_no_window_is_too_narrow(page: Page, server: Server, width: int) -> None:
    await page.size(width)
    await look(page, server)
    await page.until("document.querySelectorAll('#list tbody tr').length === 20")
    assert await page.run("document.documentElement.scrollWidth") == width
    beyond = await page.run(
        "[...document.querySelectorAll('main *')].filter((at) => at.checkVisibility() &&"
        f" at.getBoundingClientRect().right > {width} + 0.5 && !at.closest('.unseen, thead, .patterns'))"
        ".map((at) => at.outerHTML.slice(0, 200))"
    )
    assert beyond == []


async def test_light_and_dark_follow_the_system_until_one_is_chosen(
    page: Page, server: Server
) -> None:
    async def light() -> bool:
        red = await page.run(
            "Number(/\\d+/.exec(getComputedStyle(document.body).backgroundColor)[0])"
        )
        return int(red) > 128

    await page.prefer(prefers_color_scheme="dark")
    await look(page, server)
    assert not await light()
    await page.prefer(prefers_color_scheme="light")
    assert await light()
    for _ in range(2):
        await page.run("document.querySelector('#theme').click()")
    assert await page.text("#theme") == "Theme: dark"
    assert not await light()
    await look(page, server)  # it stays when the page is opened again
    assert await page.text("#theme") == "Theme: dark"
    assert not await light()


async def test_nothing_moves_for_who_wants_that(page: Page, server: Server) -> None:
    moves = (
        "(() => { const bar = document.createElement('progress'); document.body.append(bar);"
        " const found = [getComputedStyle(bar).animationName,"
        " getComputedStyle(document.documentElement).scrollBehavior]; bar.remove(); return found; })()"
    )
    await look(page, server)
    await page.prefer(prefers_reduced_motion="no-preference")
    assert await page.run(moves) == ["along", "smooth"]
    await page.prefer(prefers_reduced_motion="reduce")
    assert await page.run(moves) == ["none", "auto"]


async def test_a_server_that_is_gone_is_told_of_and_found_again(
    page: Page, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "data"
    create_store(copy, shards=2)
    address = free_address()
    words = ("--workers", "1", "--admin", address)
    with serving(copy, *words, environment=slow()) as first:
        await look(page, first)
        assert not await page.run("document.querySelector('#lost').checkVisibility()")
    await page.until("document.querySelector('#lost').checkVisibility()")
    assert "connection is lost" in await page.text("#lost-words")
    assert await page.text("#announce") == "The connection to the server is lost."
    with open_store(copy) as store:
        store.create_repository("made/meanwhile")
    seen = await page.run(SEEN)
    with serving(copy, *words, environment=slow()) as second:
        await page.until(f"{SEEN} > {seen} && !document.querySelector('#lost').checkVisibility()")
        await page.until("document.querySelector('#health-word').textContent === 'all is well'")
        await page.until("document.querySelector('#list').innerText.includes('made/meanwhile')")
        await work_at(second)


async def work_at(server: Server) -> None:
    await asyncio.to_thread(git, Path("/"), "ls-remote", server.url("made/meanwhile"))


async def test_beyond_loopback_a_browser_asks_for_a_token_once(page: Page, tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    with open_store(tmp_path / "store", threads=1) as store:
        store.create_repository("only/for-admins")
        _, boss = Tokens(store.journal).create("boss", Rights(admin=True))
        async with port(store, tmp_path, admin=BEYOND) as here:
            await page.answer_who("me", boss)
            await page.open(f"http://{here.address}/")
            await page.until(
                "document.querySelector('#list').innerText.includes('only/for-admins')"
            )
            await page.until(f"{SEEN} > 1")
            assert page.asked_who == 1
            await page.open("about:blank")
