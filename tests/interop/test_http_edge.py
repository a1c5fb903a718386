"""The HTTP edge: what is not a fetch, what is a bad one, and clients that are slow or gone."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import random
import re
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest
from listening import host_and_port, listening
from reference.gits import git

from shardgit.http.app import GitHttp
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.protocol.pktline import FLUSH_BYTES, Mark, Packet, decode, encode
from shardgit.protocol.upload_pack import Fetch
from shardgit.service import fetch as fetch_module
from shardgit.service.fetch import FetchService
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
LIMITS = Limits(request_body_max_bytes=200_000, client_stall_max_s=1.0, request_lines_max=2_000)
REQUEST = {"Content-Type": "application/x-git-upload-pack-request"}
V2 = {"Git-Protocol": "version=2"}
LS_REFS = encode([b"command=ls-refs", Mark.FLUSH])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of 24 MiB that does not compress."""
    folder = tmp_path_factory.mktemp("edge") / "origin"
    folder.mkdir()
    rand = random.Random(1)
    git(folder, "init", "-q", "-b", "main")
    for number in range(24):
        (folder / f"f{number}").write_bytes(rand.randbytes(1 << 20))
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "big")
    git(folder, "tag", "-am", "v1", "v1")
    return folder


@pytest.fixture(scope="module")
def store(source: Path) -> Iterator[Store]:
    create_store(source.parent / "data")
    with open_store(source.parent / "data", limits=LIMITS, threads=2) as opened:
        import_repository(opened, "team/demo", str(source))
        opened.create_repository("empty")
        yield opened


@asynccontextmanager
async def asking(store: Store) -> AsyncIterator[aiohttp.ClientSession]:
    async with listening(GitHttp(store, version="1")) as url, aiohttp.ClientSession(url) as client:
        yield client


async def raw(url: str, data: bytes, *, more: bytes = b"") -> bytes:
    """Send bytes over a plain connection; returns all that comes until its end."""
    reader, writer = await asyncio.open_connection(*host_and_port(url))
    try:
        writer.write(data)
        await writer.drain()
        if more:
            await asyncio.sleep(0.1)
            writer.write(more)
        async with asyncio.timeout(20):
            return await reader.read()
    finally:
        writer.close()


def main_of(source: Path) -> ObjectId:
    return ObjectId(bytes.fromhex(git(source, "rev-parse", "main").decode().strip()))


def clone_body(source: Path, *words: bytes) -> bytes:
    head: list[Packet] = [b"command=fetch", Mark.DELIM, b"ofs-delta", *words]
    tip = main_of(source).hex().encode()
    return encode([*head, b"want " + tip, b"done", Mark.FLUSH])


# ---- what is not a fetch ----


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        (["git_server.example:7421"], b"200"),
        (["[::1]:7421"], b"200"),
        ([], b"200"),  # HTTP/1.0
        (["a b"], b"400"),
        (["evil.example/x?"], b"400"),
        (["user@evil.example"], b"400"),
        (["evil.example:1:2"], b"400"),
        (["a", "b"], b"400"),
    ],
)
async def test_a_host_that_is_none_is_refused(
    store: Store, hosts: list[str], status: bytes
) -> None:
    head = "GET /team/demo.git/info/refs?service=git-upload-pack HTTP/1.0\r\n"
    head += "".join(f"Host: {host}\r\n" for host in hosts)
    async with listening(GitHttp(store, version="1")) as url:
        answer = await raw(url, head.encode() + b"\r\n")
    assert answer.split(None, 2)[1] == status, answer[:300]


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/nobody.git/info/refs?service=git-upload-pack", 404, "repository does not exist"),
        ("/team/demo.git/info/refs", 403, "dumb HTTP protocol is not served"),
        ("/team/demo.git/info/refs?service=rm", 403, "service is not known"),
        ("/team/demo.git/HEAD", 404, "not found"),
        ("/team/demo.git/git-upload-pack", 405, "method not allowed"),
        ("/team/demo.git/git-receive-pack", 405, "method not allowed"),
        ("/nobody.git/info/refs?service=git-receive-pack", 404, "repository does not exist"),
        ("/%FF%FE.git/info/refs?service=git-upload-pack", 404, "repository does not exist"),
        ("/a%00b.git/info/refs?service=git-upload-pack", 404, "repository does not exist"),
        ("/a%0Ab.git/info/refs?service=git-upload-pack", 404, "not found"),
        ("/%2e%2e/team/demo/info/refs?service=git-upload-pack", 404, "repository does not exist"),
        (f"/{'x' * 4000}.git/info/refs?service=git-upload-pack", 404, "repository does not exist"),
        ("/", 200, "git clone"),
    ],
)
async def test_what_is_refused_says_so_in_one_line(
    store: Store, path: str, status: int, text: str
) -> None:
    async with listening(GitHttp(store, version="1")) as url:
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        head, _, body = (await raw(url, request.encode())).decode().partition("\r\n\r\n")
    assert f" {status} " in head.splitlines()[0], head
    assert text in body
    assert body.count("\n") == 1
    assert "text/plain" in head
    assert re.search(r"(?im)^x-request-id: \w+", head)


