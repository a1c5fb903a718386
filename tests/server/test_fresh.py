"""Every edge asks once a request whether other nodes have committed; what it does when they do not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import grpc
import pytest
from listening import listening
from reference.serving import serving_rpc

from shardgit.errors import Unavailable
from shardgit.http.app import GitHttp
from shardgit.journal.lmdb import LmdbJournal
from shardgit.node import create_store, open_store
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
