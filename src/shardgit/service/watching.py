"""Watching refs: the committed log, from any place on, each entry exactly once and in order."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from shardgit.errors import LimitExceeded, RepositoryMissing, ShardgitError, Unavailable
from shardgit.journal.records import RepositoryRecord, refs_head_key, repository_key

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

    from shardgit.oid import RepositoryId
    from shardgit.refs.log import LogChange, LogEntry
    from shardgit.service.store import Store

POLL_S = 0.02  # how late a commit of another process may be seen; one look costs 2 microseconds
ENTRIES_READ = 64  # of the log at once
CHANGES_SENT = 1_000  # of an entry at once
HEARTBEAT_S = 15.0


@dataclass(frozen=True, slots=True)
class Watched:
    """Part of an entry, or a heartbeat without one; all up to ``token`` was given whole."""

    token: int
    entry: LogEntry | None = None
    changes: tuple[LogChange, ...] = ()
    more: bool = False


class Watches:
    """Wakes those who watch repositories: one look at the journal for all of them.

    Used on one event loop. Once ``stopping`` is set all watches end with Unavailable: their
    clients go on elsewhere.
    """

    def __init__(
        self, store: Store, *, stopping: asyncio.Event | None = None, poll_s: float = POLL_S
    ) -> None:
        self.store = store
        self._stopping = stopping or asyncio.Event()
        self._nudge = asyncio.Event()
        self._poll_s = poll_s
        self._watchers: Counter[RepositoryId] = Counter()
        self._changed: dict[RepositoryId, asyncio.Event] = {}
        self._seen: dict[RepositoryId, int] = {}
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def _watching(self, repository: RepositoryId) -> Iterator[None]:
        if self._watchers.total() >= self.store.limits.watches_max:
            raise LimitExceeded("too many watches", limit=self.store.limits.watches_max)
        self._watchers[repository] += 1
        self._changed.setdefault(repository, asyncio.Event())
        if self._task is None:
            # For all watchers, so in the context of none of them.
            self._task = asyncio.create_task(self._poll(), name="watch-refs", context=Context())
        try:
            yield
        finally:
            self._watchers[repository] -= 1
            if not self._watchers[repository]:
                del self._watchers[repository]
                del self._changed[repository]
                self._seen.pop(repository, None)
            if not self._watchers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _poll(self) -> None:
        """Look at the journal's revision, and at the heads of what is watched when it moved.

        A commit of this process wakes it at once.
        """
        journal, revision = self.store.journal, -1
        loop = asyncio.get_running_loop()

        def committed() -> None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._nudge.set)

        with journal.listening(committed):
            while not self._stopping.is_set():
                self._nudge.clear()
                try:
                    now = journal.revision()
                    if now != revision or self._changed.keys() - self._seen.keys():
                        revision = await self._look()
                except ShardgitError:  # those who wait look for themselves at the heartbeat
                    revision = -1
                    await asyncio.sleep(self._poll_s)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await self._nudge.wait()
        for event in self._changed.values():
            event.set()

    async def _look(self) -> int:
        """Wake those whose repositories have moved; returns the revision that was looked at."""
        wanted = list(self._changed)

        def look() -> tuple[int, list[int]]:
            with self.store.journal.snapshot() as snapshot:
                rows = [snapshot.get(refs_head_key(repository)) for repository in wanted]
            return snapshot.revision, [row.revision if row else 0 for row in rows]

        revision, heads = await self.store.workers.run(look)
        for repository, head in zip(wanted, heads, strict=True):
            event = self._changed.get(repository)
            if event is not None and self._seen.get(repository) != head:
                self._seen[repository] = head
                event.set()  # wakes all who wait now; each of them reads what it has not seen
                self._changed[repository] = asyncio.Event()
        return revision

    async def watch(
        self,
        name: str,
        *,
        after: int | None = None,
        prefixes: Sequence[bytes] = (),
        heartbeat_s: float = HEARTBEAT_S,
        check: Callable[[str], None] | None = None,
    ) -> AsyncGenerator[Watched, None]:
        """Yield what is committed behind the entry ``after`` (now without), as it is committed.

        It follows the repository through renames. A heartbeat comes first, and whenever there was
        nothing else for that long. ``check`` is called, on a worker, with the repository's name of that moment before
        anything of it is given, and at every heartbeat; what it raises ends the watch. Errors: RepositoryMissing, at
        the start or once it is deleted; LogPositionUnknown; LimitExceeded.
        """
        run = self.store.workers.run
        record, newest = await run(self._begin, name)
        token = newest if after is None else after
        name_then = [record.name]

        def read(token: int) -> list[LogEntry]:
            return self._read(record, token, name_then, check)

        with self._watching(record.id):
            entries = await run(read, token)
            yield Watched(token)
            while True:
                waiting = self._changed[record.id]
                entries = entries or await run(read, token)
                for entry in entries:
                    async for part in self._parts(entry, token, tuple(prefixes)):
                        yield part
                    token = entry.sequence
                if entries:
                    entries = []
                    continue
                if self._stopping.is_set():
                    raise Unavailable("server is stopping; go on from the last token")
                with suppress(TimeoutError):
                    async with asyncio.timeout(heartbeat_s):
                        await waiting.wait()
                    continue
                yield Watched(token)

    def _begin(self, name: str) -> tuple[RepositoryRecord, int]:
        with self.store.journal.snapshot() as snapshot:
            record = self.store.repository(snapshot, name)
            return record, self.store.refs.head(snapshot, record).sequence

    def _read(
        self,
        record: RepositoryRecord,
        token: int,
        name_then: list[str],
        check: Callable[[str], None] | None,
    ) -> list[LogEntry]:
        """Return some entries behind the token; RepositoryMissing behind the last of a deleted one.

        Both are told by one moment of the journal: the deletion's own entry is never passed over.
        """
        with self.store.journal.snapshot() as snapshot:
            row = snapshot.get(repository_key(record.id))
            if row is not None:
                name_then[0] = RepositoryRecord.decode(row.value).name
            if check is not None:
                check(name_then[0])
            found = self.store.refs.changes_since(snapshot, record, token)
            entries = list(islice(found, ENTRIES_READ))
            if not entries and row is None:
                raise RepositoryMissing("repository was deleted", repository=record.name)
            return entries

    async def _parts(
        self, entry: LogEntry, token: int, prefixes: tuple[bytes, ...]
    ) -> AsyncGenerator[Watched, None]:
        """Yield an entry in parts; with prefixes nothing when it touches no such ref."""
        source = iter(entry.changes)
        if prefixes:
            source = (change for change in source if change.name.startswith(prefixes))

        def some() -> tuple[LogChange, ...]:
            return tuple(islice(source, CHANGES_SENT))

        changes = await self.store.workers.run(some)
        if prefixes and not changes:
            return
        while True:
            following = await self.store.workers.run(some) if len(changes) == CHANGES_SENT else ()
            if not following:
                yield Watched(entry.sequence, entry, changes)
                return
            yield Watched(token, entry, changes, more=True)
            changes = following