async def test_methods_that_do_not_fit_name_those_that_do(store: Store) -> None:
    async with asking(store) as client:
        async with client.put("/team/demo.git/info/refs") as answer:
            assert answer.status == 405
            assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD"}
        async with client.post("/team/demo.git/git-receive-pack", data=b"0000") as answer:
            assert answer.status == 415
            kind = "application/x-git-receive-pack-request"
            assert await answer.text() == f"content type must be {kind}\n"


async def test_advertisements_are_typed_and_never_cached(store: Store, source: Path) -> None:
    want = "/team/demo.git/info/refs?service=git-upload-pack"
    tip = main_of(source).hex().encode()
    async with asking(store) as client:
        for protocol, first in (
            ("version=2", b"000eversion 2\n"),
            ("version=1", b"001e# service=git-upload-pack\n0000000eversion 1\n"),
            ("version=0", b"001e# service=git-upload-pack\n0000"),
            ("version=9", b"001e# service=git-upload-pack\n0000"),
            ("key=value:version=2:version=1", b"000eversion 2\n"),
        ):
            async with client.get(
                want, headers={"Git-Protocol": protocol, "X-Request-Id": "mine"}
            ) as answer:
                body = await answer.read()
                assert body.startswith(first)
                assert (tip + b" HEAD\0" in body) == first.startswith(b"001e")
                assert body.endswith(FLUSH_BYTES)
                assert answer.content_type == "application/x-git-upload-pack-advertisement"
                assert "no-cache" in answer.headers["Cache-Control"]
                assert answer.headers["Expires"] == "Fri, 01 Jan 1980 00:00:00 GMT"
                assert answer.headers["X-Request-Id"] == "mine"
                assert int(answer.headers["Content-Length"]) == len(body)
        async with client.head(want.replace(".git", "")) as answer:
            assert answer.status == 200
            assert await answer.read() == b""


async def test_refs_of_many_pages_are_listed_once_each(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "PAGE_REFS", 1)
    async with asking(store) as client:
        for _ in range(2):
            headers = {**REQUEST, **V2}
            url = "/team/demo/git-upload-pack"
            async with client.post(url, data=LS_REFS, headers=headers) as answer:
                names = [
                    packet.split()[1] if isinstance(packet, bytes) else packet
                    for packet in decode(await answer.read())
                ]
            assert names == [b"HEAD", b"refs/heads/main", b"refs/tags/v1", Mark.FLUSH]


# ---- bodies ----


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "identity", ""])
async def test_bodies_come_gzipped_chunked_and_expecting(store: Store, encoding: str) -> None:
    data = gzip.compress(LS_REFS) if "gzip" in encoding else LS_REFS

    async def pieces() -> AsyncIterator[bytes]:
        for byte in data:
            yield bytes([byte])

    headers = {**REQUEST, **V2, "Content-Encoding": encoding}
    async with (
        asking(store) as client,
        client.post(
            "/team/demo.git/git-upload-pack", data=pieces(), headers=headers, expect100=True
        ) as answer,
    ):
        assert answer.status == 200
        assert answer.content_type == "application/x-git-upload-pack-result"
        assert b"refs/heads/main" in await answer.read()


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        (b"x" * 200_001, {}, 413),
        (gzip.compress(bytes(50_000_000)), {"Content-Encoding": "gzip"}, 413),
        (gzip.compress(b"0000" * 10_000_000), {"Content-Encoding": "gzip"}, 413),
        (gzip.compress(LS_REFS)[:-3], {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(LS_REFS) + b"tail", {"Content-Encoding": "gzip"}, 400),
        (b"no gzip", {"Content-Encoding": "gzip"}, 400),
        (b"", {"Content-Encoding": "gzip"}, 400),
        (LS_REFS, {"Content-Encoding": "br"}, 415),
        (LS_REFS, {"Content-Type": "text/plain"}, 415),
        (LS_REFS, {"Expect": "the worst"}, 417),
    ],
)
async def test_bodies_that_are_no_bodies_are_refused(
    store: Store, data: bytes, headers: dict[str, str], status: int
) -> None:
    async with (
        asking(store) as client,
        client.post(
            "/team/demo.git/git-upload-pack", data=data, headers={**REQUEST, **V2, **headers}
        ) as answer,
    ):
        assert answer.status == status
        text = await answer.text()
        assert text.count("\n") == 1 or status == 417, text  # the server's own


