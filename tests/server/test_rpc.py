"""The gRPC edge: typed errors, health, reflection, streams that break the rules, both clients."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
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
from shardgit.limits import DEFAULT
from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.rpc.server import make_server
from shardgit.service.importing import import_repository
from shardgit.service.reading import Reading
from shardgit.service.repositories import Repositories
from shardgit.service.uploading import put_objects
from shardgit.v1 import (
    commit_pb2_grpc,
    object_pb2,
    object_pb2_grpc,
    pack_pb2_grpc,
    ref_pb2_grpc,
    repository_pb2,
    repository_pb2_grpc,
    transport_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

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


async def test_a_call_that_is_refused_while_its_requests_are_written_says_why(target: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"PACK" * 100_000
            await asyncio.sleep(0)

    async with shardgit.aio.connect(target) as client:
        nobody = client.repo("nobody")

        async def objects() -> None:
            async for _ in nobody.objects([bytes(20)] * 20_000):
                pass

        calls = [*(objects() for _ in range(40)), *(nobody.store_pack(pieces()) for _ in range(10))]
        said = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in said} == {RepositoryMissing}


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
        for odd in (b"", b"x", bytes(32)):  # such ids would shift the answer's column
            wrong = request(data=request.Data(ids=[bytes(20), odd]))
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                async for _ in stub.GetObjects(iter([header, wrong])):
                    pass
            assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            asked = object_pb2.GetObjectInfoRequest(repository="demo", ids=[odd])
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                async for _ in stub.GetObjectInfo(asked):
                    pass
            assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_any_order_gives_what_the_order_of_the_request_gives(
    target: str, store: Store
) -> None:
    """Large objects, which are streamed, and absent ids among them; each id as often as it is asked for."""
    ids = [info.id for infos in Reading(store, "demo").all_infos() for info in infos]
    random.Random(3).shuffle(ids)
    ids[7:7] = [ObjectId(bytes(20)), ids[0], ids[0]]
    request = object_pb2.GetObjectsRequest
    told = []
    async with grpc.aio.insecure_channel(target) as channel:
        stub = object_pb2_grpc.ObjectServiceStub(channel)  # type: ignore[no-untyped-call]
        for order in (request.ORDER_ANY, request.ORDER_REQUEST):
            header = request(header=request.Header(repository="demo", order=order))
            some = [request(data=request.Data(ids=one)) for one in (ids[:30], ids[30:])]
            rows: list[tuple[bytes, int, int]] = []
            data = b""
            async for answer in stub.GetObjects(iter([header, *some])):
                assert answer.ByteSize() <= DEFAULT.message_max_bytes
                found = [answer.ids[at : at + 20] for at in range(0, len(answer.ids), 20)]
                rows += zip(found, answer.types, answer.sizes, strict=True)
                data += answer.data
            at, out = 0, []
            for oid, kind, size in rows:
                out.append((oid, kind, data[at : at + size]))
                at += size
            assert at == len(data)
            told.append(out)
    assert [oid for oid, _, _ in told[1]] == ids
    assert sorted(told[0]) == sorted(told[1])
    assert max(len(data) for _, _, data in told[0]) == BIG


async def test_long_words_of_a_client_come_back_cut(target: str) -> None:
    """A status whose trailers pass 8 KiB would reach the client as another error."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = repository_pb2_grpc.RepositoryServiceStub(channel)  # type: ignore[no-untyped-call]
        for name in ("n" * 100_000, "\u00e4" * 50_000):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stub.GetRepository(repository_pb2.GetRepositoryRequest(name=name))
            assert failed.value.code() is grpc.StatusCode.NOT_FOUND
            status = rpc_status.from_call(failed.value)
            assert status is not None
            info = error_details_pb2.ErrorInfo()
            assert status.details[0].Unpack(info)
            assert info.reason == "REPOSITORY_MISSING"
            assert info.metadata["repository"].endswith('..."')


