"""Git LFS over HTTP: what the API's text says, and stock git-lfs as the judge."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from listening import host_and_port, listening

from shardgit.http.app import GitHttp
from shardgit.limits import MIB, Limits
from shardgit.node import create_store, open_store
from shardgit.service.configuring import Configuring
from shardgit.service.forks import fork
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
needs_client = pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is not there")
LIMITS = Limits(
    lfs_object_max_bytes=8 * MIB,
    lfs_batch_objects_max=20,
    lfs_request_max_bytes=20_000,
    lfs_locks_page_max=3,
    client_stall_max_s=1.0,
)
JSON = {"Content-Type": "application/vnd.git-lfs+json", "Accept": "application/vnd.git-lfs+json"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("lfs") / "data"
    create_store(folder)
    with open_store(folder, limits=LIMITS, threads=2) as opened:
        opened.create_repository("team/demo")
        yield opened


@asynccontextmanager
async def asking(store: Store) -> AsyncIterator[aiohttp.ClientSession]:
    async with listening(GitHttp(store, version="1")) as url, aiohttp.ClientSession(url) as client:
        yield client


def sample(size: int, seed: int) -> tuple[bytes, str]:
    data = random.Random(seed).randbytes(size)
    return data, hashlib.sha256(data).hexdigest()


def basic(user: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:x".encode()).decode()


async def ask(
    client: aiohttp.ClientSession,
    path: str,
    body: Any,
    *,
    headers: dict[str, str] | None = None,
    name: str = "team/demo.git",
) -> tuple[int, Any]:
    """POST JSON; returns status and answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client.post(
        f"/{name}/info/lfs/{path}", data=data, headers={**JSON, **(headers or {})}
    ) as answer:
        assert answer.content_type == "application/vnd.git-lfs+json"
        return answer.status, json.loads(await answer.read())


async def batch(
    client: aiohttp.ClientSession, operation: str, *objects: tuple[str, int], **more: Any
) -> list[dict[str, Any]]:
    body = {"operation": operation, "objects": [{"oid": o, "size": s} for o, s in objects], **more}
    status, answer = await ask(client, "objects/batch", body)
    assert status == 200, answer
    assert answer["transfer"] == "basic"
    assert answer["hash_algo"] == "sha256"
    rows: list[dict[str, Any]] = answer["objects"]
    return rows


# ---- objects ----


async def test_an_object_goes_up_and_comes_down(store: Store) -> None:
    data, oid = sample(3 * MIB + 5, 1)
    async with asking(store) as client:
        (row,) = await batch(client, "download", (oid, len(data)))
        assert row["error"]["code"] == 404
        (row,) = await batch(client, "upload", (oid, len(data)), transfers=["tus", "basic"])
        assert set(row["actions"]) == {"upload", "verify"}
        verify = row["actions"]["verify"]["href"]
        asked = json.dumps({"oid": oid, "size": len(data)})
        async with client.post(verify, data=asked, headers=JSON) as answer:
            assert answer.status == 404
        async with client.put(row["actions"]["upload"]["href"], data=io.BytesIO(data)) as answer:
            assert answer.status == 200
        async with client.post(verify, data=asked, headers=JSON) as answer:
            assert answer.status == 200
        (row,) = await batch(client, "upload", (oid, len(data)), ref={"name": "refs/heads/main"})
        assert "actions" not in row
        assert "error" not in row
        (row,) = await batch(client, "download", (oid, len(data)), ref=None, transfers=["lasers"])
        href = row["actions"]["download"]["href"]
        assert row["authenticated"] is True
        async with client.get(href) as answer:
            assert answer.status == 200
            assert answer.headers["ETag"] == f'"{oid}"'
            assert answer.headers["Content-Length"] == str(len(data))
            assert await answer.read() == data
        async with client.head(href) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Length"] == str(len(data))
        for rows in (
            await batch(client, "download", (oid, 5)),
            await batch(client, "upload", (oid, 5)),
        ):
            assert rows[0]["error"]["code"] == 422


async def test_an_empty_object_is_an_object(store: Store) -> None:
    data, oid = sample(0, 1)
    async with asking(store) as client:
        (row,) = await batch(client, "upload", (oid, 0))
        async with client.put(row["actions"]["upload"]["href"], data=io.BytesIO(data)) as answer:
            assert answer.status == 200
        (row,) = await batch(client, "download", (oid, 0))
        async with client.get(row["actions"]["download"]["href"]) as answer:
            assert answer.status == 200
            assert await answer.read() == b""


