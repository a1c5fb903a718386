"""gRPC clients that stop reading are cut off; those that are only slow are not."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import grpc
import pytest
from reference.serving import serving_rpc

from shardgit import telemetry
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.rpc import status
from shardgit.service.repositories import Repositories
from shardgit.service.uploading import put_objects
from shardgit.v1 import object_pb2, object_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from shardgit.oid import ObjectId
    from shardgit.service.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data", shards=1)
    with open_store(tmp_path / "data", limits=Limits(client_stall_max_s=0.5)) as opened:
        Repositories(opened).create("demo")
        yield opened


@pytest.fixture
def blobs(store: Store) -> list[ObjectId]:
    """32 blobs of a MiB: more than gRPC and the socket hold."""
    rand = random.Random(1)
    return put_objects(store, "demo", [(3, rand.randbytes(1 << 20)) for _ in range(32)])


async def asked(ids: list[ObjectId]) -> AsyncIterator[object_pb2.GetObjectsRequest]:
    header = object_pb2.GetObjectsRequest.Header(repository="demo")
    yield object_pb2.GetObjectsRequest(header=header)
    yield object_pb2.GetObjectsRequest(data=object_pb2.GetObjectsRequest.Data(ids=ids))


def active() -> float:
    return telemetry.REGISTRY.get_sample_value("shardgit_requests_active", {"edge": "grpc"}) or 0


async def test_who_stops_reading_is_cut(
    store: Store, blobs: list[ObjectId], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "SLOWEST_BYTES_PER_S", 10 << 20)
    async with serving_rpc(store) as address, grpc.aio.insecure_channel(address) as channel:
        call = object_pb2_grpc.ObjectServiceStub(channel).GetObjects(asked(blobs))  # type: ignore[no-untyped-call]
        assert await call.read() is not grpc.aio.EOF
        assert active() == 1
        async with asyncio.timeout(20):
            while active():
                await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while await call.read() is not grpc.aio.EOF:
                pass
        assert ended.value.code() is not grpc.StatusCode.OK


async def test_who_is_slow_gets_all(
    store: Store, blobs: list[ObjectId], monkeypatch: pytest.MonkeyPatch
) -> None:
    # An answer may take 2.5 or 8 s, all of them take 10: a busy machine may stand still for seconds. The client
    # holds little, else its window grows to 16 MiB, and the server hears nothing while it reads half of that.
    monkeypatch.setattr(status, "SLOWEST_BYTES_PER_S", 1 << 17)
    size = 0
    options = [("grpc.http2.bdp_probe", 0)]
    async with (
        serving_rpc(store) as address,
        grpc.aio.insecure_channel(address, options=options) as channel,
    ):
        call = object_pb2_grpc.ObjectServiceStub(channel).GetObjects(asked(blobs))  # type: ignore[no-untyped-call]
        while (answer := await call.read()) is not grpc.aio.EOF:
            size += len(answer.data)
            await asyncio.sleep(0.25)
    assert size == 32 << 20


@pytest.mark.parametrize("asks", [True, False])
async def test_a_request_that_has_no_end_is_cut(tmp_path: Path, *, asks: bool) -> None:
    create_store(tmp_path / "data", shards=1)
    with open_store(tmp_path / "data", limits=Limits(request_time_max_s=1)) as store:
        Repositories(store).create("demo")
        ids = put_objects(store, "demo", [(3, b"text")])
        turns = 0

        async def forever() -> AsyncIterator[object_pb2.GetObjectsRequest]:
            nonlocal turns
            async for one in asked([]):
                yield one
            while True:  # it is never silent for long
                await asyncio.sleep(0.1)
                if asks:
                    turns += 1
                    data = object_pb2.GetObjectsRequest.Data(ids=ids)
                    yield object_pb2.GetObjectsRequest(data=data)

        async with serving_rpc(store) as address, grpc.aio.insecure_channel(address) as channel:
            call = object_pb2_grpc.ObjectServiceStub(channel).GetObjects(forever())  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                async with asyncio.timeout(20):
                    while await call.read() is not grpc.aio.EOF:
                        pass
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "takes too long" in (ended.value.details() or "")
            async with asyncio.timeout(20):
                while active():
                    await asyncio.sleep(0.1)
        assert not list(store.leases.all())
        assert bool(turns) is asks
