"""Every edge asks once a request whether other nodes have committed; what it does when they do not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import grpc
import pytest
from listening import listening
from reference.gits import git, make_history
from reference.serving import serving_rpc

from shardgit.errors import Unavailable
from shardgit.http.app import GitHttp
from shardgit.journal.lmdb import LmdbJournal
from shardgit.node import create_store, open_store
from shardgit.protocol.pktline import line
from shardgit.service.importing import import_repository
from shardgit.service.repositories import Repositories
from shardgit.v1 import pack_pb2, pack_pb2_grpc, ref_pb2, ref_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as opened:
        Repositories(opened).create("demo")
        yield opened


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The questions; nobody answers them."""
    found: list[bool] = []

    async def fresh(_: LmdbJournal, *, stale_ok: bool = False) -> None:
        found.append(stale_ok)
        if not stale_ok:
            raise Unavailable("journal does not answer in time")

    monkeypatch.setattr(LmdbJournal, "fresh", fresh)
    return found


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "demo.git/info/refs?service=git-upload-pack", 200),
        ("GET", "demo.git/info/refs?service=git-receive-pack", 503),
        ("POST", "demo.git/git-receive-pack", 503),
        ("POST", "demo.git/info/lfs/objects/batch", 503),
        ("GET", "", 200),
    ],
)
async def test_fetches_over_http_go_on_and_pushes_do_not(
    store: Store, asked: list[bool], method: str, path: str, status: int
) -> None:
    async with (
        listening(GitHttp(store, version="1")) as url,
        aiohttp.ClientSession() as session,
        session.request(method, f"{url}/{path}") as answer,
    ):
        assert answer.status == status, await answer.text()
    assert asked == [status == 200]


async def test_only_what_lists_refs_asks_and_what_misses_something(
    store: Store, asked: list[bool], tmp_path: Path
) -> None:
    import_repository(store, "full", str(make_history(tmp_path / "work", commits=12)))
    tip = git(tmp_path / "work", "rev-parse", "HEAD").strip()
    headers = {
        "Git-Protocol": "version=2",
        "Content-Type": "application/x-git-upload-pack-request",
    }

    def command(name: bytes, *rows: bytes) -> bytes:
        lines = [b"command=" + name + b"\n"]
        body = b"".join(map(line, lines)) + b"0001" + b"".join(line(row + b"\n") for row in rows)
        return body + b"0000"

    async with listening(GitHttp(store, version="1")) as url, aiohttp.ClientSession() as session:

        async def ask(path: str, body: bytes | None = None) -> tuple[bytes, list[bool]]:
            asked.clear()
            method = "GET" if body is None else "POST"
            async with session.request(
                method, f"{url}/full.git/{path}", headers=headers, data=body
            ) as answer:
                assert answer.status == 200
                return await answer.read(), list(asked)

        found, questions = await ask("info/refs?service=git-upload-pack")
        assert (b"version 2" in found, questions) == (True, [])
        found, questions = await ask("git-upload-pack", command(b"ls-refs"))
        assert (tip in found, questions) == (True, [True])
        found, questions = await ask("git-upload-pack", command(b"fetch", b"want " + tip, b"done"))
        assert (b"PACK" in found, questions) == (True, [])
        wanted = command(b"fetch", b"want " + b"1" * 40, b"done")
        found, questions = await ask("git-upload-pack", wanted)
        assert (b"ERR" in found, questions) == (True, [True])
        named = command(b"fetch", b"want-ref refs/heads/main", b"done")
        found, questions = await ask("git-upload-pack", named)
        assert (b"PACK" in found, questions) == (True, [True])


async def test_calls_are_unavailable_unless_they_take_stale_answers(
    store: Store, asked: list[bool]
) -> None:
    async with serving_rpc(store) as address, grpc.aio.insecure_channel(address) as channel:
        refs = ref_pb2_grpc.RefServiceStub(channel)  # type: ignore[no-untyped-call]
        packs = pack_pb2_grpc.PackServiceStub(channel)  # type: ignore[no-untyped-call]
        request = ref_pb2.ListRefsRequest(repository="demo")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await refs.ListRefs(request).read()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        call = refs.ListRefs(request, metadata=(("x-stale-ok", "1"),))
        assert await call.read() is grpc.aio.EOF
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await packs.FetchPack(pack_pb2.FetchPackRequest(repository="nobody")).read()
        assert missing.value.code() is grpc.StatusCode.NOT_FOUND
    assert asked == [False, True, True]
