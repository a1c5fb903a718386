"""Settings of repositories: read, changed by compare-and-set."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shardgit import faultpoints
from shardgit.errors import Conflict, Refused, RepositoryMissing
from shardgit.journal.interface import Compare, Delete, Put
from shardgit.journal.mirror_records import MirrorRecord, mirror_key
from shardgit.journal.records import RepositoryRecord, refs_head_key, repository_key
from shardgit.service.events import cursor_operations
from shardgit.service.quotas import settings_steps
from shardgit.service.setting_keys import all_values, changed, set_keys
from shardgit.service.settings import (
    RepositorySettings,
    check_mirrored,
    encode_settings,
    settings_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardgit.journal.interface import JournalSnapshot, Operation
    from shardgit.service.store import Store

ROUNDS = 16  # of a change without an expected revision, against other writers
SEED_BYTES = 32


@dataclass(frozen=True, slots=True)
class SettingsState:
    """Settings, and the revision of the record that holds them."""

    settings: RepositorySettings
    revision: int


@dataclass(frozen=True, slots=True)
class SettingsView:
    """Every key's value as plain data; ``changed`` are those that differ from the defaults."""

    values: dict[str, Any]
    changed: tuple[str, ...]
    revision: int


def view_of(state: SettingsState) -> SettingsView:
    """Return settings by key."""
    return SettingsView(all_values(state.settings), tuple(set_keys(state.settings)), state.revision)


class Configuring:
    """The settings of a store's repositories. Methods run in the calling thread."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def get(self, name: str) -> SettingsState:
        """Return a repository's settings. Errors: RepositoryMissing."""
        with self.store.journal.snapshot() as snapshot:
            record, revision = self._record(snapshot, name)
        return SettingsState(settings_of(record), revision)

    def update(
        self,
        name: str,
        changes: Mapping[str, Any],
        *,
        expected: int = 0,
        overwrite: bool = False,
    ) -> SettingsState:
        """Set keys to plain data, or back to their defaults (None): all of them or none.

        With ``expected``, only when the record still has that revision. A repository with refs becomes no mirror,
        unless ``overwrite`` lets a source replace them. Errors: RepositoryMissing, InvalidArgument, Refused, Conflict.
        """
        for _ in range(ROUNDS):
            with self.store.journal.snapshot() as snapshot:
                record, revision = self._record(snapshot, name)
                newest = self.store.refs.head(snapshot, record).sequence
            if expected and revision != expected:
                raise Conflict(
                    "repository changed meanwhile; read its settings again", repository=name
                )
            settings = _seeded(changed(settings_of(record), changes))
            data = encode_settings(settings)
            if data == record.settings:
                return SettingsState(settings, revision)
            key = repository_key(record.id)
            after = replace(record, settings=data)
            kept = self._kept_refs(record, settings, overwrite=overwrite)
            cursors = cursor_operations(record, settings_of(record), settings, newest)
            with self.store.journal.snapshot() as snapshot:
                counts = settings_steps(snapshot, record, after)
                follows = mirror_steps(record, after)
            # commit point: before it the old settings stand, after it the new ones.
            faultpoints.reach("settings.before_commit")
            done = self.store.try_commit(
                [Compare(key, revision), *kept],
                [Put(key, after.encode()), *cursors, *counts, *follows],
            )
            if done:
                faultpoints.reach("settings.after_commit")
                return self.get(name)
        raise Conflict("repository is being changed by many at once", repository=name)

    def _kept_refs(
        self, record: RepositoryRecord, settings: RepositorySettings, *, overwrite: bool
    ) -> list[Compare]:
        """Return the condition that a repository that becomes a mirror has no refs still. Errors: Refused."""
        old, new = settings_of(record).mirror, settings.mirror
        if new.url and new.url != old.url:
            check_mirrored(new.url)
        if not new.url or old.url or overwrite:
            return []
        key = refs_head_key(record.id)
        with self.store.journal.snapshot() as snapshot:
            row = snapshot.get(key)
            count = self.store.refs.head(snapshot, record).count
        if count:
            raise Refused(
                "repository has refs, which a mirror would replace; mirror add --overwrite lets it",
                repository=record.name,
            )
        return [Compare(key, row.revision if row else 0)]

    def _record(self, snapshot: JournalSnapshot, name: str) -> tuple[RepositoryRecord, int]:
        row = snapshot.get(repository_key(self.store.repository(snapshot, name).id))
        if row is None:
            raise RepositoryMissing("repository does not exist", repository=name)
        return RepositoryRecord.decode(row.value), row.revision


def mirror_steps(before: RepositoryRecord, after: RepositoryRecord) -> list[Operation]:
    """Return what a commit needs that changes settings: a mirror has a row, and is due at once when it is another's."""
    old, new = settings_of(before).mirror, settings_of(after).mirror
    if old == new:
        return []
    key = mirror_key(after.id)
    return [Put(key, MirrorRecord().encode()) if new.url else Delete(key)]


def _seeded(settings: RepositorySettings) -> RepositorySettings:
    """Return settings in which signed pushes have a secret for their nonces."""
    if settings.signed_push.mode == "off" or settings.signed_push.nonce_seed:
        return settings
    return changed(settings, {"signed_push.nonce_seed": secrets.token_hex(SEED_BYTES)})
