"""Reads of a repository as a push would leave it, before anything of that push is visible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.service.reading import Reading

if TYPE_CHECKING:
    from shardgit.journal.interface import JournalSnapshot
    from shardgit.pool.view import PoolView
    from shardgit.service.store import Reach, RepositoryState, Store
    from shardgit.service.uploads import Uploaded


class QuarantinedReading(Reading):
    """Reads over a view that shows pushed objects as well; names are those of the committed refs.

    ``reach`` is what the repository reaches with them: it and the view cover the same positions. It
    stays like that when the repository changes meanwhile.
    """

    def __init__(
        self,
        store: Store,
        state: RepositoryState,
        view: PoolView | None,
        reach: Reach,
        *,
        uploaded: Uploaded | None = None,
    ) -> None:
        self._pinned = False
        super().__init__(store, state.record.name)
        self._pinned = True
        self.state = state
        self.record = state.record
        self.view = view
        self._reach = reach
        # Found in the view that the push began with, whose positions are those of this one.
        self.uploaded = uploaded or store.uploads.none

    def _load(self, snapshot: JournalSnapshot, name: str) -> None:
        if not self._pinned:
            super()._load(snapshot, name)
