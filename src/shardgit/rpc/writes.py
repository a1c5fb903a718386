"""Writes by object id: PutObjects, StorePack, FetchPack and CreateCommit, thin over service/."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from shardgit import version
from shardgit.errors import InvalidArgument, LimitExceeded
from shardgit.oid import ObjectId
from shardgit.protocol.upload_pack import Fetch
from shardgit.rpc.status import bounded_stream, paced, unary
from shardgit.service.access import Action, caller, may
from shardgit.service.committing import CommitPlan, Committing
from shardgit.service.composing import FileChange
from shardgit.service.fetch import FetchService, advertised
from shardgit.service.pack_spool import PackSpool
from shardgit.service.upload_spool import UploadSpool
from shardgit.service.uploading import Uploading, pack_most_bytes, uploaded
from shardgit.v1 import commit_pb2, object_pb2, pack_pb2, pack_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from shardgit.service.store import Store

PIECE_BYTES = 1 << 20
IDS_BYTES = 1_000_000


class ObjectWrites:
    """PutObjects, a part of ObjectService."""

    store: Store

    @bounded_stream
    async def PutObjects(
        self, requests: AsyncIterator[object_pb2.PutObjectsRequest], _: grpc.aio.ServicerContext
    ) -> AsyncIterator[object_pb2.PutObjectsResponse]:
        run, store = self.store.workers.run, self.store
        requests = paced(requests, store.limits)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument("stream does not begin with a header")
        name = first.header.repository
        may(Action.WRITE, name)
        upload = await run(Uploading, store, name)
        kind = upload.record.hash_kind
        with UploadSpool(
            store, kind, most_bytes=pack_most_bytes(upload), limits=store.limits
        ) as spool:
            async for request in requests:
                if request.WhichOneof("part") != "data":
                    raise InvalidArgument("stream has two headers")
                data = request.data
                await run(spool.take, data.types, tuple(data.sizes), data.data)
            packs = await run(spool.packs)
            new = 0
            if packs:
                await run(upload.take_all, [(pack, None) for pack in packs])
                new = (await uploaded(upload)).new_objects
            flat = b"".join(spool.ids)
        room = IDS_BYTES // kind.size * kind.size
        yield object_pb2.PutObjectsResponse(ids=flat[:room], new_objects=new)
        for at in range(room, len(flat), room):
            yield object_pb2.PutObjectsResponse(ids=flat[at : at + room])


class Packs(pack_pb2_grpc.PackServiceServicer):
    """PackService."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._fetches = FetchService(store, version=version.VERSION)

    @unary
    async def StorePack(
        self, requests: AsyncIterator[pack_pb2.StorePackRequest], _: grpc.aio.ServicerContext
    ) -> pack_pb2.StorePackResponse:
        run, store = self.store.workers.run, self.store
        requests = paced(requests, store.limits)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument("stream does not begin with a header")
        name = first.header.repository
        may(Action.WRITE, name)
        upload = await run(Uploading, store, name)

        async def pieces() -> AsyncIterator[bytes]:
            async for request in requests:
                if request.WhichOneof("part") != "data":
                    raise InvalidArgument("stream has two headers")
                yield request.data

        async with PackSpool(store, pack_most_bytes(upload), upload.record.hash_kind) as spool:
            await spool.fill(b"", pieces(), to_its_end=False)
            if spool.refused is not None:
                raise spool.refused
            await run(lambda: upload.take(*spool.pack()))
            stored = await uploaded(upload)
        return pack_pb2.StorePackResponse(objects=stored.objects, new_objects=stored.new_objects)

    @bounded_stream
    async def FetchPack(
        self, request: pack_pb2.FetchPackRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[pack_pb2.FetchPackResponse]:
        run, name = self.store.workers.run, request.repository
        may(Action.READ, name)
        limit = self.store.limits.request_lines_max
        if len(request.wants) + len(request.haves) > limit:
            raise LimitExceeded("request names too many ids", limit=limit)
        wants = [ObjectId(oid) for oid in request.wants]
        if not wants:
            refs = await run(advertised, self.store, name)
            wants = sorted({ref.target for ref in refs if ref.target is not None})
        fetch = Fetch(
            0,
            tuple(dict.fromkeys(wants)),
            tuple(ObjectId(oid) for oid in request.haves),
            done=True,
            thin_pack=request.thin,
            ofs_delta=True,
            include_tag=True,
            no_progress=True,
        )
        session = await self._fetches.session(name, fetch)
        await run(session.negotiate)
        async with aclosing(self._fetches.pack(session)) as chunks:
            async for chunk in chunks:
                for at in range(0, len(chunk), PIECE_BYTES):
                    yield pack_pb2.FetchPackResponse(data=chunk[at : at + PIECE_BYTES])


class CommitWrites:
    """CreateCommit, a part of CommitService."""

    store: Store

    @unary
    async def CreateCommit(
        self, requests: AsyncIterator[commit_pb2.CreateCommitRequest], _: grpc.aio.ServicerContext
    ) -> commit_pb2.CreateCommitResponse:
        limits = self.store.limits
        requests = paced(requests, limits)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument("stream does not begin with a header")
        head = first.header
        may(Action.WRITE, head.repository)
        files: dict[bytes, FileChange] = {}
        path, held, total = b"", bytearray(), 0
        async for request in requests:
            part = request.WhichOneof("part")
            if part == "data":
                if files.get(path, _NOTHING).data is None:
                    raise InvalidArgument("stream holds bytes of no file")
                total += len(request.data)
                if total > limits.commit_files_max_bytes:
                    raise LimitExceeded(
                        "files are too much for one commit; upload large ones first",
                        limit_bytes=limits.commit_files_max_bytes,
                    )
                held += request.data
            elif part == "file":
                _end(files, path, held)
                path = request.file.path
                if path in files:
                    raise InvalidArgument(
                        "path stands twice", path=path[:400].decode("utf-8", "replace")
                    )
                if len(files) >= limits.commit_files_max:
                    raise LimitExceeded(
                        "commit changes too many files", limit=limits.commit_files_max
                    )
                files[path] = _change(request.file)
            else:
                raise InvalidArgument("stream has two headers")
        _end(files, path, held)
        plan = CommitPlan(
            branch=head.branch,
            message=head.message,
            author=head.author,
            files=files,
            committer=head.committer,
            author_seconds=head.author_seconds,
            author_zone=head.author_zone or b"+0000",
            expected=ObjectId(head.expected) if head.expected else None,
            base=head.base,
            allow_empty=head.allow_empty,
            options=tuple(option.encode() for option in head.options),
        )
        work = Committing(self.store, head.repository, caller())
        done = await work.commit(plan)
        return commit_pb2.CreateCommitResponse(id=done.id, tree=done.tree, old=done.old or b"")


_NOTHING = FileChange()


def _change(file: commit_pb2.CreateCommitRequest.File) -> FileChange:
    if file.deleted:
        return _NOTHING
    if file.id:
        return FileChange(id=ObjectId(file.id), mode=file.mode)
    return FileChange(b"", mode=file.mode)


def _end(files: dict[bytes, FileChange], path: bytes, held: bytearray) -> None:
    """Give a file the bytes that came behind it."""
    if held:
        files[path] = FileChange(bytes(held), mode=files[path].mode)
        held.clear()
