"""Pull mirrors: repositories that follow another one elsewhere, by their settings ``mirror.*``.

A mirror takes no pushes. Its row of table V says when it is due; service/mirror_sync.py brings it in step.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit.errors import Conflict, MirrorMissing, RepositoryExists
from shardgit.faultpoints import reach
from shardgit.journal.interface import Compare, Put, end_of
from shardgit.journal.mirror_records import MIRRORS, MirrorRecord, mirror_key
from shardgit.journal.mode import check_mode
from shardgit.journal.records import RepositoryRecord, repository_key
from shardgit.oid import HashKind, RepositoryId
from shardgit.service.configuring import Configuring
from shardgit.service.remote_url import checked_url
from shardgit.service.repositories import Repositories
from shardgit.service.setting_keys import changed
from shardgit.service.settings import DEFAULTS, check_mirrored, encode_settings, settings_of
from shardgit.service.writable import writable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.refs.log import LogNote
    from shardgit.service.store import Store

ROUNDS_MAX = 16


@dataclass(frozen=True, slots=True)
class Mirror:
    """A repository that follows another, and how that goes. Times are 0 while there was none."""

    repository: str
    url: str
    interval_s: int
    refs: tuple[str, ...]
    credential: str
    due_ms: int
    tried_ms: int
    synced_ms: int
    failures: int
    error: str
    asked: int = 0  # how often somebody wanted it in step at once,
    answered: int = 0  # and how many of these there were when the last try began


@dataclass(frozen=True, slots=True)
class MirrorPlan:
    """What a mirror is to be."""

    url: str
    interval_s: int = 300
    refs: tuple[str, ...] = ()
    credential: str = ""
    overwrite: bool = False  # refs that the repository has
    hash_kind: HashKind = HashKind.SHA1  # of one that is made


class Mirrors:
    """The mirrors of a store. Methods run in the calling thread."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(self, name: str, plan: MirrorPlan, note: LogNote) -> Mirror:
        """Have a repository, which is made when it is missing, follow a URL from now on.

        Errors: InvalidArgument and Refused for the URL, Refused for a repository with refs unless ``overwrite``.
        """
        checked_url(plan.url)
        check_mirrored(plan.url)
        changes = {
            "mirror.url": plan.url,
            "mirror.interval_s": plan.interval_s,
            "mirror.refs": list(plan.refs),
            "mirror.credential": plan.credential,
        }
        encode_settings(changed(DEFAULTS, changes))  # or nothing is made
        with self.store.journal.snapshot() as snapshot:
            check_mode(snapshot)
        with suppress(RepositoryExists):
            Repositories(self.store).create(name, plan.hash_kind, note=note)
        Configuring(self.store).update(name, changes, overwrite=plan.overwrite)
        return self.get(name)

    def get(self, name: str) -> Mirror:
        """Return a mirror. Errors: RepositoryMissing, MirrorMissing."""
        with self.store.journal.snapshot() as snapshot:
            return _mirror(snapshot, self.store.repository(snapshot, name))

    def all(self) -> list[Mirror]:
        """Return all mirrors by name."""
        with self.store.journal.snapshot() as snapshot:
            found = []
            for row in snapshot.range(MIRRORS, end_of(MIRRORS)):
                kept = snapshot.get(repository_key(_id_of(row.key)))
                if kept is not None:
                    found.append(_mirror(snapshot, RepositoryRecord.decode(kept.value)))
        return sorted(found, key=lambda one: one.repository)

    def ids(self) -> set[RepositoryId]:
        """Return the repositories that follow another."""
        with self.store.journal.snapshot() as snapshot:
            return {_id_of(row.key) for row in snapshot.range(MIRRORS, end_of(MIRRORS))}

    def due(self, now_ms: int) -> list[str]:
        """Return the names of the mirrors whose time has come, the one that waits for longest first."""
        found: list[tuple[int, str]] = []
        with self.store.journal.snapshot() as snapshot:
            for row in snapshot.range(MIRRORS, end_of(MIRRORS)):
                record = MirrorRecord.decode(row.value)
                kept = snapshot.get(repository_key(_id_of(row.key)))
                if record.due_ms <= now_ms and kept is not None:
                    found.append((record.due_ms, RepositoryRecord.decode(kept.value).name))
        return [name for _, name in sorted(found)]

    def hasten(self, name: str) -> Mirror:
        """Have a mirror brought in step as soon as somebody can. Errors: MirrorMissing, ReadOnly."""
        with self.store.journal.snapshot() as snapshot:
            writable(snapshot, self.store.repository(snapshot, name), syncs=True)
        self.note(name, lambda now: replace(now, due_ms=0, asked=now.asked + 1))
        return self.get(name)

    def note(self, name: str, change: Callable[[MirrorRecord], MirrorRecord]) -> None:
        """Change what is known of how a mirror is doing. Errors: MirrorMissing, Conflict."""
        for _ in range(ROUNDS_MAX):
            with self.store.journal.snapshot() as snapshot:
                record = self.store.repository(snapshot, name)
                row = snapshot.get(mirror_key(record.id))
            if row is None:
                raise MirrorMissing("repository is no mirror", repository=name)
            now = change(MirrorRecord.decode(row.value))
            # commit point: before it what was known before is, after it this.
            reach("mirror.before_note")
            if self.store.try_commit(
                [Compare(row.key, row.revision)], [Put(row.key, now.encode())]
            ):
                reach("mirror.after_note")
                return
        raise Conflict("mirror is being changed by many at once", repository=name)

    def remove(self, name: str) -> None:
        """Have a repository follow nobody: it keeps what it has, and takes pushes. Errors: MirrorMissing."""
        with self.store.journal.snapshot() as snapshot:
            if not settings_of(self.store.repository(snapshot, name)).mirror.url:
                raise MirrorMissing("repository is no mirror", repository=name)
        keys: Sequence[str] = ("url", "interval_s", "refs", "credential")
        Configuring(self.store).update(name, dict.fromkeys(f"mirror.{key}" for key in keys))


def _id_of(key: bytes) -> RepositoryId:
    return RepositoryId(int.from_bytes(key[len(MIRRORS) :], "big"))


def _mirror(snapshot: JournalSnapshot, record: RepositoryRecord) -> Mirror:
    settings = settings_of(record).mirror
    row = snapshot.get(mirror_key(record.id))
    if row is None or not settings.url:
        raise MirrorMissing("repository is no mirror", repository=record.name)
    state = MirrorRecord.decode(row.value)
    return Mirror(
        repository=record.name,
        url=settings.url,
        interval_s=settings.interval_s,
        refs=settings.refs,
        credential=settings.credential,
        due_ms=state.due_ms,
        tried_ms=state.tried_ms,
        synced_ms=state.synced_ms,
        failures=state.failures,
        error=state.error,
        asked=state.asked,
        answered=state.answered,
    )
