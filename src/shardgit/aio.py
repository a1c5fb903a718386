"""The asynchronous Python client: ``async with shardgit.aio.connect("127.0.0.1:7420") as store``."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2

from shardgit import errors
from shardgit.oid import HashKind, ObjectId
from shardgit.refs.update import ANY, Old, RefUpdate
from shardgit.service.configuring import SettingsView
from shardgit.service.repositories import RepositoryInfo, RepositoryStats
from shardgit.service.shards import ShardInfo
from shardgit.v1 import (
    commit_pb2,
    commit_pb2_grpc,
    common_pb2,
    object_pb2,
    object_pb2_grpc,
    pack_pb2,
    pack_pb2_grpc,
    ref_pb2,
    ref_pb2_grpc,
    repository_pb2,
    repository_pb2_grpc,
    shard_pb2,
    shard_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from types import TracebackType

CHANNELS = 2  # a connection stays with one worker, so a client opens several
IDS_PER_MESSAGE = 2_000
UPDATES_PER_MESSAGE = 1_000  # of at most 600 bytes
LOG_PAGE = 1_000
MESSAGE_MAX_BYTES = 8 << 20
T = TypeVar("T")
PIECE_BYTES = 1_000_000  # of an object, a file or a pack in one message
_TYPES = {"commit": 1, "tree": 2, "blob": 3, "tag": 4}


@dataclass(frozen=True, slots=True)
class Object:
    """An object with its bytes; type 1 commit, 2 tree, 3 blob, 4 tag."""

    id: ObjectId
    type: int
    size: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """An object without its bytes."""

    id: ObjectId
    type: int
    size: int


@dataclass(frozen=True, slots=True)
class Ref:
    """A ref; ``target`` is None while a symbolic one is unborn."""

    name: bytes
    target: ObjectId | None
    peeled: ObjectId | None
    symbolic: bytes | None


@dataclass(frozen=True, slots=True)
class Person:
    """Who did something and when (seconds since 1970, and the zone as written)."""

    name: bytes
    email: bytes
    seconds: int
    zone: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit."""

    id: ObjectId
    tree: ObjectId
    parents: tuple[ObjectId, ...]
    author: Person
    committer: Person
    message: bytes


@dataclass(frozen=True, slots=True)
class TreeRow:
    """One entry of a tree; ``path`` counts from the tree that was asked for."""

    mode: int
    path: bytes
    id: ObjectId


@dataclass(frozen=True, slots=True)
class RefChange:
    """What became of a ref: None for an id that there was, or is, not."""

    name: bytes
    old: ObjectId | None
    new: ObjectId | None
    old_symbolic: bytes | None = None
    new_symbolic: bytes | None = None
    new_peeled: ObjectId | None = None


@dataclass(frozen=True, slots=True)
class RefLogEntry:
    """One committed change-set, with some of its changes; ``sequence`` counts from 1 without gaps.

    A watch gives large ones in parts: ``more`` follow. ``resume_token`` is what watch_refs takes as
    ``after``: the last entry that was given whole.
    """

    sequence: int
    time_ms: int
    actor: str
    message: str
    address: str
    changes: tuple[RefChange, ...]
    change_count: int
    certificate: bytes = b""
    more: bool = False
    resume_token: int = 0


@dataclass(frozen=True, slots=True)
class RefResult:
    """How one update ended: ``error`` is None when it was made."""

    name: bytes
    error: errors.ShardgitError | None


@dataclass(frozen=True, slots=True)
class File:
    """What becomes of a path in ``Repo.commit``, where bytes alone do not say it.

    ``data`` are new bytes, ``id`` names a blob that is there already. ``mode`` 0 keeps that of the file, or is 100644.
    """

    data: bytes = b""
    id: bytes | None = None
    mode: int = 0


@dataclass(frozen=True, slots=True)
class NewCommit:
    """A commit that was made; ``old`` is what the branch was before, None for a new one."""

    id: ObjectId
    tree: ObjectId
    old: ObjectId | None


