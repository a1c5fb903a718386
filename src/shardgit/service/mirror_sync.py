"""Mirrors brought in step: refs are compared first, who differs is imported; failures put the next try off."""

from __future__ import annotations

import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit import clock, metrics, telemetry
from shardgit.errors import MalformedInput, ReadOnly, ShardgitError, Stopped, StoreBusy
from shardgit.journal.mirror_records import MirrorRecord
from shardgit.processes import drop_left, own_prefix
from shardgit.progress import silent
from shardgit.refs.change import HEAD
from shardgit.service.importing import import_repository
from shardgit.service.mirror_copies import MirrorCopies, turn_of
from shardgit.service.mirrors import Mirrors
from shardgit.service.policy import follows
from shardgit.service.remote_clone import Errand
from shardgit.service.remote_url import checked_url, without_secret
from shardgit.service.settings import settings_of
from shardgit.service.writable import writable
from shardgit.turns import holding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardgit.journal.records import RepositoryRecord
    from shardgit.progress import Report
    from shardgit.service.mirror_copies import Copy
    from shardgit.service.mirror_credentials import Credentials
    from shardgit.service.mirrors import Mirror
    from shardgit.service.settings import MirrorSettings
    from shardgit.service.store import Store

BACK_OFF_MAX_S = 86_400
SWEEP_S = 600.0
REST_S = 10.0  # of one mirror, whatever the journal says: what cannot be noted keeps nobody busy
ERROR_MAX = 500


def sync_mirror(
    store: Store, name: str, credentials: Credentials, *, progress: Report = silent
) -> Mirror:
    """Bring one mirror in step with what it follows, and note how that went; by one process at a time.

    Errors: MirrorMissing, StoreBusy while another process is at it; all else that is wrong is noted, and raised.
    """
    mirrors = Mirrors(store)
    asked = mirrors.get(name).asked
    settings = _settings(store, name)
    try:
        _sync(store, mirrors, name, credentials, progress)
    except (Stopped, StoreBusy):
        raise
    except Exception as error:  # whatever it was, the others have their turn first
        _failed(mirrors, name, settings, error, asked)
        raise
    return mirrors.get(name)


def _settings(store: Store, name: str) -> MirrorSettings:
    with store.journal.snapshot() as snapshot:
        return settings_of(store.repository(snapshot, name)).mirror


def _sync(
    store: Store, mirrors: Mirrors, name: str, credentials: Credentials, progress: Report
) -> None:
    with store.journal.snapshot() as snapshot:
        record = writable(snapshot, store.repository(snapshot, name), syncs=True).record
        settings = settings_of(record).mirror
    with holding(store.turns, turn_of(record.id)) as ours:
        if not ours:
            _put_off(mirrors, name)
            raise StoreBusy("mirror is being brought in step by another", repository=name)
        begun_ms, asked = clock.now_ms(), mirrors.get(name).asked
        errand = Errand(
            checked_url(settings.url),
            store.limits,
            credentials.authorization(settings.credential),
            progress,
        )
        shown = _shown(store, errand)
        if not _in_step(store, name, settings, shown):
            _Bringing(store, record, settings, errand).run(_head(shown))
        done = MirrorRecord(
            due_ms=begun_ms + settings.interval_s * 1_000,
            tried_ms=begun_ms,
            synced_ms=clock.now_ms(),
        )
        mirrors.note(name, lambda now: _answered(now, done, asked))


def _answered(before: MirrorRecord, after: MirrorRecord, asked: int) -> MirrorRecord:
    """Return what is known after a try; who asked since it began wants another one."""
    due_ms = after.due_ms if before.asked == asked else 0
    return replace(after, due_ms=due_ms, asked=before.asked, answered=asked)


def _put_off(mirrors: Mirrors, name: str) -> None:
    """Look again in a moment: who is at it says when the mirror is due, unless it dies."""
    least_ms = clock.now_ms() + int(REST_S * 1_000)
    with suppress(ShardgitError):
        mirrors.note(name, lambda now: replace(now, due_ms=max(now.due_ms, least_ms)))


def _failed(
    mirrors: Mirrors, name: str, settings: MirrorSettings, error: Exception, asked: int
) -> None:
    now_ms = clock.now_ms()

    def worse(before: MirrorRecord) -> MirrorRecord:
        # What is read-only may be writable at any time, and asks nobody elsewhere.
        doublings = 0 if isinstance(error, ReadOnly) else min(before.failures + 1, 20)
        wait_s = max(min(settings.interval_s << doublings, BACK_OFF_MAX_S), settings.interval_s)
        after = replace(
            before,
            due_ms=now_ms + wait_s * 1_000,
            tried_ms=now_ms,
            failures=before.failures + 1,
            error=_words(error),
        )
        return _answered(before, after, asked)

    with suppress(ShardgitError):  # it is gone, or the journal is away: the next round looks again
        mirrors.note(name, worse)


