"""A headless Chromium, driven over its DevTools protocol: what a page shows, keys, sizes, colours."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_MAX_S = 60.0
ANSWER_MAX_S = 60.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-default-browser-check",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
KEYS = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowRight": 39,
}


def chromium() -> str | None:
    """Return where Chromium is, None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """A tab. ``problems`` are what its console and its policy had to complain about."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.problems: list[str] = []
        self.dialogs: list[str] = []
        self.asked_who = 0
        self._credentials = ("", "")
        self._begun: set[asyncio.Future[dict[str, Any]]] = set()

    async def listen(self) -> None:
        """Take what the browser says, until it is gone."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._waiting.pop(said["id"]).set_result(said)
            elif said["method"] == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(said["params"]["exceptionDetails"])[:2_000])
            elif said["method"] == "Log.entryAdded":
                entry = said["params"]["entry"]
                if entry["level"] == "error" and entry["source"] != "network":
                    self.problems.append(entry["text"])
            elif said["method"] == "Page.javascriptDialogOpening":
                self.dialogs.append(said["params"]["message"])
                self._soon("Page.handleJavaScriptDialog", accept=True)
            elif said["method"] == "Fetch.requestPaused":
                self._soon("Fetch.continueRequest", requestId=said["params"]["requestId"])
            elif said["method"] == "Fetch.authRequired":
                self.asked_who += 1
                user, password = self._credentials
                answer = {
                    "response": "ProvideCredentials",
                    "username": user,
                    "password": password,
                }
                self._soon(
                    "Fetch.continueWithAuth",
                    requestId=said["params"]["requestId"],
                    authChallengeResponse=answer,
                )

    def _soon(self, method: str, **parameters: object) -> None:
        task = asyncio.ensure_future(self.ask(method, **parameters))
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    async def ask(self, method: str, **parameters: object) -> dict[str, Any]:
        """Have the browser do something; returns its answer."""
        self._number += 1
        answer = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = answer
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async with asyncio.timeout(ANSWER_MAX_S):
            said = await answer
        assert "error" not in said, said
        found: dict[str, Any] = said["result"]
        return found

    async def begin(self) -> None:
        """Have it tell of troubles."""
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            await self.ask(f"{domain}.enable")

    async def open(self, url: str) -> None:
        """Go to an address."""
        await self.ask("Page.navigate", url=url)

    async def answer_who(self, user: str, password: str) -> None:
        """Have the browser's prompt for a password answered."""
        self._credentials = (user, password)
        await self.ask("Fetch.enable", handleAuthRequests=True)

    async def run(self, script: str) -> Any:
        """Return the value of an expression in the page, awaited where it is a promise."""
        said = await self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    async def text(self, selector: str) -> str:
        """Return the text of the first element that a selector finds, "" without one."""
        found = await self.run(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''")
        return str(found)

    async def until(self, script: str, *, seconds: float = 60.0) -> Any:
        """Wait until an expression is true; returns its value."""
        end = time.monotonic() + seconds
        while True:
            with suppress(AssertionError):  # the page is on its way
                found = await self.run(script)
                if found:
                    return found
            if time.monotonic() > end:
                shown = await self.run("document.body?.innerText")
                raise AssertionError(f"never true: {script}\n{shown}\n{self.problems}")
            await asyncio.sleep(0.05)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key."""
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        if key == "Enter":
            code["text"] = "\r"
        for kind in ("keyDown", "keyUp"):
            await self.ask("Input.dispatchKeyEvent", type=kind, modifiers=8 if shift else 0, **code)

    async def type(self, text: str) -> None:
        """Write into what has the focus."""
        await self.ask("Input.insertText", text=text)

    async def size(self, width: int, height: int = 900, *, scale: float = 1) -> None:
        """Make the window that wide and high."""
        await self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    async def prefer(self, **features: str) -> None:
        """Set media features, as the system would: ``prefers_color_scheme="dark"``."""
        wanted = [
            {"name": name.replace("_", "-"), "value": value} for name, value in features.items()
        ]
        await self.ask("Emulation.setEmulatedMedia", features=wanted)

    async def shot(self, path: Path, *, whole: bool = True) -> None:
        """Leave a picture of the page."""
        said = await self.ask("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(said["data"]))

    async def tree(self) -> list[dict[str, Any]]:
        """Return what a screen reader is given: nodes with their role and name."""
        said = await self.ask("Accessibility.getFullAXTree")
        return [
            {
                "role": node.get("role", {}).get("value"),
                "name": node.get("name", {}).get("value", ""),
                "properties": {
                    one["name"]: one["value"].get("value") for one in node.get("properties", ())
                },
            }
            for node in said["nodes"]
            if not node["ignored"]
        ]


@contextmanager
def browser(program: str) -> Iterator[int]:
    """Run a browser until the block is left; gives the port that it is driven through."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield _port(Path(profile), process)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@asynccontextmanager
async def paging(port: int) -> AsyncIterator[Page]:
    """Give a tab of a browser's own, which keeps nothing of other tabs."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/version") as answer:
            url = (await answer.json())["webSocketDebuggerUrl"]
        async with session.ws_connect(url, max_msg_size=0) as whole:
            boss = Page(whole)
            listening = asyncio.ensure_future(boss.listen())
            apart = await boss.ask("Target.createBrowserContext")
            target = await boss.ask("Target.createTarget", url="about:blank", **apart)
            url = f"ws://127.0.0.1:{port}/devtools/page/{target['targetId']}"
            try:
                async with session.ws_connect(url, max_msg_size=0) as socket:
                    page = Page(socket)
                    hearing = asyncio.ensure_future(page.listen())
                    try:
                        await page.begin()
                        yield page
                    finally:
                        hearing.cancel()
                        await asyncio.wait({hearing})
                await boss.ask("Target.disposeBrowserContext", **apart)
            finally:
                listening.cancel()
                await asyncio.wait({listening})


def _port(profile: Path, process: subprocess.Popen[bytes]) -> int:
    """Return the port that the browser has taken, once it has."""
    end = time.monotonic() + START_MAX_S
    while time.monotonic() < end:
        assert process.poll() is None, "the browser ended at once"
        with suppress(OSError, IndexError, ValueError):
            return int((profile / "DevToolsActivePort").read_text().splitlines()[0])
        time.sleep(0.05)
    raise AssertionError("the browser did not start")