@dataclass(frozen=True, slots=True)
class StoredPack:
    """How many objects a stored pack had, and how many the store did not have."""

    objects: int
    new_objects: int


def connect(target: str, token: str | None = None) -> Client:
    """Return a client for the gRPC address ``target``; an async context manager."""
    return Client(target, token)


def error_of(call: grpc.RpcError) -> errors.ShardgitError:
    """Return the typed error that a server raised, from the status of its answer."""
    told = isinstance(call, grpc.Call | grpc.aio.AioRpcError)  # of a channel of either kind
    code = call.code().name if told else "INTERNAL"
    text = str(call.details() if told else call)
    for key, value in (call.trailing_metadata() or ()) if told else ():
        if key != "grpc-status-details-bin":
            continue
        status = status_pb2.Status.FromString(
            value if isinstance(value, bytes) else value.encode("latin-1")
        )
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == "shardgit":
                return _named(info, text)
    if code == "UNAVAILABLE" and text.startswith("failed to connect"):
        return errors.Unavailable("no server answers there", cause=text.rpartition(": ")[2])
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.ShardgitError) and kind.code == code:
            return kind(text)
    return (
        errors.Unavailable(text)
        if code in ("CANCELLED", "DEADLINE_EXCEEDED")
        else errors.Internal(text)
    )


def _named(info: error_details_pb2.ErrorInfo, text: str) -> errors.ShardgitError:
    facts = {key: json.loads(value) for key, value in sorted(info.metadata.items())}
    # The server's text holds the facts already; they come back as facts.
    return errors.of_reason(info.reason, text.partition(" (")[0] if facts else text, **facts)