def _shown(store: Store, errand: Errand) -> dict[bytes, bytes]:
    """Return the refs that the source shows; see Errand.refs."""
    store.scratch.mkdir(parents=True, exist_ok=True)
    drop_left(store.scratch, "listing")
    with tempfile.TemporaryDirectory(dir=store.scratch, prefix=own_prefix("listing")) as folder:
        return errand.refs(Path(folder))


def _in_step(
    store: Store, name: str, settings: MirrorSettings, shown: Mapping[bytes, bytes]
) -> bool:
    """Say whether the source shows the refs that the mirror has: then nothing need be fetched."""
    wanted = {
        ref: value
        for ref, value in shown.items()
        if ref.startswith(b"refs/") and follows(settings, ref)
    }
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
        there = {
            ref.name: (ref.target or b"").hex().encode()
            for ref in store.refs.list(snapshot, record)
        }
        head = store.refs.get(snapshot, record, HEAD)
    leads = _head(shown)
    return wanted == there and (not leads or (head is not None and head.symbolic == leads))


def _head(shown: Mapping[bytes, bytes]) -> bytes:
    """Return what HEAD leads to, b"" where it is detached or missing."""
    leads = shown.get(HEAD, b"")
    return leads[5:] if leads.startswith(b"ref: ") else b""


@dataclass(frozen=True, slots=True)
class _Bringing:
    """What is new is fetched into the copy of the source, and imported from there."""

    store: Store
    record: RepositoryRecord
    settings: MirrorSettings
    errand: Errand

    def run(self, head: bytes) -> None:
        copies = MirrorCopies(self.store.scratch, self.store.limits)
        copy = copies.refreshed(self.record.id, self.errand, head)
        try:
            self._import(copy)
        except MalformedInput:
            copies.drop(self.record.id)
            raise
        copies.keep(self.record.id)

    def _import(self, copy: Copy) -> None:
        run = partial(
            import_repository,
            self.store,
            self.record.name,
            str(copy.path),
            mirror=self.settings,
            progress=self.errand.progress,
        )
        if copy.imported:
            with suppress(MalformedInput):  # it needs what the pool has dropped since
                run(skips=copy.imported)
                return
        run()


class MirrorRounds:
    """The mirrors of a store, brought in step when they are due, some at a time; a thread of ``run`` each."""

    def __init__(self, store: Store, credentials: Credentials) -> None:
        self.store = store
        self.credentials = credentials
        self._busy: set[str] = set()
        self._rests: dict[str, float] = {}  # until when what went wrong is left alone
        self._swept = float("-inf")
        self._lock = threading.Lock()

    def sync_next(self, progress: Report) -> bool:
        """Bring the mirror that waits for longest in step; False when none is due. Errors: what progress raises."""
        self._sweep()
        name = self._take()
        if name is None:
            return False
        begun, outcome = clock.monotonic(), "failed"
        try:
            sync_mirror(self.store, name, self.credentials, progress=progress)
            outcome = "done"
        except Stopped:
            outcome = ""  # it is begun again
            raise
        except ShardgitError as error:
            outcome = "away"
            telemetry.log().warning("mirror_not_synced", repository=name, error=_words(error))
        finally:
            with self._lock:
                self._busy.discard(name)
                if outcome != "done":
                    self._rests[name] = clock.monotonic() + REST_S
            if outcome:
                metrics.MAINTENANCE.labels("mirror", outcome).inc()
                metrics.MAINTENANCE_SECONDS.labels("mirror").inc(clock.monotonic() - begun)
        return True

    def _sweep(self) -> None:
        """Let copies go that nobody needs, from time to time, however much there is to do."""
        with self._lock:
            if clock.monotonic() - self._swept < SWEEP_S:
                return
            self._swept = clock.monotonic()
        copies = MirrorCopies(self.store.scratch, self.store.limits)
        copies.sweep(Mirrors(self.store).ids(), self.store.turns)

    def _take(self) -> str | None:
        with self._lock:
            now_s = clock.monotonic()
            self._rests = {name: end for name, end in self._rests.items() if end > now_s}
            for name in Mirrors(self.store).due(clock.now_ms()):
                if name not in self._busy and name not in self._rests:
                    self._busy.add(name)
                    return name
        return None


def _words(error: Exception) -> str:
    return without_secret(str(error))[:ERROR_MAX]