async def test_ranges_are_those_of_the_standard(store: Store) -> None:
    size = 2 * MIB + 77
    data, oid = sample(size, 2)
    async with asking(store) as client:
        path = f"/team/demo.git/info/lfs/objects/{oid}"
        async with client.put(f"{path}/{size}", data=io.BytesIO(data)) as answer:
            assert answer.status == 200
        etag = f'"{oid}"'
        for text, low, high in (
            ("bytes=0-0", 0, 1),
            ("bytes=5-", 5, size),
            (f"bytes={MIB - 70}-{MIB + 9}", MIB - 70, MIB + 10),
            ("bytes=-7", size - 7, size),
            (f"bytes=-{size + 9}", 0, size),
            (f"bytes=3-{size + 9}", 3, size),
        ):
            for more in ({}, {"If-Range": etag}):
                async with client.get(path, headers={"Range": text, **more}) as answer:
                    assert answer.status == 206
                    assert answer.headers["Content-Range"] == f"bytes {low}-{high - 1}/{size}"
                    assert await answer.read() == data[low:high]
        for text in ("bytes=-", "bytes=9-3", "bytes=1-2,4-5", "lines=1-2", "bytes=x-"):
            async with client.get(path, headers={"Range": text}) as answer:
                assert answer.status == 200
                assert await answer.read() == data
        async with client.get(path, headers={"Range": "bytes=5-", "If-Range": '"x"'}) as answer:
            assert answer.status == 200
        for text in (f"bytes={size}-", "bytes=-0"):
            async with client.get(path, headers={"Range": text}) as answer:
                assert answer.status == 416
                assert answer.headers["Content-Range"] == f"bytes */{size}"
        async with client.get(path, headers={"If-None-Match": f'"a", W/{etag}'}) as answer:
            assert answer.status == 304


async def test_uploads_that_do_not_match_are_refused_whole(store: Store) -> None:
    data, oid = sample(MIB + 3, 3)
    path = f"/team/demo.git/info/lfs/objects/{oid}"

    async def unannounced() -> AsyncIterator[bytes]:
        yield data + b"x"

    async with asking(store) as client:
        for url, body, status, words in (
            (f"{path}/{len(data)}", data[:-1] + b"!", 400, "does not match its id"),
            (f"{path}/{len(data)}", data[:-1], 400, "another length"),
            (f"{path}/{len(data)}", unannounced(), 400, "larger than announced"),
            (f"{path}/{9 * MIB}", b"", 400, "another length"),
            (f"{path}/{9 * MIB}", bytes(9 * MIB), 413, "too large"),
            (path.replace("team/demo", "nobody") + "/1", b"x", 404, "does not exist"),
        ):
            sent = io.BytesIO(body) if isinstance(body, bytes) else body
            async with client.put(url, data=sent) as answer:
                told = json.loads(await answer.read())
                assert (answer.status, words in told["message"]) == (status, True), told
                assert told["request_id"] == answer.headers["X-Request-Id"]
        (row,) = await batch(client, "download", (oid, len(data)))
        assert row["error"]["code"] == 404
        async with client.get(path) as answer:
            assert answer.status == 404
            assert "message" in json.loads(await answer.read())


async def test_hrefs_follow_what_the_client_called_us(store: Store) -> None:
    body = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 1}]}
    async with asking(store) as client:
        for headers, start in (
            ({"Host": "git.example:81"}, "http://git.example:81/"),
            (
                {"Host": "git.example", "X-Forwarded-Proto": "https"},
                "https://git.example/team/demo.git/info/lfs/objects/000",
            ),
            ({"Host": "[::1]:7", "X-Forwarded-Proto": "gopher"}, "http://[::1]:7/"),
        ):
            _, answer = await ask(
                client, "objects/batch", body, headers=headers, name="team/demo.git"
            )
            assert answer["objects"][0]["actions"]["upload"]["href"].startswith(start)
        path, data = "/team/demo.git/info/lfs/objects/batch", json.dumps(body)
        for host in ("a b", "a/b", 'a"b', "a@b", ""):
            async with client.post(path, data=data, headers={**JSON, "Host": host}) as refused:
                assert refused.status == 400
                assert b"host header" in await refused.read()
        _, answer = await ask(client, "objects/batch", body, headers={"Authorization": basic("a")})
        assert "authenticated" not in answer["objects"][0]
    outside = GitHttp(store, version="1", url="https://git.example/all/")
    async with listening(outside) as url, aiohttp.ClientSession(url) as client:
        _, answer = await ask(client, "objects/batch", body, headers={"Host": "elsewhere"})
        href = answer["objects"][0]["actions"]["upload"]["href"]
        assert href.startswith("https://git.example/all/team/demo.git/info/lfs/objects/000")


