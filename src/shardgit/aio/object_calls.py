"""Objects and packs of a repository, read and stored by id."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from shardgit import errors
from shardgit.aio.answers import (
    each,
    facts_of,
)
from shardgit.aio.values import (
    Object,
    ObjectFacts,
    StoredPack,
)
from shardgit.oid import ObjectId
from shardgit.v1 import (
    object_pb2,
    object_pb2_grpc,
    pack_pb2,
    pack_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence

    from shardgit.aio.client import Client


IDS_PER_MESSAGE = 2_000
PIECE_BYTES = 1_000_000  # of an object, a file or a pack in one message
TYPES = {"commit": 1, "tree": 2, "blob": 3, "tag": 4}


class ObjectCalls:
    """The methods of a Repo for objects and packs."""

    client: Client
    name: str

    async def objects(self, ids: Iterable[bytes]) -> AsyncIterator[Object | None]:
        """Return objects in the order of ``ids`` (raw), None where the repository has none."""

        async def requests() -> AsyncIterator[object_pb2.GetObjectsRequest]:
            header = object_pb2.GetObjectsRequest.Header(
                repository=self.name, order=object_pb2.GetObjectsRequest.ORDER_REQUEST
            )
            yield object_pb2.GetObjectsRequest(header=header)
            source = iter(ids)
            while some := list(itertools.islice(source, IDS_PER_MESSAGE)):
                yield object_pb2.GetObjectsRequest(data=object_pb2.GetObjectsRequest.Data(ids=some))

        size = 0
        waiting: list[tuple[ObjectId, int, int]] = []
        held = bytearray()
        async for answer in self.client.stream(
            object_pb2_grpc.ObjectServiceStub, "GetObjects", requests()
        ):
            if answer.types:
                size = len(answer.ids) // len(answer.types)
                names = [
                    ObjectId(answer.ids[at : at + size]) for at in range(0, len(answer.ids), size)
                ]
                waiting += zip(names, answer.types, answer.sizes, strict=True)
            held += answer.data
            used = done = 0
            while done < len(waiting) and len(held) - used >= waiting[done][2]:
                oid, kind, length = waiting[done]
                done += 1
                yield Object(oid, kind, length, bytes(held[used : used + length])) if kind else None
                used += length
            del held[:used], waiting[:done]
        if waiting:
            raise errors.Unavailable("stream ended inside an object")

    async def info(self, ids: Sequence[bytes]) -> list[ObjectFacts | None]:
        """Return types and sizes in the order of ``ids`` (raw), None where the repository has no such object."""
        out: list[ObjectFacts | None] = []
        for at in range(0, len(ids), 50_000):
            request = object_pb2.GetObjectInfoRequest(
                repository=self.name, ids=ids[at : at + 50_000]
            )
            async for answer in self.client.stream(
                object_pb2_grpc.ObjectServiceStub, "GetObjectInfo", request
            ):
                out += [fact if fact.type else None for fact in facts_of(answer)]
        return out

    async def list_objects(self) -> AsyncIterator[ObjectFacts]:
        """Return all objects that the refs reach."""
        request = object_pb2.ListObjectsRequest(repository=self.name)
        async for answer in self.client.stream(
            object_pb2_grpc.ObjectServiceStub, "ListObjects", request
        ):
            for fact in facts_of(answer):
                yield fact

    async def open(self, revision: str) -> tuple[ObjectFacts, AsyncIterator[bytes]]:
        """Return an object's facts and its bytes in pieces, by id or revision (REV:PATH too)."""
        request = object_pb2.GetObjectRequest(repository=self.name, revision=revision)
        answers = self.client.stream(object_pb2_grpc.ObjectServiceStub, "GetObject", request)
        head = (await anext(answers)).header

        async def pieces() -> AsyncIterator[bytes]:
            async for answer in answers:
                yield answer.data

        return ObjectFacts(ObjectId(head.id), head.type, head.size), pieces()

    async def put_objects(
        self, objects: Iterable[tuple[str | int, bytes]] | AsyncIterable[tuple[str | int, bytes]]
    ) -> list[ObjectId]:
        """Store objects, (type, bytes) each, in one commit; returns their ids in order.

        Types are commit, tree, blob, tag, or 1 to 4. Until a ref names them the objects count as the repository's own
        for a grace period. Refused when one links to what is neither among them nor in the repository.
        """

        count = 0

        async def requests() -> AsyncIterator[object_pb2.PutObjectsRequest]:
            nonlocal count
            header = object_pb2.PutObjectsRequest.Header(repository=self.name)
            yield object_pb2.PutObjectsRequest(header=header)
            types, sizes, held = bytearray(), list[int](), bytearray()

            def columns(data: bytes) -> object_pb2.PutObjectsRequest:
                made = object_pb2.PutObjectsRequest.Data(types=bytes(types), sizes=sizes, data=data)
                types.clear()
                sizes.clear()
                return object_pb2.PutObjectsRequest(data=made)

            async for kind, data in each(objects):
                count += 1
                types.append(kind if isinstance(kind, int) else TYPES[kind])
                sizes.append(len(data))
                view = memoryview(data)
                while len(held) + len(view) >= PIECE_BYTES:
                    room = PIECE_BYTES - len(held)
                    yield columns(bytes(held) + bytes(view[:room]))
                    held.clear()
                    view = view[room:]
                held += view
                if len(sizes) >= IDS_PER_MESSAGE:
                    yield columns(bytes(held))
                    held.clear()
            if held or sizes:
                yield columns(bytes(held))

        flat = bytearray()
        async for answer in self.client.stream(
            object_pb2_grpc.ObjectServiceStub, "PutObjects", requests()
        ):
            flat += answer.ids
        size = len(flat) // count if count else 1
        return [ObjectId(bytes(flat[at : at + size])) for at in range(0, len(flat), size)]

    async def store_pack(self, pack: bytes | AsyncIterable[bytes]) -> StoredPack:
        """Store a pack, thin or not, in one commit; its objects count as those of put_objects."""

        async def requests() -> AsyncIterator[pack_pb2.StorePackRequest]:
            header = pack_pb2.StorePackRequest.Header(repository=self.name)
            yield pack_pb2.StorePackRequest(header=header)
            async for piece in each([pack] if isinstance(pack, bytes) else pack):
                for at in range(0, len(piece), PIECE_BYTES):
                    yield pack_pb2.StorePackRequest(data=piece[at : at + PIECE_BYTES])

        answer = await self.client.call(pack_pb2_grpc.PackServiceStub, "StorePack", requests())
        return StoredPack(answer.objects, answer.new_objects)

    async def fetch_pack(
        self, wants: Sequence[bytes] = (), haves: Sequence[bytes] = (), *, thin: bool = False
    ) -> AsyncIterator[bytes]:
        """Return a pack in pieces: what ``wants`` reach (all refs without any) and ``haves`` do not."""
        request = pack_pb2.FetchPackRequest(
            repository=self.name, wants=wants, haves=haves, thin=thin
        )
        async for answer in self.client.stream(pack_pb2_grpc.PackServiceStub, "FetchPack", request):
            yield answer.data
