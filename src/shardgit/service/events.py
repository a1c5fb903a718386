"""Post-receive events: told from the committed ref log, in order, at least once. See docs/hooks.md."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints, metrics, telemetry
from shardgit.errors import HookFailed, LogPositionUnknown, ShardgitError
from shardgit.journal.cursor_records import (
    CURSORS,
    HookCursor,
    cursor_key,
    hook_id,
    split_cursor_key,
)
from shardgit.journal.interface import Compare, Delete, Put, end_of
from shardgit.journal.records import RefsHead, RepositoryRecord, refs_head_key, repository_key
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.access import Principal
from shardgit.service.hooks import POST_RECEIVE, Bounded, HookEvent, shown_target, silent
from shardgit.service.signed_push import certificate_facts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from shardgit.journal.interface import Operation
    from shardgit.oid import RepositoryId
    from shardgit.refs.log import LogEntry
    from shardgit.service.hooks import Hooks, PushHookCall, Tell
    from shardgit.service.settings import Hook, RepositorySettings
    from shardgit.turns import Turn

POLL_S = 1.0
GRACE_MS = 2_000  # so long a fresh entry is left to the push that made it, whose client waits
INLINE_WAIT_S = 3.0  # how long a push waits for the events before its own
INLINE_MAX_S = 30.0  # how long a push's client waits for post-receive hooks
LOOK_S = 0.05
TOLD_AT_ONCE_MAX = 16
RETRY_MAX_MS = 300_000
TRIES_MAX = 300  # about a day


@dataclass(frozen=True, slots=True)
class _Step:
    """The next entry for a hook, and the cursor's row that stands before it."""

    record: RepositoryRecord
    hook: Hook
    cursor: HookCursor
    revision: int
    entry: LogEntry
    count: int


def cursor_operations(
    record: RepositoryRecord,
    before: RepositorySettings,
    after: RepositorySettings,
    sequence: int,
) -> list[Operation]:
    """Return what a change of settings adds: new post-receive hooks are told of what follows ``sequence``."""
    old, new = _ids(before), _ids(after)
    return [
        *(Put(cursor_key(record.id, one), HookCursor(sequence).encode()) for one in new - old),
        *(Delete(cursor_key(record.id, one)) for one in old - new),
    ]


def _ids(settings: RepositorySettings) -> set[bytes]:
    return {_id_of(hook) for hook in settings.hooks if hook.event == POST_RECEIVE}


def _id_of(hook: Hook) -> bytes:
    return hook_id(hook.kind, hook.target)