async def test_numbers_that_no_history_has_are_refused(target: str) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = object_pb2_grpc.ObjectServiceStub(channel)  # type: ignore[no-untyped-call]
        for revision in ("HEAD~" + "9" * 5_000, "HEAD^" + "9" * 5_000, "HEAD~1x"):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                asked = object_pb2.GetObjectRequest(repository="demo", revision=revision)
                async for _ in stub.GetObject(asked):
                    pass
            assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        repositories = repository_pb2_grpc.RepositoryServiceStub(channel)  # type: ignore[no-untyped-call]
        create = repository_pb2.CreateRepositoryRequest(name="kind", hash_kind=7)  # type: ignore[arg-type]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await repositories.CreateRepository(create)
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_nobody_expected_is_told_without_its_words(
    target: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret words")

    monkeypatch.setattr(Repositories, "get", broken)
    async with grpc.aio.insecure_channel(target) as channel:
        stub = repository_pb2_grpc.RepositoryServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.GetRepository(repository_pb2.GetRepositoryRequest(name="demo"))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert failed.value.details() == "internal error"
    shown = capfd.readouterr()
    assert "secret words" in shown.out + shown.err


async def test_a_client_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    create_store(tmp_path / "data")
    limits = replace(DEFAULT, client_pause_max_s=0.2)
    with open_store(tmp_path / "data", limits=limits) as store:
        server = await make_server(store, f"unix:{tmp_path}/socket")
        await server.start()
        never = asyncio.Event()

        async def silent() -> AsyncIterator[object]:
            await never.wait()
            yield None

        try:
            async with grpc.aio.insecure_channel(f"unix:{tmp_path}/socket") as channel:
                objects = object_pb2_grpc.ObjectServiceStub(channel)  # type: ignore[no-untyped-call]
                packs = pack_pb2_grpc.PackServiceStub(channel)  # type: ignore[no-untyped-call]
                refs = ref_pb2_grpc.RefServiceStub(channel)  # type: ignore[no-untyped-call]
                commits = commit_pb2_grpc.CommitServiceStub(channel)  # type: ignore[no-untyped-call]
                git_calls = transport_pb2_grpc.TransportServiceStub(channel)  # type: ignore[no-untyped-call]
                streams = (objects.GetObjects, objects.PutObjects, refs.UpdateRefs)
                for method in (*streams, git_calls.ReceivePack):
                    with pytest.raises(grpc.aio.AioRpcError) as failed:
                        async for _ in method(silent(), timeout=20):
                            pass
                    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
                for method in (packs.StorePack, commits.CreateCommit):
                    with pytest.raises(grpc.aio.AioRpcError) as failed:
                        await method(silent(), timeout=20)
                    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            await server.stop(None)


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


async def test_messages_may_be_larger_than_their_data_column(tmp_path: Path) -> None:
    """A data column holds less than 2 MiB, whatever a message may have."""
    create_store(tmp_path / "data")
    limits = replace(DEFAULT, message_max_bytes=4 << 20)
    with open_store(tmp_path / "data", limits=limits) as store:
        Repositories(store).create("demo")
        data = [(3, random.Random(number).randbytes(700_000)) for number in range(4)]
        ids = put_objects(store, "demo", data)
        server = await make_server(store, f"unix:{tmp_path}/socket")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"unix:{tmp_path}/socket") as channel:
                stub = object_pb2_grpc.ObjectServiceStub(channel)  # type: ignore[no-untyped-call]
                request = object_pb2.GetObjectsRequest
                header = request(header=request.Header(repository="demo"))
                some = request(data=request.Data(ids=ids))
                answers = [answer async for answer in stub.GetObjects(iter([header, some]))]
        finally:
            await server.stop(None)
    assert len(answers) > 1
    assert max(len(answer.data) for answer in answers) > 1 << 20
    assert sorted(size for answer in answers for size in answer.sizes) == [700_000] * 4
    whole = b"".join(answer.data for answer in answers)
    assert sorted(whole[at : at + 700_000] for at in range(0, len(whole), 700_000)) == sorted(
        one for _, one in data
    )