class Client:
    """A store, seen through one server. Errors are those of shardgit.errors."""

    def __init__(self, target: str, token: str | None = None) -> None:
        options = [
            ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channels = [
            grpc.aio.insecure_channel(target, options=options) for _ in range(CHANNELS)
        ]
        self._turn = itertools.cycle(self._channels)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    async def __aenter__(self) -> Client:
        """Return self."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        for channel in self._channels:
            await channel.close()

    async def call(self, stub: Any, method: str, request: Any) -> Any:
        """Make one call with one answer."""
        try:
            return await getattr(stub(next(self._turn)), method)(request, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of(error) from error

    async def stream(self, stub: Any, method: str, request: Any) -> AsyncIterator[Any]:
        """Make one call with a stream of answers."""
        try:
            async for answer in getattr(stub(next(self._turn)), method)(
                request, metadata=self._metadata
            ):
                yield answer
        except grpc.RpcError as error:
            raise error_of(error) from error

    # ---- repositories ----

    def repo(self, name: str) -> Repo:
        """Return a repository; nothing is asked before its first use."""
        return Repo(self, name)

    async def create(self, name: str, *, object_format: str = "sha1") -> RepositoryInfo:
        """Make an empty repository."""
        request = repository_pb2.CreateRepositoryRequest(
            name=name, hash_kind=_wire(HashKind.from_git_name(object_format))
        )
        answer = await self.call(
            repository_pb2_grpc.RepositoryServiceStub, "CreateRepository", request
        )
        return _repository(answer.repository)

    async def repository(self, name: str) -> RepositoryInfo:
        """Return what is known of a repository."""
        request = repository_pb2.GetRepositoryRequest(name=name)
        answer = await self.call(
            repository_pb2_grpc.RepositoryServiceStub, "GetRepository", request
        )
        return _repository(answer.repository)

    async def repositories(self, prefix: str = "") -> AsyncIterator[RepositoryInfo]:
        """Return all repositories by rising name."""
        token = ""
        while True:
            request = repository_pb2.ListRepositoriesRequest(prefix=prefix, page_token=token)
            answer = await self.call(
                repository_pb2_grpc.RepositoryServiceStub, "ListRepositories", request
            )
            for one in answer.repositories:
                yield _repository(one)
            token = answer.next_page_token
            if not token:
                return

    async def delete(self, name: str) -> None:
        """Delete a repository."""
        request = repository_pb2.DeleteRepositoryRequest(name=name)
        await self.call(repository_pb2_grpc.RepositoryServiceStub, "DeleteRepository", request)

    async def rename(self, name: str, new_name: str) -> RepositoryInfo:
        """Give a repository another name."""
        request = repository_pb2.RenameRepositoryRequest(name=name, new_name=new_name)
        answer = await self.call(
            repository_pb2_grpc.RepositoryServiceStub, "RenameRepository", request
        )
        return _repository(answer.repository)

    async def fork(self, source: str, target: str) -> RepositoryInfo:
        """Make the repository ``target`` with the refs of ``source``; no objects are copied."""
        request = repository_pb2.ForkRepositoryRequest(source=source, target=target)
        answer = await self.call(
            repository_pb2_grpc.RepositoryServiceStub, "ForkRepository", request
        )
        return _repository(answer.repository)

    async def shards(self) -> list[ShardInfo]:
        """Return the shards of the store."""
        answer = await self.call(
            shard_pb2_grpc.ShardServiceStub, "ListShards", shard_pb2.ListShardsRequest()
        )
        return [
            ShardInfo(
                s.id,
                s.path,
                s.zone,
                s.weight,
                s.state,
                s.blocks,
                s.bytes,
                s.file_bytes,
                s.partitions,
            )
            for s in answer.shards
        ]


class Repo:
    """One repository of a client."""

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.name = name

    # ---- objects ----

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
                out += [fact if fact.type else None for fact in _facts(answer)]
        return out

    async def list_objects(self) -> AsyncIterator[ObjectFacts]:
        """Return all objects that the refs reach."""
        request = object_pb2.ListObjectsRequest(repository=self.name)
        async for answer in self.client.stream(
            object_pb2_grpc.ObjectServiceStub, "ListObjects", request
        ):
            for fact in _facts(answer):
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

            async for kind, data in _each(objects):
                count += 1
                types.append(kind if isinstance(kind, int) else _TYPES[kind])
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
            async for piece in _each([pack] if isinstance(pack, bytes) else pack):
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

    # ---- paths and commits ----

    async def commit(  # noqa: PLR0913 - the plan of a commit, spelt out
        self,
        branch: str,
        *,
        message: str | bytes,
        author: str | bytes,
        files: Mapping[str | bytes, bytes | File | None],
        expected: bytes | None = None,
        committer: str | bytes = b"",
        author_seconds: int = 0,
        author_zone: str = "",
        base: str = "",
        allow_empty: bool = False,
        options: Sequence[str] = (),
    ) -> NewCommit:
        """Make a commit of changed files and move a branch to it, in one call and one commit of the store.

        ``files`` are new bytes by path; None deletes a file, or a whole folder. ``expected`` is the id that the branch
        must have, zeros for none: else Conflict. A new branch starts from ``base``, or with a root commit. Refused when
        the repository's policy or a hook says no.
        """

        async def requests() -> AsyncIterator[commit_pb2.CreateCommitRequest]:
            request = commit_pb2.CreateCommitRequest
            header = request.Header(
                repository=self.name,
                branch=branch,
                message=_raw(message),
                author=_raw(author),
                committer=_raw(committer),
                author_seconds=author_seconds,
                author_zone=author_zone.encode(),
                expected=expected or b"",
                base=base,
                allow_empty=allow_empty,
                options=options,
            )
            yield request(header=header)
            for path, value in files.items():
                one = value if isinstance(value, File) else File(value or b"")
                yield request(
                    file=request.File(
                        path=_raw(path), mode=one.mode, deleted=value is None, id=one.id or b""
                    )
                )
                for at in range(0, len(one.data), PIECE_BYTES):
                    yield request(data=one.data[at : at + PIECE_BYTES])

        answer = await self.client.call(
            commit_pb2_grpc.CommitServiceStub, "CreateCommit", requests()
        )
        old = ObjectId(answer.old) if answer.old else None
        return NewCommit(ObjectId(answer.id), ObjectId(answer.tree), old)

    async def read(self, revision: str, path: str | bytes) -> bytes:
        """Return the bytes of a file at a revision."""
        raw = path.encode() if isinstance(path, str) else path
        request = commit_pb2.ReadPathRequest(repository=self.name, revision=revision, path=raw)
        out = bytearray()
        async for answer in self.client.stream(
            commit_pb2_grpc.CommitServiceStub, "ReadPath", request
        ):
            out += answer.data
        return bytes(out)

    async def commit_info(self, revision: str) -> Commit:
        """Return one commit."""
        request = commit_pb2.GetCommitRequest(repository=self.name, revision=revision)
        answer = await self.client.call(commit_pb2_grpc.CommitServiceStub, "GetCommit", request)
        return _commit(answer.commit)

    async def log(self, *revisions: str, limit: int = 0) -> AsyncIterator[Commit]:
        """Return history by falling date; ^REV leaves out what REV reaches; ``limit`` 0 is none."""
        request = commit_pb2.ListCommitsRequest(
            repository=self.name, revisions=revisions, limit=limit
        )
        async for answer in self.client.stream(
            commit_pb2_grpc.CommitServiceStub, "ListCommits", request
        ):
            for one in answer.commits:
                yield _commit(one)

    async def tree(self, revision: str, *, recursive: bool = False) -> AsyncIterator[TreeRow]:
        """Return the entries of a tree (REV or REV:PATH)."""
        request = commit_pb2.GetTreeRequest(
            repository=self.name, revision=revision, recursive=recursive
        )
        async for answer in self.client.stream(
            commit_pb2_grpc.CommitServiceStub, "GetTree", request
        ):
            for one in answer.entries:
                yield TreeRow(one.mode, one.path, ObjectId(one.id))

    async def is_ancestor(self, ancestor: str, descendant: str) -> bool:
        """Return whether ``descendant`` is or reaches ``ancestor``."""
        request = commit_pb2.IsAncestorRequest(
            repository=self.name, ancestor=ancestor, descendant=descendant
        )
        answer = await self.client.call(commit_pb2_grpc.CommitServiceStub, "IsAncestor", request)
        return bool(answer.is_ancestor)

    async def merge_base(self, a: str, b: str) -> list[ObjectId]:
        """Return the best common ancestors."""
        request = commit_pb2.MergeBaseRequest(repository=self.name, a=a, b=b)
        answer = await self.client.call(commit_pb2_grpc.CommitServiceStub, "MergeBase", request)
        return [ObjectId(oid) for oid in answer.ids]

    # ---- refs ----

    async def refs(self, prefix: str | bytes = b"") -> AsyncIterator[Ref]:
        """Return the refs under a prefix by rising name, HEAD left out."""
        raw = prefix.encode() if isinstance(prefix, str) else prefix
        request = ref_pb2.ListRefsRequest(repository=self.name, prefixes=[raw] if raw else [])
        async for answer in self.client.stream(ref_pb2_grpc.RefServiceStub, "ListRefs", request):
            for one in answer.refs:
                yield _ref(one)

    async def ref(self, name: str | bytes) -> Ref:
        """Return one ref by its full name, or HEAD."""
        raw = name.encode() if isinstance(name, str) else name
        request = ref_pb2.GetRefRequest(repository=self.name, name=raw)
        answer = await self.client.call(ref_pb2_grpc.RefServiceStub, "GetRef", request)
        return _ref(answer.ref)

    async def stats(self) -> RepositoryStats:
        """Return counts and sizes."""
        request = repository_pb2.GetRepositoryStatsRequest(name=self.name)
        answer = await self.client.call(
            repository_pb2_grpc.RepositoryServiceStub, "GetRepositoryStats", request
        )
        return RepositoryStats(
            answer.objects,
            answer.reachable_objects,
            answer.stored_bytes,
            answer.segments,
            answer.runs,
            answer.refs,
            answer.generation,
        )

    async def update_refs(
        self, updates: Iterable[RefUpdate], *, atomic: bool = True, message: str = ""
    ) -> list[RefResult]:
        """Change refs in one commit: all or none, else each that can be changed.

        With ``atomic`` the error of the first update that cannot be made is raised: Conflict when
        an old value does not fit, ObjectMissing, Refused, InvalidRefName.
        """

        async def requests() -> AsyncIterator[ref_pb2.UpdateRefsRequest]:
            header = ref_pb2.UpdateRefsRequest.Header(
                repository=self.name, atomic=atomic, message=message
            )
            yield ref_pb2.UpdateRefsRequest(header=header)
            source = map(_update, updates)
            while some := list(itertools.islice(source, UPDATES_PER_MESSAGE)):
                yield ref_pb2.UpdateRefsRequest(data=ref_pb2.UpdateRefsRequest.Data(updates=some))

        results = []
        async for answer in self.client.stream(
            ref_pb2_grpc.RefServiceStub, "UpdateRefs", requests()
        ):
            for one in answer.results:
                error = errors.of_reason(one.reason, one.message) if one.reason else None
                results.append(RefResult(one.name, error))
        return results

    async def update_ref(
        self,
        name: str | bytes,
        new: bytes | None,
        *,
        old: bytes | Old | None = ANY,
        symbolic: bytes | None = None,
        message: str = "",
    ) -> None:
        """Change one ref; ``new`` and ``symbolic`` None delete it. ``old`` None: it must not exist."""
        raw = name.encode() if isinstance(name, str) else name
        before = ObjectId(old) if isinstance(old, bytes) else old
        after = ObjectId(new) if new is not None else None
        await self.update_refs([RefUpdate(raw, before, after, symbolic=symbolic)], message=message)

    async def ref_log(
        self, ref: str | bytes | None = None, *, limit: int | None = None
    ) -> AsyncIterator[RefLogEntry]:
        """Return committed changes, newest first: of one ref, or of all with up to 100 changes each."""
        raw = ref.encode() if isinstance(ref, str) else ref
        token, left = 0, limit
        while left is None or left > 0:
            request = ref_pb2.ListRefLogRequest(
                repository=self.name,
                ref=raw or b"",
                page_size=min(left or LOG_PAGE, LOG_PAGE),
                page_token=token,
            )
            answer = await self.client.call(ref_pb2_grpc.RefServiceStub, "ListRefLog", request)
            for one in answer.entries:
                yield _log_entry(one)
            left = None if left is None else left - len(answer.entries)
            token = answer.next_page_token
            if not token:
                return

    async def restore_ref(
        self,
        ref: str | bytes,
        *,
        time_ms: int | None = None,
        back: int = 1,
        message: str = "",
        override: bool = False,
    ) -> RefChange:
        """Make a ref again what it was at a time, or ``back`` moves ago; returns what it is again.

        Protected refs and hooks count as for a push, unless they are overridden.
        """
        request = ref_pb2.RestoreRefRequest(
            repository=self.name,
            ref=ref.encode() if isinstance(ref, str) else ref,
            message=message,
            override=override,
        )
        if time_ms is not None:
            request.time_ms = time_ms
        else:
            request.back = back
        answer = await self.client.call(ref_pb2_grpc.RefServiceStub, "RestoreRef", request)
        return _ref_change(answer.restored)

    async def watch_refs(
        self, after: int | None = None, *, prefixes: Sequence[bytes] = (), heartbeats: bool = False
    ) -> AsyncIterator[RefLogEntry]:
        """Return committed changes as they happen, for ever: behind the token ``after``, else from now.

        0 is the log's start. Large change-sets come in parts. With ``heartbeats`` entries of sequence
        0 come too, the first at once: their resume_token says where the watch stands. Errors:
        LogPositionUnknown, RepositoryMissing once it is deleted, Unavailable: go on from the last token.
        """
        request = ref_pb2.WatchRefsRequest(
            repository=self.name, resume_after=after, prefixes=prefixes
        )
        async for answer in self.client.stream(ref_pb2_grpc.RefServiceStub, "WatchRefs", request):
            if heartbeats or answer.HasField("entry"):
                yield _log_entry(answer.entry, more=answer.more, token=answer.resume_token)

    # ---- settings ----

    async def settings(self) -> SettingsView:
        """Return every setting with its value."""
        request = repository_pb2.GetSettingsRequest(name=self.name)
        answer = await self.client.call(
            repository_pb2_grpc.RepositoryServiceStub, "GetSettings", request
        )
        return _settings(answer)

    async def update_settings(
        self, changes: Mapping[str, Any], *, expected: int = 0
    ) -> SettingsView:
        """Set keys to plain data, or back to their defaults (None): all of them or none.

        With ``expected``, a revision, only when nobody changed the repository since: else Conflict.
        """
        values = {key: json.dumps(value) for key, value in changes.items() if value is not None}
        request = repository_pb2.UpdateSettingsRequest(
            name=self.name,
            values=values,
            unset=[key for key in changes if key not in values],
            expected_revision=expected,
        )
        answer = await self.client.call(
            repository_pb2_grpc.RepositoryServiceStub, "UpdateSettings", request
        )
        return _settings(answer)


async def _each(source: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(source, AsyncIterable):
        async for one in source:
            yield one
    else:
        for one in source:
            yield one


def _raw(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _settings(answer: Any) -> SettingsView:
    return SettingsView(
        {one.key: json.loads(one.value) for one in answer.settings},
        tuple(one.key for one in answer.settings if not one.is_default),
        answer.revision,
    )


def _wire(kind: HashKind) -> str:
    return str(common_pb2.HashKind.Name(int(kind)))


def _facts(answer: Any) -> list[ObjectFacts]:
    size = len(answer.ids) // len(answer.types) if answer.types else 1
    names = [ObjectId(answer.ids[at : at + size]) for at in range(0, len(answer.ids), size)]
    return [ObjectFacts(*row) for row in zip(names, answer.types, answer.sizes, strict=True)]


def _repository(one: repository_pb2.Repository) -> RepositoryInfo:
    return RepositoryInfo(
        one.id, one.name, HashKind(one.hash_kind), one.created_ms, one.head, one.forked_from
    )


def _ref(one: ref_pb2.Ref) -> Ref:
    return Ref(
        one.name,
        ObjectId(one.target) if one.target else None,
        ObjectId(one.peeled) if one.peeled else None,
        one.symbolic or None,
    )


def _update(one: RefUpdate) -> ref_pb2.RefUpdate:
    made = ref_pb2.RefUpdate(name=one.name, new=one.new or b"", symbolic=one.symbolic or b"")
    if one.old_symbolic is not None:
        made.old_symbolic = one.old_symbolic
    elif not isinstance(one.old, Old):
        made.old = one.old or b""
    return made


def _ref_change(change: Any) -> RefChange:
    return RefChange(
        change.name,
        ObjectId(change.old) if change.old else None,
        ObjectId(change.new) if change.new else None,
        change.old_symbolic or None,
        change.new_symbolic or None,
        ObjectId(change.new_peeled) if change.new_peeled else None,
    )


def _log_entry(one: Any, *, more: bool = False, token: int = 0) -> RefLogEntry:
    changes = tuple(_ref_change(change) for change in one.changes)
    return RefLogEntry(
        one.sequence,
        one.time_ms,
        one.actor,
        one.message,
        one.address,
        changes,
        one.change_count,
        one.certificate,
        more,
        token,
    )


def _person(one: commit_pb2.Signature) -> Person:
    return Person(one.name, one.email, one.seconds, one.zone)


def _commit(one: commit_pb2.Commit) -> Commit:
    parents = tuple(ObjectId(oid) for oid in one.parents)
    author, committer = _person(one.author), _person(one.committer)
    return Commit(ObjectId(one.id), ObjectId(one.tree), parents, author, committer, one.message)