class Events:
    """Tells post-receive hooks what became of refs.

    Each hook has a cursor in the journal. Who tells it has its turn, which ends when the process dies; the cursor
    moves only after the hook has answered. So an event may come twice, and none is lost between a commit and its hook.
    """

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks
        self.store = hooks.store
        self._group: asyncio.TaskGroup | None = None
        self._telling: dict[tuple[RepositoryId, bytes], asyncio.Task[None]] = {}
        self._inline: set[asyncio.Task[None]] = set()
        self._revision = -1
        self._pending = True

    @asynccontextmanager
    async def serving(self, *, drain_s: float) -> AsyncIterator[None]:
        """Tell in the background until the block is left, if no other process does.

        Then hooks under way have ``drain_s`` to end; what is cut off is told again later.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            poll = group.create_task(self._poll())
            try:
                yield
            finally:
                self._group = None
                poll.cancel()
                await asyncio.wait({poll})
                running = {*self._telling.values(), *self._inline}
                if running:
                    _, late = await asyncio.wait(running, timeout=drain_s)
                    for task in late:
                        task.cancel()

    # ---- behind a push ----

    async def pushed(self, call: PushHookCall, sequence: int) -> None:
        """Tell the hooks of the push that made log entry ``sequence``, while its client waits.

        Never fails: what does not go well now is told later. Returns after INLINE_MAX_S at the
        latest; a hook that runs longer goes on unheard.
        """
        wanted = self.hooks.of(call.repository, POST_RECEIVE)
        if not wanted:
            return
        heard = _Heard(call.tell, self.store.limits.hook_output_max_bytes)
        try:
            telling = self._tell_inline(call, sequence, wanted, heard.tell)
            if self._group is None:
                await telling
                return
            task = self._group.create_task(telling)
            self._inline.add(task)
            task.add_done_callback(self._inline.discard)
            await asyncio.wait({task}, timeout=INLINE_MAX_S)
        finally:
            heard.close()

    async def _tell_inline(
        self, call: PushHookCall, sequence: int, wanted: Sequence[Hook], tell: Tell
    ) -> None:
        for hook in wanted:
            try:
                await self._tell_one_inline(call, sequence, hook, tell)
            except Exception as error:
                self._pending = True
                _log_trouble(call.repository.name, error)

    async def _tell_one_inline(
        self, call: PushHookCall, sequence: int, hook: Hook, tell: Tell
    ) -> None:
        run = self.store.workers.run
        until = time.monotonic() + INLINE_WAIT_S
        while True:
            async with self._turn(call.repository.id, _id_of(hook)) as held:
                if held:
                    step = await run(self._step, call.repository.id, _id_of(hook), sequence)
                    if step is None or step.cursor.tries:
                        return  # told by another, or not its turn
                    if step.entry.sequence == sequence:
                        await self._tell(step, tell, call)
                        return
            if time.monotonic() > until:
                return
            await asyncio.sleep(LOOK_S)

    # ---- in the background ----

    async def _poll(self) -> None:
        owner: Turn | None = None
        run = self.store.workers.run
        try:
            while True:
                try:
                    if owner is None or not owner.held:
                        owner = await run(self.store.turns.try_take, "events/owner")
                    if owner is not None:
                        for key in await run(self._due):
                            self._start(key)
                except ShardgitError as error:
                    _log_trouble("", error)
                await asyncio.sleep(POLL_S)
        finally:
            if owner is not None:
                await run(owner.release)

    def _start(self, key: tuple[RepositoryId, bytes]) -> None:
        if self._group is None or key in self._telling or len(self._telling) >= TOLD_AT_ONCE_MAX:
            return
        task = self._group.create_task(self._tell_all(key))
        self._telling[key] = task
        task.add_done_callback(lambda _: self._telling.pop(key, None))

    def _due(self) -> list[tuple[RepositoryId, bytes]]:
        """Return the cursors that stand before their log's end and may be tried now."""
        revision = self.store.journal.revision()
        if revision == self._revision and not self._pending:
            return []
        now_ms = clock.now_ms()
        found = []
        pending = False
        with self.store.journal.snapshot() as snapshot:
            for row in snapshot.range(CURSORS, end_of(CURSORS)):
                repository, hook = split_cursor_key(row.key)
                cursor = HookCursor.decode(row.value)
                head = snapshot.get(refs_head_key(repository))
                if head is not None and RefsHead.decode(head.value).sequence > cursor.sequence:
                    pending = True
                    if cursor.next_ms <= now_ms:
                        found.append((repository, hook))
        self._revision, self._pending = snapshot.revision, pending
        return found

    async def _tell_all(self, key: tuple[RepositoryId, bytes]) -> None:
        try:
            async with self._turn(*key) as held:
                while held:
                    step = await self.store.workers.run(self._step, *key)
                    if step is None or not await self._tell(step, silent, None):
                        return
        except Exception as error:
            _log_trouble("", error)

    # ---- parts ----

    def _step(
        self, repository: RepositoryId, hook: bytes, sequence: int | None = None
    ) -> _Step | None:
        """Return what a hook is to be told next; None for nothing, or nothing yet.

        With ``sequence`` for the push that made that entry: now, and also without a cursor.
        """
        with self.store.journal.snapshot() as snapshot:
            row = snapshot.get(cursor_key(repository, hook))
            own = snapshot.get(repository_key(repository))
            record = RepositoryRecord.decode(own.value) if own else None
            one = self._hook(record, hook) if record else None
            if row is None and (sequence is None or one is None):
                return None
            cursor = HookCursor.decode(row.value) if row else HookCursor((sequence or 1) - 1)
            entry, lost, newest = None, False, 0
            if record is not None and one is not None:
                newest = self.store.refs.head(snapshot, record).sequence
                try:
                    since = self.store.refs.changes_since(snapshot, record, cursor.sequence)
                    entry = next(iter(since), None)
                except LogPositionUnknown:
                    lost = True
        revision = row.revision if row else 0
        if record is None or one is None:
            if row is not None:  # repository or hook is gone
                self.store.try_commit([Compare(row.key, revision)], [Delete(row.key)])
            return None
        if lost:  # the log was cut behind the cursor's back: what is gone cannot be told
            telemetry.log().error(
                "hook_events_lost", repository=record.name, cursor=cursor.sequence
            )
            self._move(repository, hook, revision, HookCursor(newest))
        if entry is None:
            return None
        now_ms = clock.now_ms()
        if sequence is None and max(cursor.next_ms, entry.time_ms + GRACE_MS) > now_ms:
            return None
        count = sum(1 for _ in _commands(entry))
        return _Step(record, one, cursor, revision, entry, count)

    def _hook(self, record: RepositoryRecord, hook: bytes) -> Hook | None:
        wanted = self.hooks.of(record, POST_RECEIVE)
        return next((each for each in wanted if _id_of(each) == hook), None)

    async def _tell(self, step: _Step, tell: Tell, call: PushHookCall | None) -> bool:
        """Tell a hook of an entry and move its cursor; False when it has to be tried again."""
        run = self.store.workers.run
        moved = HookCursor(step.entry.sequence)
        try:
            if step.count:  # a note without changes is no event
                async with self.hooks.folder() as folder:
                    event = await run(self._event, step, folder, call)
                    await self.hooks.ask(step.hook, event, tell)
        except ShardgitError as error:
            moved = self._failed(step, error)
        hook = _id_of(step.hook)
        done = await run(self._move, step.record.id, hook, step.revision, moved)
        return done and moved.sequence == step.entry.sequence

    def _failed(self, step: _Step, error: ShardgitError) -> HookCursor:
        """Return the cursor after a failure: at the same place, or past it after a day of tries."""
        self._pending = True
        tries = step.cursor.tries + 1
        if tries < TRIES_MAX:
            if not isinstance(error, HookFailed):  # that one is logged where it was asked
                _log_trouble(step.record.name, error)
            wait_ms = min(1_000 << min(tries - 1, 20), RETRY_MAX_MS)
            return HookCursor(step.cursor.sequence, tries, clock.now_ms() + wait_ms)
        metrics.HOOKS.labels(POST_RECEIVE, "given_up").inc()
        telemetry.log().error(
            "hook_event_given_up",
            repository=step.record.name,
            target=shown_target(step.hook),
            sequence=step.entry.sequence,
            error=str(error),
        )
        return HookCursor(step.entry.sequence)

    def _move(
        self, repository: RepositoryId, hook: bytes, revision: int, cursor: HookCursor
    ) -> bool:
        key = cursor_key(repository, hook)
        # commit point: before it the event is told again, after it never.
        faultpoints.reach("event.before_commit")
        done = self.store.try_commit([Compare(key, revision)], [Put(key, cursor.encode())])
        faultpoints.reach("event.after_commit")
        return done

    def _event(self, step: _Step, folder: Path, call: PushHookCall | None) -> HookEvent:
        entry = step.entry
        facts = call.certificate if call else None
        options = call.options if call else ()
        text = entry.certificate if facts is None else b""
        if text:
            request = PushRequest((), certificate=text)
            facts = certificate_facts(step.record, request, now_s=entry.time_ms // 1_000)
        return HookEvent(
            event=POST_RECEIVE,
            repository=step.record,
            principal=Principal(entry.actor, entry.address),
            commands=lambda: _commands(entry),
            count=step.count,
            folder=folder,
            request_id=telemetry.request_id.get(),
            options=options,
            certificate=facts,
            server=self.hooks.policy.server,
            sequence=entry.sequence,
            time_ms=entry.time_ms,
            reason=entry.message,
        )

    @asynccontextmanager
    async def _turn(self, repository: RepositoryId, hook: bytes) -> AsyncIterator[bool]:
        """Hold the turn to tell a hook, or give False; in a cluster etcd is asked for it, so not on the event loop."""
        run = self.store.workers.run
        turns: list[
            Turn
        ] = []  # so that one is given back, too, whose taker was cancelled meanwhile

        def take() -> None:
            turn = self.store.turns.try_take(f"events/{repository}-{hook.hex()}")
            if turn is not None:
                turns.append(turn)

        try:
            await run(take)
            yield bool(turns)
        finally:
            for turn in turns:
                await run(turn.release)


def _commands(entry: LogEntry) -> Iterator[Command]:
    """Return an entry's changes as commands; what symbolic refs do is not told, as with git."""
    for change in entry.changes:
        old = change.old.target if change.old else None
        new = change.new.target if change.new else None
        if old != new:
            yield Command(change.name, old, new)


class _Heard:
    """Shows output to a client until it is closed or the client is gone; a hook never waits for either."""

    def __init__(self, tell: Tell, most_bytes: int) -> None:
        self._bounded = Bounded(tell, most_bytes)
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def tell(self, data: bytes) -> None:
        if self._closed.done():
            return
        sending = asyncio.ensure_future(self._bounded.tell(data))
        try:
            await asyncio.wait({sending, self._closed}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and sending.exception() is not None:
                self.close()
        finally:
            sending.cancel()

    def close(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)


def _log_trouble(repository: str, error: Exception) -> None:
    telemetry.log().error("hook_delivery_failed", repository=repository, error=str(error))
