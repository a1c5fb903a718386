"""Loads an on-disk repository into a store: every object, the refs that git would show, its settings."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gitsuite.settings import settings_from

from shardgit.errors import ShardgitError
from shardgit.journal.interface import Compare, Put
from shardgit.journal.records import RepositoryRecord, repository_key
from shardgit.pool.grafts import NO_GRAFTS, Grafts
from shardgit.progress import silent
from shardgit.refs.name import check_ref_name
from shardgit.service.importing import _Import, _ref
from shardgit.service.incoming import Incoming
from shardgit.service.settings import encode_settings
from shardgit.service.source import GitSource, SourceRef

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gitsuite.disk import DiskRepository

    from shardgit._layout import Ingest
    from shardgit.service.store import Store


class Everything(_Import):
    """An import that leaves nothing out.

    git's servers know unreachable objects, pass over refs to objects that are not there, and serve repositories with
    holes as long as nobody asks for what is missing; shardgit's import refuses or drops these. receive-pack shows
    ``dangling`` refs as well.
    """

    dangling = False

    def _fill(
        self,
        record: RepositoryRecord,
        ingest: Ingest,
        source_refs: Sequence[SourceRef],
        source_head: SourceRef | None,
    ) -> None:
        grafts = Grafts.of(self.origin.shallow())
        incoming = Incoming(ingest, None, record.hash_kind, self.store.limits, grafts=grafts)
        kept = [
            ref
            for ref in source_refs
            if self.dangling or ref.target is None or incoming.position(ref.target) >= 0
        ]
        refs = [_ref(incoming, ref) for ref in kept]
        head = _ref(incoming, source_head) if source_head else None
        self.objects = ingest.objects_kept
        with self.store.journal.snapshot() as snapshot:
            state = self.store.state(snapshot, self.name)
        laid_out = incoming.segments, incoming.stream
        steps = self._write(record, state.pool, ingest, *laid_out) if self.objects else ([], [])
        with self.store.journal.snapshot() as snapshot:
            change = self.store.refs.replace_all(snapshot, record, refs, head, None)
        more = self.store.graft_steps(record, NO_GRAFTS, grafts)
        self.store.journal.commit_sync(
            [*change.conditions, *steps[0]], [*change.operations, *more, *steps[1]]
        )


class Source(GitSource):
    """A repository on disk with the refs that have valid names; of a namespace, its refs alone."""

    prefix = b""

    def refs(self) -> list[SourceRef]:
        """Return the refs that git shows."""
        found = []
        for ref in super().refs():
            if not ref.name.startswith(self.prefix + b"refs/"):
                continue
            inner = self._inside(ref)
            try:
                check_ref_name(inner.name)
            except ShardgitError:
                continue
            found.append(inner)
        return found

    def head(self) -> SourceRef | None:
        """Return HEAD, the namespace's own where there is one."""
        if not self.prefix:
            return super().head()
        name = self.prefix + b"HEAD"
        heads = [self._inside(ref) for ref in super().refs() if ref.name == name]
        return heads[0] if heads else None

    def _inside(self, ref: SourceRef) -> SourceRef:
        symbolic = ref.symbolic.removeprefix(self.prefix) if ref.symbolic else None
        return SourceRef(ref.name.removeprefix(self.prefix), ref.target, symbolic)


def load(store: Store, name: str, disk: DiskRepository, *, dangling: bool = False) -> None:
    """Import a repository with all its objects, refs and settings; ``dangling`` refs too if wanted."""
    source = Source(disk.folder, scratch=store.scratch, limits=store.limits)
    source.prefix = disk.namespace
    with source:
        job = Everything(store, name, source, silent)
        job.dangling = dangling
        job.run(use_index=True)
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
        row = snapshot.get(repository_key(record.id))
        assert row is not None
    wanted = encode_settings(settings_from(disk))
    if wanted != record.settings:
        changed = replace(record, settings=wanted)
        store.journal.commit_sync(
            [Compare(row.key, row.revision)], [Put(row.key, changed.encode())]
        )