async def test_objects_that_cannot_be_are_told_one_by_one(store: Store) -> None:
    good = "1" * 64
    asked = [(good, 1), ("1" * 63, 1), ("G" * 64, 1), (good, -1), (good, 9 * MIB)]
    async with asking(store) as client:
        rows = await batch(client, "upload", *asked)
        assert [row.get("error", {}).get("code", 0) for row in rows] == [0, 422, 422, 422, 422]
        rows = await batch(client, "download", *asked)
        assert [row["error"]["code"] for row in rows] == [404, 422, 422, 422, 404]
        rows = await batch(client, "upload", (good, 1), hash_algo="md5")
        assert rows[0]["error"]["code"] == 409
        assert await batch(client, "upload") == []


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "words"),
    [
        ("objects/batch", b"{", {}, 400, "not JSON"),
        ("objects/batch", b"[" * 19_000, {}, 422, "off"),
        ("objects/batch", b'{"operation":' + b"[" * 19_000, {}, 422, "off"),
        ("objects/batch", b"\xff\xfe", {}, 400, "not JSON"),
        ("objects/batch", {"operation": "upload"}, {}, 422, "objects"),
        ("objects/batch", {"operation": "steal", "objects": []}, {}, 422, "download or upload"),
        (
            "objects/batch",
            {"operation": "upload", "objects": [{"oid": "a", "size": "1"}]},
            {},
            422,
            "size",
        ),
        (
            "objects/batch",
            {"operation": "upload", "objects": [{"oid": "a", "size": 1}] * 21},
            {},
            413,
            "too many objects",
        ),
        ("objects/batch", b" " * 20_001, {}, 413, "too large"),
        ("objects/batch", {}, {"Content-Type": "text/plain"}, 415, "content type"),
        ("objects/batch", {}, {"Accept": "text/html"}, 406, "Accept"),
        ("locks", {}, {}, 422, "path"),
        ("locks", {"path": "../x"}, {}, 422, "not that of a file"),
        ("locks/zz/unlock", {}, {}, 404, "lock does not exist"),
        ("locks/verify", {"limit": "x"}, {}, 422, "limit"),
        ("nothing", {}, {}, 404, "Not found"),
        ("", {}, {}, 404, "Not found"),
    ],
)
async def test_bad_requests_get_one_json_answer(
    store: Store, path: str, body: Any, headers: dict[str, str], status: int, words: str
) -> None:
    async with asking(store) as client:
        got, answer = await ask(client, path, body, headers=headers)
        assert (got, words in answer["message"]) == (status, True), answer
        assert answer["documentation_url"].startswith("https://")
        assert answer["request_id"]
        assert set(answer) == {"message", "documentation_url", "request_id"}


async def test_missing_repositories_are_404_everywhere(store: Store) -> None:
    body = {"operation": "upload", "objects": [], "path": "a", "oid": "0" * 64, "size": 1}
    async with asking(store) as client:
        for path in ("objects/batch", "objects/verify", "locks", "locks/verify"):
            status, answer = await ask(client, path, body, name="nobody.git")
            assert (status, "repository does not exist" in answer["message"]) == (404, True), path
        for path in ("locks", f"objects/{'0' * 64}"):
            async with client.get(f"/nobody.git/info/lfs/{path}") as answer:
                assert answer.status == 404


