"""A store that is opened here. Each verb imports its service: all of them are half a second of CPU a command."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING, Any

from shardgit.cli.backend import ChangeRow, LogLine, ObjectRow, RefRow
from shardgit.errors import RefMissing
from shardgit.refs.log import LogNote
from shardgit.refs.ref import Ref
from shardgit.service.access import trusted
from shardgit.service.repositories import PAGE, Repositories

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from shardgit.cli.when import When
    from shardgit.oid import HashKind, ObjectId
    from shardgit.refs.update import RefUpdate
    from shardgit.service.configuring import SettingsView
    from shardgit.service.explained import CloneExplained
    from shardgit.service.repositories import RepositoryInfo, RepositoryStats
    from shardgit.service.shards import ShardInfo
    from shardgit.service.store import Store


class LocalBackend:
    """See Backend."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._repositories = Repositories(store)

    def create(self, name: str, kind: HashKind) -> RepositoryInfo:
        """See Backend."""
        return self._repositories.create(name, kind, note=note_of_user("create"))

    def repository(self, name: str) -> RepositoryInfo:
        """See Backend."""
        return self._repositories.get(name)

    def repositories(self, prefix: str) -> Iterator[RepositoryInfo]:
        """See Backend."""
        after = ""
        while True:
            some = self._repositories.list(prefix=prefix, after=after, limit=PAGE)
            yield from some
            if len(some) < PAGE:
                return
            after = some[-1].name

    def stats(self, name: str) -> RepositoryStats:
        """See Backend."""
        return self._repositories.stats(name)

    def explain_clone(self, name: str, depth: int, filters: Sequence[str]) -> CloneExplained:
        """See Backend."""
        from shardgit.service.explaining import explained

        return explained(self._store, name, depth=depth, filters=filters)

    def delete(self, name: str) -> None:
        """See Backend."""
        self._repositories.delete(name, note=note_of_user("delete"))

    def rename(self, name: str, new_name: str) -> RepositoryInfo:
        """See Backend."""
        return self._repositories.rename(
            name, new_name, note=note_of_user(f"rename from {name} to {new_name}")
        )

    def fork(self, source: str, target: str) -> RepositoryInfo:
        """See Backend."""
        return self._repositories.fork(source, target, note=note_of_user(f"fork of {source}"))

    def refs(self, name: str, prefix: bytes) -> Iterator[RefRow]:
        """See Backend."""
        from shardgit.service.fetch import advertised

        for ref in advertised(self._store, name, (prefix,) if prefix else ()):
            if ref.name != b"HEAD":
                yield RefRow(ref.name, ref.target, ref.peeled, ref.symbolic)

    def ref(self, name: str, ref: bytes) -> RefRow:
        """See Backend."""
        from shardgit.service.fetch import advertised

        for one in advertised(self._store, name, (ref,)):
            if one.name == ref:
                return RefRow(one.name, one.target, one.peeled, one.symbolic)
        text = ref.decode("utf-8", "replace")
        raise RefMissing("ref does not exist", ref=text, repository=name)

    def update_ref(self, name: str, update: RefUpdate, message: str) -> None:
        """See Backend."""
        from shardgit.service.ref_updates import update_refs

        note = note_of_user(message or "update")
        principal = trusted(note.actor)
        update_refs(self._store, name, [update], atomic=True, note=note, principal=principal)

    def ref_log(self, name: str, ref: bytes | None, limit: int | None) -> Iterator[LogLine]:
        """See Backend."""
        from shardgit.service.ref_log import log_rows

        for row in log_rows(self._store, name, ref, limit=limit):
            entry = row.entry
            yield LogLine(
                entry.sequence,
                entry.time_ms,
                entry.actor,
                entry.message,
                entry.address,
                tuple(_change(change.name, change.old, change.new) for change in row.changes),
                len(entry.changes),
            )

    def restore_ref(
        self, name: str, ref: bytes, when: When, message: str, *, override: bool = False
    ) -> ChangeRow:
        """See Backend."""
        from shardgit.service.ref_log import restore_ref, restoring

        note = note_of_user(message or "restore")
        update = restoring(self._store, name, ref, time_ms=when.time_ms, back=when.back)
        principal = trusted(note.actor)
        was, _ = restore_ref(
            self._store, name, update, note=note, principal=principal, override=override
        )
        return _change(ref, None, was)

    def open(self, name: str, revision: str) -> tuple[ObjectRow, Iterator[bytes]]:
        """See Backend."""
        from shardgit.service.reading import Reading

        reading = Reading(self._store, name)
        info, pieces = reading.stream(reading.resolve(revision))
        return ObjectRow(info.id, info.type, info.size), pieces

    def objects(self, name: str) -> Iterator[ObjectRow]:
        """See Backend."""
        from shardgit.service.reading import Reading

        for some in Reading(self._store, name).all_infos():
            for info in some:
                yield ObjectRow(info.id, info.type, info.size)

    def put(self, name: str, objects: Iterable[tuple[int, bytes]]) -> list[ObjectId]:
        """See Backend."""
        from shardgit.service.uploading import put_objects

        return put_objects(self._store, name, objects)

    def settings(self, name: str) -> SettingsView:
        """See Backend."""
        from shardgit.service.configuring import Configuring, view_of

        return view_of(Configuring(self._store).get(name))

    def update_settings(self, name: str, changes: Mapping[str, Any]) -> SettingsView:
        """See Backend."""
        from shardgit.service.configuring import Configuring, view_of

        return view_of(Configuring(self._store).update(name, changes))

    def shards(self) -> list[ShardInfo]:
        """See Backend."""
        from shardgit.service.shards import list_shards

        return list_shards(self._store)


def note_of_user(message: str) -> LogNote:
    """Return the note of a change that whoever runs the command makes."""
    try:
        actor = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user without a name
        actor = f"uid {os.getuid()}"
    return LogNote(actor, message)


def _change(name: bytes, old: Ref | None, new: Ref | None) -> ChangeRow:
    before, after = old or Ref(name), new or Ref(name)
    return ChangeRow(name, before.target, after.target, before.symbolic, after.symbolic)