@pytest.mark.parametrize("version", [{}, V2])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"0003", "impossible"),
        (b"zzzz", "not hex"),
        (b"fff5" + b"x" * 70_000, "impossible"),
        (b"0032want", "inside a packet"),
        (b"0009hello0000", ""),
        (encode([b"command=nope", Mark.FLUSH]), ""),
        (encode([b"want " + b"1" * 39, Mark.FLUSH]), ""),
    ],
)
async def test_bad_requests_get_one_error_line(
    store: Store, version: dict[str, str], data: bytes, words: str
) -> None:
    headers = {**REQUEST, **version}
    async with (
        asking(store) as client,
        client.post("/team/demo.git/git-upload-pack", data=data, headers=headers) as answer,
    ):
        assert answer.status == 200
        (packet,) = decode(await answer.read())
    assert isinstance(packet, bytes)
    assert packet.startswith(b"ERR ")
    assert words in packet.decode()


async def test_too_many_lines_are_refused(store: Store) -> None:
    have = b"have " + b"1" * 40
    data = encode([b"command=fetch", Mark.DELIM, *[have] * 2_001, Mark.FLUSH])
    headers = {**REQUEST, **V2}
    async with (
        asking(store) as client,
        client.post("/team/demo.git/git-upload-pack", data=data, headers=headers) as answer,
    ):
        assert b"ERR request has too many lines" in await answer.read()


@pytest.mark.parametrize("version", ["0", "2"])
async def test_a_want_that_is_not_ours_is_refused_in_gits_words(
    store: Store, source: Path, tmp_path: Path, version: str
) -> None:
    """An object that the pool holds and no ref of the repository reaches is not ours either."""
    git(tmp_path, "init", "-q", "c")
    name = "1" * 40
    async with listening(GitHttp(store, version="1")) as url:
        words = ("-c", f"protocol.version={version}", "fetch", f"{url}/team/demo.git", name)
        shown = await asyncio.to_thread(git, tmp_path / "c", *words, check=False)
        assert f"remote error: upload-pack: not our ref {name}".encode() in shown
        data = encode([f"want {name}".encode(), Mark.FLUSH, b"done"])
        async with (
            aiohttp.ClientSession(url) as client,
            client.post("/team/demo.git/git-upload-pack", data=data, headers=REQUEST) as answer,
        ):
            (packet,) = decode(await answer.read())
            assert packet == f"ERR upload-pack: not our ref {name}\n".encode()


async def test_a_body_that_does_not_come_is_given_up(store: Store) -> None:
    head = (
        "POST /team/demo.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
        "Content-Type: application/x-git-upload-pack-request\r\n\r\n"
    )
    async with listening(GitHttp(store, version="1")) as url:
        answer = await raw(url, head.encode() + b"0000")
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_push_may_make_its_pack_behind_its_commands(store: Store, source: Path) -> None:
    """git begins to send where commands take more than its buffer, and finds its deltas then."""
    tip = git(source, "rev-parse", "HEAD").decode().strip()
    command = f"{'0' * 40} {tip} refs/heads/late\0report-status".encode()
    empty = b"PACK" + bytes([0, 0, 0, 2, 0, 0, 0, 0])

    async def body(pauses: int) -> AsyncIterator[bytes]:
        yield encode([command, Mark.FLUSH])
        for _ in range(pauses):
            await asyncio.sleep(2 * store.limits.client_stall_max_s)
            yield empty[:1]
        yield empty[pauses:] + hashlib.sha1(empty).digest()

    headers = {"Content-Type": "application/x-git-receive-pack-request"}
    async with (
        listening(GitHttp(store, version="1")) as url,
        aiohttp.ClientSession(url) as client,
    ):
        path = "/team/demo.git/git-receive-pack"
        async with client.post(path, data=body(1), headers=headers) as answer:
            assert answer.status == 200
            assert b"ok refs/heads/late" in await answer.read()
        async with client.post(path, data=body(2), headers=headers) as answer:
            assert answer.status == 408  # once, and not again and again