async def test_where_lfs_is_off_nothing_of_it_is_served(store: Store) -> None:
    store.create_repository("off")
    Configuring(store).update("off", {"lfs.enabled": False})
    body = {"operation": "upload", "objects": [], "path": "a", "oid": "0" * 64, "size": 1}
    async with asking(store) as client:
        for path in ("objects/batch", "objects/verify", "locks", "locks/verify"):
            status, answer = await ask(client, path, body, name="off.git")
            assert (status, "Git LFS is off" in answer["message"]) == (404, True), path
        async with client.put(f"/off.git/info/lfs/objects/{'0' * 64}/1", data=b"x") as answer:
            assert answer.status == 404


async def test_an_upload_that_stops_is_given_up(store: Store) -> None:
    before = sorted(store.blocks.scan_sync())
    oid = "2" * 64
    async with listening(GitHttp(store, version="1")) as url:
        reader, writer = await asyncio.open_connection(*host_and_port(url))
        head = (
            f"PUT /team/demo.git/info/lfs/objects/{oid}/{6 * MIB} HTTP/1.1\r\n"
            f"Host: x\r\nContent-Length: {6 * MIB}\r\n\r\n"
        )
        writer.write(head.encode() + bytes(5 * MIB))
        async with asyncio.timeout(20):
            assert (await reader.read(64)).startswith(b"HTTP/1.1 408 ")
        writer.close()
        # ... and so is one whose client goes away.
        _, writer = await asyncio.open_connection(*host_and_port(url))
        writer.write(head.encode() + bytes(5 * MIB))
        await writer.drain()
        writer.close()
        await asyncio.sleep(0.2)
    assert sorted(store.blocks.scan_sync()) == before


# ---- locks ----


async def test_locks_answer_as_the_text_says(store: Store) -> None:
    store.create_repository("locked")
    alice, bob = ({"Authorization": basic(name)} for name in ("alice", "bob"))
    name = "locked.git"
    async with asking(store) as client:
        body = {"path": "a/b.bin", "ref": {"name": "refs/heads/main"}}
        status, made = await ask(client, "locks", body, headers=alice, name=name)
        assert status == 201
        lock = made["lock"]
        assert lock["owner"] == {"name": "alice"}
        assert lock["path"] == "a/b.bin"
        assert lock["locked_at"].endswith("Z")
        status, answer = await ask(client, "locks", body, headers=bob, name=name)
        assert (status, answer["lock"]) == (409, lock)
        assert answer["message"] == "already created lock"
        for number in range(4):
            await ask(client, "locks", {"path": f"f{number}"}, headers=bob, name=name)

        found: list[Any] = []
        cursor = ""
        while True:
            words = {"limit": "2", **({"cursor": cursor} if cursor else {})}
            async with client.get(f"/{name}/info/lfs/locks", params=words) as got:
                page = json.loads(await got.read())
            assert len(page["locks"]) <= 2
            found += page["locks"]
            cursor = page.get("next_cursor", "")
            if not cursor:
                break
        assert len({each["id"] for each in found}) == 5
        for words in ({"path": "a/b.bin"}, {"id": lock["id"]}):
            async with client.get(f"/{name}/info/lfs/locks", params=words) as got:
                assert json.loads(await got.read()) == {"locks": [lock]}
        async with client.get(f"/{name}/info/lfs/locks", params={"limit": "many"}) as got:
            assert got.status == 422

        _, first = await ask(client, "locks/verify", {}, headers=alice, name=name)
        assert first["ours"] == [lock]
        assert len(first["theirs"]) == 2  # the limit is 3 a page
        after = {"cursor": first["next_cursor"], "limit": 100}
        _, rest = await ask(client, "locks/verify", after, headers=alice, name=name)
        assert (len(rest["ours"]), len(rest["theirs"])) == (0, 2)
        assert "next_cursor" not in rest

        path = f"locks/{lock['id']}/unlock"
        status, answer = await ask(client, path, {}, headers=bob, name=name)
        assert (status, "held by somebody else" in answer["message"]) == (403, True)
        status, answer = await ask(client, path, {"force": True}, headers=bob, name=name)
        assert (status, answer) == (200, {"lock": lock})
        status, _ = await ask(client, path, {}, headers=alice, name=name)
        assert status == 404


# ---- stock git-lfs ----


