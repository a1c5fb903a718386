"""Refs of a repository: read, changed, their log, watched."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from shardgit import errors
from shardgit.aio.answers import (
    as_bytes,
    log_entry_of,
    ref_change_of,
    ref_of,
    update_message,
)
from shardgit.aio.values import (
    Ref,
    RefChange,
    RefLogEntry,
    RefResult,
)
from shardgit.oid import ObjectId
from shardgit.refs.update import ANY, Old, RefUpdate
from shardgit.service.explained import CloneExplained, Stage
from shardgit.service.repositories import RepositoryStats
from shardgit.service.usages import Used
from shardgit.v1 import (
    ref_pb2,
    ref_pb2_grpc,
    repository_pb2,
    repository_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from shardgit.aio.client import Client


UPDATES_PER_MESSAGE = 1_000  # of at most 600 bytes
LOG_PAGE = 1_000


class RefCalls:
    """The methods of a Repo for refs."""

    client: Client
    name: str

    async def refs(self, prefix: str | bytes = b"") -> AsyncIterator[Ref]:
        """Return the refs under a prefix by rising name, HEAD left out."""
        raw = as_bytes(prefix)
        request = ref_pb2.ListRefsRequest(repository=self.name, prefixes=[raw] if raw else [])
        async for answer in self.client.stream(ref_pb2_grpc.RefServiceStub, "ListRefs", request):
            for one in answer.refs:
                yield ref_of(one)

    async def ref(self, name: str | bytes) -> Ref:
        """Return one ref by its full name, or HEAD."""
        raw = as_bytes(name)
        request = ref_pb2.GetRefRequest(repository=self.name, name=raw)
        answer = await self.client.call(ref_pb2_grpc.RefServiceStub, "GetRef", request)
        return ref_of(answer.ref)

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
            answer.shallow_commits,
            Used(
                answer.used_bytes,
                answer.used_objects,
                answer.quota_bytes,
                answer.quota_objects,
            ),
            answer.read_only,
        )

    async def explain_clone(self, *, depth: int = 0, filters: Iterable[str] = ()) -> CloneExplained:
        """Have the server do all the work of a clone, and return what it is made of and where its time went."""
        request = repository_pb2.ExplainCloneRequest(
            name=self.name, depth=depth, filters=list(filters)
        )
        answer = await self.client.call(
            repository_pb2_grpc.RepositoryServiceStub, "ExplainClone", request
        )
        facts = {
            key.name: getattr(answer, key.name)
            for key in answer.DESCRIPTOR.fields
            if key.name not in ("stages", "advice")
        }
        stages = tuple(Stage(one.name, one.seconds, one.cpu_s) for one in answer.stages)
        return CloneExplained(**facts, stages=stages, advice=tuple(answer.advice))

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
            source = map(update_message, updates)
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
        raw = as_bytes(name)
        before = ObjectId(old) if isinstance(old, bytes) else old
        after = ObjectId(new) if new is not None else None
        await self.update_refs([RefUpdate(raw, before, after, symbolic=symbolic)], message=message)

    async def ref_log(
        self, ref: str | bytes | None = None, *, limit: int | None = None
    ) -> AsyncIterator[RefLogEntry]:
        """Return committed changes, newest first: of one ref, or of all with up to 100 changes each."""
        raw = as_bytes(ref or b"")
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
                yield log_entry_of(one)
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
            ref=as_bytes(ref),
            message=message,
            override=override,
        )
        if time_ms is not None:
            request.time_ms = time_ms
        else:
            request.back = back
        answer = await self.client.call(ref_pb2_grpc.RefServiceStub, "RestoreRef", request)
        return ref_change_of(answer.restored)

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
                yield log_entry_of(answer.entry, more=answer.more, token=answer.resume_token)