async def test_a_body_that_comes_by_drops_is_given_up(store: Store) -> None:
    """A byte each 50 ms is something all the while, and less than the slowest that is waited for."""
    head = (
        "POST /team/demo.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
        "Content-Type: application/x-git-upload-pack-request\r\n\r\n"
    )
    async with listening(GitHttp(store, version="1")) as url, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(*host_and_port(url))
        writer.write(head.encode())
        answer = asyncio.ensure_future(reader.read(13))
        while not answer.done():
            writer.write(b"0")
            await asyncio.sleep(0.05)
        writer.close()
    assert answer.result() == b"HTTP/1.1 408 "


async def test_broken_chunks_are_no_body(store: Store) -> None:
    head = (
        "POST /team/demo.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        "Content-Type: application/x-git-upload-pack-request\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    async with listening(GitHttp(store, version="1")) as url:
        answer = await raw(url, head.encode(), more=b"nonsense\r\n")
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 408 ")), answer


# ---- packs ----


async def test_a_repository_without_objects_has_an_empty_pack_for_who_waits(store: Store) -> None:
    data = encode([b"command=fetch", Mark.DELIM, b"wait-for-done", b"done", Mark.FLUSH])
    async with (
        asking(store) as client,
        client.post("/empty/git-upload-pack", data=data, headers={**REQUEST, **V2}) as answer,
    ):
        packets = decode(await answer.read())
    assert packets[0] == b"packfile\n"
    assert any(isinstance(p, bytes) and p.startswith(b"\x01PACK\0\0\0\2\0\0\0\0") for p in packets)
    assert packets[-1] is Mark.FLUSH


async def test_sideband_all_carries_the_sections_on_band_1(store: Store, source: Path) -> None:
    async with (
        asking(store) as client,
        client.post(
            "/team/demo/git-upload-pack",
            data=clone_body(source, b"sideband-all", b"no-progress"),
            headers={**REQUEST, **V2},
        ) as answer,
    ):
        packets = decode(await answer.read())
    assert packets[0] == b"\x01packfile\n"
    assert {packet[0] for packet in packets if isinstance(packet, bytes)} == {1}


async def test_a_slow_client_stops_the_producer(store: Store, source: Path) -> None:
    """Chunks are pulled: with nothing read, little more than the kernel's buffers is made."""
    made = 0
    body = clone_body(source)

    class Counting(FetchService):
        async def fetch(self, name, request, **words):  # type: ignore[no-untyped-def]
            nonlocal made
            async for piece in super().fetch(name, request, **words):
                made += len(piece)
                yield piece

    service = GitHttp(store, version="1", fetches=Counting(store, version="1"))
    async with listening(service) as url:
        head = (
            "POST /team/demo/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"
            f"Content-Type: {REQUEST['Content-Type']}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(*host_and_port(url), limit=1 << 16)
        writer.write(head.encode() + body)
        await asyncio.sleep(0.5)
        assert 0 < made < 16 << 20
        # ... and after a while without any progress the connection is cut.
        begun = time.monotonic()
        with pytest.raises((ConnectionError, TimeoutError)):
            async with asyncio.timeout(10):
                await asyncio.sleep(3.0)
                while await reader.read(1 << 16):
                    pass
                raise ConnectionResetError  # an end without the rest is a cut as well
        assert made < 24 << 20
        assert time.monotonic() - begun < 10
        writer.close()


async def test_a_client_that_leaves_ends_the_work(store: Store, source: Path) -> None:
    ended = asyncio.Event()
    body = clone_body(source)

    class Watched(FetchService):
        async def fetch(self, name, request, **words):  # type: ignore[no-untyped-def]
            try:
                async for piece in super().fetch(name, request, **words):
                    yield piece
            finally:
                ended.set()

    service = GitHttp(store, version="1", fetches=Watched(store, version="1"))
    async with listening(service) as url:
        head = (
            "POST /team/demo/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"
            f"Content-Type: {REQUEST['Content-Type']}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(*host_and_port(url), limit=1 << 16)
        writer.write(head.encode() + body)
        await reader.readexactly(1000)
        writer.transport.abort()
        async with asyncio.timeout(0.9):  # less than a stall takes to be seen
            await ended.wait()


async def test_silence_is_filled_with_keepalives(source: Path, store: Store) -> None:
    """While the only workers are busy, nothing is made."""
    service = FetchService(store, version="1", keepalive_s=0.02)
    many = tuple(ObjectId(number.to_bytes(20, "big")) for number in range(600))
    request = Fetch(2, (main_of(source),), many, done=True, sideband=2)  # not held back to be kept
    stream = service.fetch("team/demo", request)
    assert await anext(stream) == b"000dpackfile\n"
    busy = [asyncio.ensure_future(store.workers.run(time.sleep, 0.2)) for _ in range(2)]
    await asyncio.sleep(0)
    rest = [piece async for piece in stream]
    await asyncio.gather(*busy)
    assert rest[:3] == [b"0005\x01"] * 3
    assert rest[-1] == FLUSH_BYTES


@pytest.mark.parametrize("sideband", ["", "side-band", "side-band-64k"])
async def test_damage_found_in_mid_pack_is_told_on_band_3_or_breaks_the_answer(
    source: Path, tmp_path: Path, sideband: str
) -> None:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=LIMITS) as store:
        import_repository(store, "demo", str(source))
        with store.journal.snapshot() as snapshot:
            view = store.view(store.state(snapshot, "demo").pool)
        assert view is not None
        store.blocks.delete_many_sync([view.segments[-4].entry.ref.id])
        tip = main_of(source).hex()
        data = encode([f"want {tip} {sideband} ofs-delta".encode(), Mark.FLUSH, b"done"])
        async with (
            asking(store) as client,
            client.post("/demo/git-upload-pack", data=data, headers=REQUEST) as answer,
        ):
            if not sideband:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.read()
                return
            packets = decode(await answer.read())
        assert isinstance(packets[-1], bytes)
        assert packets[-1].startswith(b"\x03shardgit: block is missing (request ")
        longest = max(len(packet) for packet in packets if isinstance(packet, bytes))
        assert longest <= (996 if sideband == "side-band" else 65_516)


@pytest.mark.parametrize("version", ["0", "1", "2"])
async def test_git_shows_progress_and_the_clone_is_whole(
    store: Store, source: Path, tmp_path: Path, version: str
) -> None:
    async with listening(GitHttp(store, version="1")) as url:
        words = ["-c", f"protocol.version={version}", "clone"]
        shown = await asyncio.to_thread(
            git, tmp_path, *words, "--progress", "--bare", f"{url}/team/demo", "c", check=False
        )
    assert re.search(rb"remote: Enumerating objects: 27, done.", shown), shown
    assert re.search(rb"remote: Total 27 \(reused 27", shown)
    git(tmp_path / "c", "fsck", "--strict")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("127.0.0.1.evil.example:7421", 403),
        ("evil.example.:7421", 403),
        ("localhost:1", 200),
        ("store.localhost", 200),
        ("127.0.0.1:7421", 200),
        ("[::1]:7421", 200),
        ("192.0.2.7", 200),  # no page has an address for a name but its own
        ("shardgit:7421", 200),
        ("Git.Example.org", 200),
    ],
)
async def test_a_page_whose_name_leads_here_reads_nothing(
    store: Store, host: str, status: int
) -> None:
    service = GitHttp(store, version="1", url="https://git.example.org/x", is_private=True)
    async with listening(service) as url, aiohttp.ClientSession(url) as client:
        path = "/team/demo.git/info/refs?service=git-upload-pack"
        async with client.get(path, headers={"Host": host}) as answer:
            assert answer.status == status
            assert ("http_url" in await answer.text()) == (status == 403)
    async with (
        listening(GitHttp(store, version="1")) as url,
        aiohttp.ClientSession(url) as client,
        client.get(path, headers={"Host": host}) as answer,
    ):
        assert answer.status == 200
