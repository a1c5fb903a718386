"""RefService over gRPC."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument, LimitExceeded, RefMissing
from shardgit.oid import ObjectId
from shardgit.refs.log import LogChange
from shardgit.refs.ref import Ref
from shardgit.refs.update import ANY, RefUpdate
from shardgit.rpc.notes import note_of
from shardgit.rpc.status import bounded_stream, paced, stream, unary
from shardgit.service.access import Action, caller, current_call, may
from shardgit.service.push_hooks import ask_about_updates
from shardgit.service.ref_log import log_page, restore_ref, restoring
from shardgit.service.ref_updates import update_refs
from shardgit.service.watching import Watches
from shardgit.v1 import ref_pb2, ref_pb2_grpc

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Iterable

    import grpc

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.journal.records import RepositoryRecord
    from shardgit.refs.log import LogEntry
    from shardgit.service.ref_log import LogRow
    from shardgit.service.store import Store

REFS_BATCH = 1_000
LOG_PAGE_MAX = 1_000
HEARTBEAT_S, HEARTBEAT_MAX_S = 15, 300


class Refs(ref_pb2_grpc.RefServiceServicer):
    """RefService."""

    def __init__(self, store: Store, stopping: asyncio.Event | None = None) -> None:
        self.store = store
        self._watches = Watches(store, stopping=stopping)

    @bounded_stream
    async def ListRefs(
        self, request: ref_pb2.ListRefsRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[ref_pb2.ListRefsResponse]:
        may(Action.READ, request.repository)
        after = b""
        run, prefixes = self.store.workers.run, tuple(request.prefixes)
        while True:
            some = await run(self._page, request.repository, prefixes, after)
            if some:
                yield ref_pb2.ListRefsResponse(refs=[_ref(ref, target) for ref, target in some])
            if len(some) < REFS_BATCH:
                return
            after = some[-1][0].name

    def _page(
        self, repository: str, prefixes: tuple[bytes, ...], after: bytes
    ) -> list[tuple[Ref, Ref]]:
        # Each page is a snapshot of its own: a transaction must not live as long as a client reads.
        with self.store.journal.snapshot() as snapshot:
            record = self.store.repository(snapshot, repository)
            found = self.store.refs.list(
                snapshot, record, prefixes=prefixes, start_after=after, limit=REFS_BATCH
            )
            return [(ref, self._final(snapshot, record, ref)) for ref in found]

    def _final(self, snapshot: JournalSnapshot, record: RepositoryRecord, ref: Ref) -> Ref:
        if ref.symbolic is None:
            return ref
        try:
            return self.store.refs.resolve(snapshot, record, ref.symbolic)
        except RefMissing:
            return Ref(ref.name)

    @unary
    async def GetRef(
        self, request: ref_pb2.GetRefRequest, _: grpc.aio.ServicerContext
    ) -> ref_pb2.GetRefResponse:
        may(Action.READ, request.repository)

        def look() -> ref_pb2.Ref:
            with self.store.journal.snapshot() as snapshot:
                record = self.store.repository(snapshot, request.repository)
                ref = self.store.refs.get(snapshot, record, request.name)
                if ref is None:
                    name = request.name.decode("utf-8", "replace")
                    raise RefMissing("ref does not exist", ref=name, repository=request.repository)
                return _ref(ref, self._final(snapshot, record, ref))

        return ref_pb2.GetRefResponse(ref=await self.store.workers.run(look))

    # ---- changing ----

    @bounded_stream
    async def UpdateRefs(
        self,
        requests: AsyncIterator[ref_pb2.UpdateRefsRequest],
        _: grpc.aio.ServicerContext,
    ) -> AsyncIterator[ref_pb2.UpdateRefsResponse]:
        header: ref_pb2.UpdateRefsRequest.Header | None = None
        updates: list[RefUpdate] = []
        size = 0
        limits = self.store.limits
        async for request in paced(requests, limits):
            if request.WhichOneof("part") == "header":
                if header is not None:
                    raise InvalidArgument("stream has two headers")
                header = request.header
                may(Action.WRITE, header.repository)
                continue
            if header is None:
                raise InvalidArgument("stream does not begin with a header")
            size += request.ByteSize()
            updates += map(_update, request.data.updates)
            if len(updates) > limits.ref_updates_max or size > limits.ref_updates_max_bytes:
                raise LimitExceeded(
                    "too many updates of refs in one call",
                    limit=limits.ref_updates_max,
                    limit_bytes=limits.ref_updates_max_bytes,
                )
        if header is None:
            raise InvalidArgument("stream does not begin with a header")
        allowed, refused = await ask_about_updates(
            self.store, header.repository, updates, principal=caller()
        )
        if refused and header.atomic:
            raise next(iter(refused.values()))
        done = await self.store.workers.run(
            update_refs,
            self.store,
            header.repository,
            allowed,
            atomic=header.atomic,
            note=note_of(header.message or "update"),
            principal=caller(),
        )
        reasons = {name: str(error) for name, error in (refused | done.failed).items()}
        moves = [(one.name, None, one.new or one.symbolic) for one in updates]
        self.store.audit.refs("UpdateRefs", caller(), header.repository, moves, reasons=reasons)
        for at in range(0, len(updates) or 1, REFS_BATCH):
            answer = ref_pb2.UpdateRefsResponse()
            for update in updates[at : at + REFS_BATCH]:
                result = answer.results.add(name=update.name)
                error = refused.get(update.name) or done.failed.get(update.name)
                if error is not None:
                    result.reason, result.message = error.reason, str(error)
            if at + REFS_BATCH >= len(updates):
                answer.sequence = done.sequence
            yield answer

    # ---- the log ----

    @unary
    async def ListRefLog(
        self, request: ref_pb2.ListRefLogRequest, _: grpc.aio.ServicerContext
    ) -> ref_pb2.ListRefLogResponse:
        may(Action.READ, request.repository)

        def page() -> ref_pb2.ListRefLogResponse:
            rows, token = log_page(
                self.store,
                request.repository,
                request.ref or None,
                before=request.page_token or None,
                limit=min(request.page_size or 100, LOG_PAGE_MAX),
            )
            return ref_pb2.ListRefLogResponse(entries=map(_row, rows), next_page_token=token)

        return await self.store.workers.run(page)

    @unary
    async def RestoreRef(
        self, request: ref_pb2.RestoreRefRequest, _: grpc.aio.ServicerContext
    ) -> ref_pb2.RestoreRefResponse:
        action = Action.ADMIN if request.override else Action.WRITE
        may(action, request.repository)
        moment = request.WhichOneof("moment")
        if moment is None:
            raise InvalidArgument("restoring needs a moment")
        update = await self.store.workers.run(
            restoring,
            self.store,
            request.repository,
            request.ref,
            time_ms=request.time_ms if moment == "time_ms" else None,
            back=request.back,
        )
        if not request.override:
            allowed, refused = await ask_about_updates(
                self.store, request.repository, [update], principal=caller()
            )
            if refused:
                raise refused[update.name]
            (update,) = allowed
        ref, sequence = await self.store.workers.run(
            restore_ref,
            self.store,
            request.repository,
            update,
            note=note_of(request.message or "restore"),
            principal=caller(),
            override=request.override,
        )
        restored = _change(LogChange(ref.name, None, ref))
        return ref_pb2.RestoreRefResponse(restored=restored, sequence=sequence)

    @stream
    async def WatchRefs(
        self, request: ref_pb2.WatchRefsRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[ref_pb2.WatchRefsResponse]:
        may(Action.READ, request.repository)
        heartbeat_s = request.heartbeat_s or HEARTBEAT_S
        if heartbeat_s > HEARTBEAT_MAX_S:
            raise InvalidArgument("heartbeat is too slow", limit_s=HEARTBEAT_MAX_S)
        watch = self._watches.watch(
            request.repository,
            after=request.resume_after if request.HasField("resume_after") else None,
            prefixes=tuple(request.prefixes),
            heartbeat_s=heartbeat_s,
            check=call.check_still if (call := current_call()) is not None else None,
        )
        async with aclosing(watch):
            async for seen in watch:
                answer = ref_pb2.WatchRefsResponse(more=seen.more, resume_token=seen.token)
                if seen.entry is not None:
                    answer.entry.CopyFrom(_entry(seen.entry, seen.changes))
                yield answer


def _ref(ref: Ref, final: Ref) -> ref_pb2.Ref:
    return ref_pb2.Ref(
        name=ref.name,
        target=final.target or b"",
        peeled=final.peeled or b"",
        symbolic=ref.symbolic or b"",
    )


def _update(one: ref_pb2.RefUpdate) -> RefUpdate:
    old = (ObjectId(one.old) if one.old else None) if one.HasField("old") else ANY
    if one.HasField("old_symbolic") and one.HasField("old"):
        raise InvalidArgument("update compares both an id and a symbolic target")
    return RefUpdate(
        one.name,
        old,
        ObjectId(one.new) if one.new else None,
        symbolic=one.symbolic or None,
        old_symbolic=one.old_symbolic if one.HasField("old_symbolic") else None,
    )


def _change(change: LogChange) -> ref_pb2.RefChange:
    old, new = change.old or Ref(b""), change.new or Ref(b"")
    return ref_pb2.RefChange(
        name=change.name,
        old=old.target or b"",
        old_symbolic=old.symbolic or b"",
        new=new.target or b"",
        new_symbolic=new.symbolic or b"",
        new_peeled=new.peeled or b"",
    )


def _entry(entry: LogEntry, changes: Iterable[LogChange]) -> ref_pb2.RefLogEntry:
    return ref_pb2.RefLogEntry(
        sequence=entry.sequence,
        time_ms=entry.time_ms,
        actor=entry.actor,
        message=entry.message,
        address=entry.address,
        changes=map(_change, changes),
        change_count=len(entry.changes),
    )


def _row(row: LogRow) -> ref_pb2.RefLogEntry:
    made = _entry(row.entry, row.changes)
    made.certificate = row.certificate
    return made
