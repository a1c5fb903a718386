"""Loads an on-disk repository into a store: every object, the refs that git would show, its settings."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gitsuite.settings import settings_from

from shardgit.errors import ShardgitError
from shardgit.journal.interface import Compare, Put
from shardgit.journal.records import RepositoryRecord, repository_key
from shardgit.progress import silent
from shardgit.refs.name import check_ref_name
from shardgit.service.importing import _Import, _Reach
from shardgit.service.settings import encode_settings
from shardgit.service.source import GitSource, SourceRef

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gitsuite.disk import DiskRepository

    from shardgit._fastpack import Ingest
    from shardgit.service.store import Store

SHALLOW = re.compile(rb"[0-9a-f]{40,64}")


class Everything(_Import):
    """An import that leaves nothing out.

    git's servers know unreachable objects, pass over refs to objects that are not there, and serve repositories with
    holes as long as nobody asks for what is missing; shardgit's import refuses or drops these.
    """

    def _fill(
        self,
        record: RepositoryRecord,
        ingest: Ingest,
        source_refs: Sequence[SourceRef],
        source_head: SourceRef | None,
    ) -> None:
        reach = _Reach(ingest, None, self.store, self._layout(ingest))
        kept = [ref for ref in source_refs if ref.target is None or reach.position(ref.target) >= 0]
        refs = [reach.ref(ref) for ref in kept]
        head = reach.ref(source_head) if source_head else None
        self.objects = ingest.objects_kept
        with self.store.journal.snapshot() as snapshot:
            state = self.store.state(snapshot, self.name)
        manifest = self._write(record, reach, None) if self.objects else None
        with self.store.journal.snapshot() as snapshot:
            change = self.store.refs.replace_all(snapshot, record, refs, head, None)
        conditions, operations = list(change.conditions), list(change.operations)
        if manifest is not None:
            compare, put = self.store.next_pool(state.pool, manifest)
            conditions.append(compare)
            operations.append(put)
        self.store.journal.commit_sync(conditions, operations)


class Source(GitSource):
    """A repository on disk, shallow ones too, with the refs that have valid names."""

    def refs(self) -> list[SourceRef]:
        """Return the refs that git shows."""
        found = []
        for ref in super().refs():
            try:
                check_ref_name(ref.name)
            except ShardgitError:
                continue
            found.append(ref)
        return found


def load(store: Store, name: str, disk: DiskRepository) -> None:
    """Import a repository with all its objects, refs and settings."""
    with Source(Path(disk.folder), scratch=store.scratch, limits=store.limits) as source:
        Everything(store, name, source, silent).run(use_index=True)
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
