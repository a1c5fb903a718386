"""The gRPC edge: typed errors, health, reflection, streams that break the rules, both clients."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from reference.gits import git, make_history

import shardgit
import shardgit.aio
from shardgit.errors import (
    InvalidArgument,
    InvalidRepositoryName,
    ObjectMissing,
    PathMissing,
    RefMissing,
    RepositoryExists,
    RepositoryMissing,
    Unavailable,
)
from shardgit.node import create_store, open_store
from shardgit.rpc.server import make_server
from shardgit.service.importing import import_repository
from shardgit.v1 import object_pb2, object_pb2_grpc, repository_pb2, repository_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
BIG = 9 << 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("rpc")
    origin = make_history(folder / "work", commits=12)
    (origin / "big").write_bytes(random.Random(1).randbytes(BIG))
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "big")
    create_store(folder / "data", shards=2)
    with open_store(folder / "data") as opened:
        import_repository(opened, "demo", str(origin))
        yield opened


@pytest.fixture
async def target(store: Store) -> AsyncIterator[str]:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    server = await make_server(store, address)
    await server.start()
    yield address
    await server.stop(5)


async def test_errors_come_back_as_the_classes_that_were_raised(target: str) -> None:
    async with shardgit.aio.connect(target) as client:
        repo = client.repo("demo")
        for wanted, call in (
            (RepositoryMissing, client.repository("nobody")),
            (RepositoryExists, client.create("demo")),
            (InvalidRepositoryName, client.create("../evil")),
            (RefMissing, repo.ref("refs/heads/nothing")),
            (RefMissing, repo.commit_info("nothing")),
            (ObjectMissing, repo.open("0" * 40)),
            (PathMissing, repo.read("HEAD", "no/such/path")),
            (InvalidArgument, repo.read("HEAD", "sub")),
            (InvalidArgument, repo.commit_info("HEAD^{tree}")),
            (InvalidArgument, repo.commit_info("HEAD~nonsense{")),
        ):
            with pytest.raises(wanted) as failed:
                await call
            assert type(failed.value) is wanted
            assert failed.value.facts


async def test_a_status_has_the_code_and_the_details_of_its_error(target: str) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = repository_pb2_grpc.RepositoryServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.GetRepository(repository_pb2.GetRepositoryRequest(name="nobody"))
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    status = rpc_status.from_call(failed.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("shardgit", "REPOSITORY_MISSING")
    assert dict(info.metadata) == {"repository": '"nobody"'}


async def test_streams_that_break_the_rules_are_refused(target: str) -> None:
    request = object_pb2.GetObjectsRequest
    header = request(header=request.Header(repository="demo"))
    data = request(data=request.Data(ids=[bytes(20)]))
    async with grpc.aio.insecure_channel(target) as channel:
        stub = object_pb2_grpc.ObjectServiceStub(channel)  # type: ignore[no-untyped-call]
        for messages in ([data], [header, header], [request(), data]):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                async for _ in stub.GetObjects(iter(messages)):
                    pass
            assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        answers = [answer async for answer in stub.GetObjects(iter([header, data]))]
        assert [(a.ids, a.types, list(a.sizes)) for a in answers] == [(bytes(20), b"\0", [0])]
        wrong = request(data=request.Data(ids=[b"", b"x", bytes(32)]))
        answers = [answer async for answer in stub.GetObjects(iter([header, wrong]))]
        assert b"".join(answer.types for answer in answers) == b"\0\0\0"


async def test_a_large_object_spans_messages_of_a_mebibyte(target: str) -> None:
    async with shardgit.aio.connect(target) as client:
        facts, pieces = await client.repo("demo").open("HEAD:big")
        sizes = [len(piece) async for piece in pieces]
        assert (facts.size, sum(sizes)) == (BIG, BIG)
        assert max(sizes) <= 1 << 20
        (found,) = [one async for one in client.repo("demo").objects([facts.id])]
        assert found is not None
        assert found.data == random.Random(1).randbytes(BIG)


async def test_a_stream_that_is_left_does_no_more_work(target: str) -> None:
    async with shardgit.aio.connect(target) as client:
        stream = client.repo("demo").list_objects()
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        assert (await client.repo("demo").stats()).refs > 3


async def test_repositories_are_made_listed_renamed_and_deleted(target: str) -> None:
    async with shardgit.aio.connect(target) as client:
        for number in range(5):
            await client.create(f"many/r{number}", object_format="sha256" if number % 2 else "sha1")
        names = [info.name async for info in client.repositories("many/")]
        assert names == [f"many/r{number}" for number in range(5)]
        assert (await client.repository("many/r1")).hash_kind.git_name == "sha256"
        await client.rename("many/r4", "many/q")
        await client.delete("many/r0")
        names = [info.name async for info in client.repositories("many/")]
        assert names == ["many/q", "many/r1", "many/r2", "many/r3"]
        with pytest.raises(RepositoryMissing):
            await client.repository("many/r4")
        await client.create("many/r0")


async def test_health_and_reflection_know_every_service(target: str) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "shardgit.v1.ObjectService", "shardgit.v1.ShardService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
    names = {
        service.name for answer in answers for service in answer.list_services_response.service
    }
    services = ("Object", "Repository", "Ref", "Commit", "Shard")
    assert {f"shardgit.v1.{name}Service" for name in services} <= names


async def test_the_synchronous_client_serves_many_threads(target: str) -> None:
    def work() -> int:
        with shardgit.connect(target) as client:
            return sum(1 for _ in client.repo("demo").list_objects())

    counts = await asyncio.gather(*(asyncio.to_thread(work) for _ in range(6)))
    assert len(set(counts)) == 1


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with shardgit.aio.connect("127.0.0.1:1") as client:
        with pytest.raises(Unavailable):
            await client.repository("demo")