class Client:
    """Runs git with git-lfs set up, as one user."""

    def __init__(self, folder: Path, user: str = "alice") -> None:
        self.home = folder
        self.user = user
        folder.mkdir(exist_ok=True)
        self("lfs", "install", "--skip-repo", where=folder)

    def __call__(self, *words: str, where: Path, check: bool = True, trace: bool = False) -> str:
        environment = {
            **os.environ,
            "HOME": str(self.home),
            "GIT_CONFIG_GLOBAL": str(self.home / "config"),
            "GIT_CONFIG_SYSTEM": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": self.user,
            "GIT_AUTHOR_EMAIL": "a@b.c",
            "GIT_COMMITTER_NAME": self.user,
            "GIT_COMMITTER_EMAIL": "a@b.c",
        }
        if trace:
            environment |= {"GIT_TRACE": "1", "GIT_CURL_VERBOSE": "1"}
        header = f"http.extraHeader=Authorization: {basic(self.user)}"
        done = subprocess.run(
            ["git", "-c", header, *words],
            cwd=where,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if check:
            assert done.returncode == 0, f"git {words}: {done.stdout}{done.stderr}"
        else:
            assert done.returncode != 0, f"git {words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr


def tracked(client: Client, folder: Path, files: dict[str, bytes]) -> Path:
    """Make a repository whose *.bin are tracked."""
    folder.mkdir()
    client("init", "-q", "-b", "main", where=folder)
    client("lfs", "track", "*.bin", where=folder)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    client("add", "-A", where=folder)
    client("commit", "-qm", "large", where=folder)
    return folder


def flow(store: Store, url: str, folder: Path) -> None:
    """Push objects, clone, fetch again, and resume a download."""
    alice = Client(folder / "alice")
    files = {
        f"f{number}.bin": sample(size, size)[0] for number, size in enumerate((10, 2 * MIB + 9))
    }
    source = tracked(alice, folder / "source", files)
    import_repository(store, "flow", str(source))
    alice("remote", "add", "origin", f"{url}/flow.git", where=source)
    # Nothing is there yet: a clone says what it misses.
    shown = alice("clone", "-q", f"{url}/flow.git", "empty", where=folder, check=False)
    assert "Object does not exist" in shown or "smudge" in shown, shown
    assert "> PUT " in alice("lfs", "push", "--all", "origin", where=source, trace=True)
    assert "> PUT " not in alice("lfs", "push", "--all", "origin", where=source, trace=True)
    alice("clone", "-q", f"{url}/flow.git", "clone", where=folder)
    for name, data in files.items():
        assert (folder / "clone" / name).read_bytes() == data
    alice("lfs", "fsck", where=folder / "clone")

    # A download that broke off goes on where it stopped.
    skip = (
        "-c",
        "filter.lfs.smudge=",
        "-c",
        "filter.lfs.process=",
        "-c",
        "filter.lfs.required=false",
    )
    alice(*skip, "clone", "-q", f"{url}/flow.git", "resumed", where=folder)
    data = files["f1.bin"]
    oid = hashlib.sha256(data).hexdigest()
    part = folder / "resumed" / ".git" / "lfs" / "incomplete" / f"{oid}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(data[: MIB + 1])
    shown = alice("lfs", "pull", where=folder / "resumed", trace=True)
    assert f"Range: bytes={MIB + 1}-" in shown
    assert "206 Partial Content" in shown
    assert (folder / "resumed" / "f1.bin").read_bytes() == data


def corrupted(store: Store, url: str, folder: Path) -> None:
    """An object whose bytes rotted at the client is refused, and the next push of it is not."""
    alice = Client(folder / "alice")
    data, oid = sample(MIB, 9)
    source = tracked(alice, folder / "source", {"f.bin": data})
    import_repository(store, "rotten", str(source))
    alice("remote", "add", "origin", f"{url}/rotten.git", where=source)
    (kept,) = (source / ".git" / "lfs" / "objects").rglob(oid)
    kept.chmod(0o644)
    kept.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    alice("config", "lfs.transfer.maxretries", "1", where=source)
    shown = alice("lfs", "push", "--all", "origin", where=source, check=False)
    assert "does not match its id" in shown, shown
    kept.write_bytes(data)
    alice("lfs", "push", "--all", "origin", where=source)
    alice("clone", "-q", f"{url}/rotten.git", "clone", where=folder)
    assert (folder / "clone" / "f.bin").read_bytes() == data


def locking(store: Store, url: str, folder: Path) -> None:
    """Two users and a lock."""
    alice, bob = Client(folder / "alice", "alice"), Client(folder / "bob", "bob")
    source = tracked(alice, folder / "source", {"f.bin": b"x"})
    import_repository(store, "locking", str(source))
    alice("remote", "add", "origin", f"{url}/locking.git", where=source)
    alice("lfs", "push", "--all", "origin", where=source)
    bob("clone", "-q", f"{url}/locking.git", "bobs", where=folder)
    bobs = folder / "bobs"
    assert "Locked f.bin" in alice("lfs", "lock", "f.bin", where=source)
    assert "already created lock" in bob("lfs", "lock", "f.bin", where=bobs, check=False)
    (row,) = json.loads(bob("lfs", "locks", "--json", where=bobs))
    assert (row["path"], row["owner"]["name"]) == ("f.bin", "alice")
    shown = json.loads(alice("lfs", "locks", "--verify", "--json", where=source))
    assert [len(shown[key] or []) for key in ("ours", "theirs")] == [1, 0]
    shown = json.loads(bob("lfs", "locks", "--verify", "--json", where=bobs))
    assert [len(shown[key] or []) for key in ("ours", "theirs")] == [0, 1]
    bob("lfs", "unlock", "f.bin", where=bobs, check=False)
    assert "Unlocked" in alice("lfs", "unlock", "f.bin", where=source)
    assert "Locked" in bob("lfs", "lock", "f.bin", where=bobs)
    assert "Unlocked" in alice("lfs", "unlock", "--force", "f.bin", where=source)
    assert json.loads(bob("lfs", "locks", "--json", where=bobs)) == []


def pushing(store: Store, url: str, folder: Path) -> None:
    """All that a user does: track, push, clone, change, push, fork, lock against another's push."""
    store.create_repository("pushed")
    alice, bob = Client(folder / "alice", "alice"), Client(folder / "bob", "bob")
    first, second = sample(MIB + 7, 21)[0], sample(100, 22)[0]
    source = tracked(alice, folder / "source", {"f.bin": first})
    alice("remote", "add", "origin", f"{url}/pushed.git", where=source)
    alice("push", "-q", "-u", "origin", "main", where=source)
    bob("clone", "-q", f"{url}/pushed.git", "bobs", where=folder)
    bobs = folder / "bobs"
    assert (bobs / "f.bin").read_bytes() == first
    (bobs / "f.bin").write_bytes(second)
    bob("commit", "-qam", "changed", where=bobs)
    bob("push", "-q", "origin", "main", where=bobs)
    alice("pull", "-q", where=source)
    assert (source / "f.bin").read_bytes() == second

    fork(store, "pushed", "forked")
    bob("clone", "-q", f"{url}/forked.git", "fork", where=folder)
    assert (folder / "fork" / "f.bin").read_bytes() == second
    third = sample(50, 23)[0]
    (folder / "fork" / "f.bin").write_bytes(third)
    bob("commit", "-qam", "only in the fork", where=folder / "fork")
    bob("push", "-q", "origin", "main", where=folder / "fork")
    tip = bob("rev-parse", "HEAD", where=folder / "fork").strip()
    oid = hashlib.sha256(third).hexdigest()
    for name, status in (("forked", 200), ("pushed", 404)):
        assert _status(f"{url}/{name}.git/info/lfs/objects/{oid}") == status
    assert tip not in alice("ls-remote", "origin", where=source)

    alice("lfs", "lock", "f.bin", where=source)
    for where in (source, bobs):
        alice("config", f"lfs.{url}/pushed.git/info/lfs.locksverify", "true", where=where)
    (bobs / "f.bin").write_bytes(third)
    bob("commit", "-qam", "against the lock", where=bobs)
    assert "f.bin - alice" in bob("push", "origin", "main", where=bobs, check=False)
    alice("lfs", "unlock", "f.bin", where=source)
    bob("push", "-q", "origin", "main", where=bobs)


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


@needs_client
@pytest.mark.parametrize("steps", [flow, corrupted, locking, pushing])
async def test_stock_git_lfs(store: Store, tmp_path: Path, steps: Any) -> None:
    async with listening(GitHttp(store, version="1")) as url:
        await asyncio.to_thread(steps, store, url, tmp_path)
