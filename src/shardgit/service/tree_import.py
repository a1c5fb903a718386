"""Bulk import: all Git repositories below a folder, side by side, as far as they differ from what is there.

A run that was stopped is simply begun again: what has the source's refs already is passed over. A repository that
borrows its objects from another of the tree (``objects/info/alternates``) becomes a fork of that one, so that the
objects they share are kept once. What fails is told at the end; the others go on.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit.errors import (
    LimitExceeded,
    MalformedInput,
    ReadOnly,
    RepositoryMissing,
    ShardgitError,
    StorageFull,
)
from shardgit.journal.mode import check_mode
from shardgit.progress import Progress, Report, silent
from shardgit.refs.change import HEAD
from shardgit.refs.log import LogNote
from shardgit.service.forks import sibling
from shardgit.service.importing import MESSAGE, import_repository
from shardgit.service.names import check_repository_name
from shardgit.service.repositories import Repositories
from shardgit.service.source import GitSource
from shardgit.service.tree import in_order, repositories_below
from shardgit.workers import Workers

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from shardgit.service.importing import ImportResult
    from shardgit.service.store import Store
    from shardgit.service.tree import Found

FOUND_MAX = 1_000_000
JOBS_MAX = 64
SHOW_S = 0.1
NEW, CHANGED, UNCHANGED, FORKED, FAILED, LEFT = (
    "new",
    "changed",
    "unchanged",
    "forked",
    "failed",
    "not tried",
)


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """What became, or would become, of one repository: new, changed, unchanged, forked, failed or not tried."""

    name: str
    source: str
    state: str
    base: str = ""  # of which it is a fork
    refs: int = 0
    objects: int = 0  # that were new to the pool
    stored_bytes: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class TreeImported:
    """What a bulk import did; ``counts`` by state."""

    entries: tuple[TreeEntry, ...]
    counts: dict[str, int]
    objects: int
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether all is there that was found."""
        return not self.counts.get(FAILED) and not self.counts.get(LEFT)


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """How a tree is imported."""

    prefix: str = ""  # of all names
    jobs: int = 0  # side by side; 0: two a core
    dry_run: bool = False
    overwrite: bool = False  # what was pushed since the last import


def import_tree(
    store: Store, root: Path, options: TreeOptions | None = None, *, progress: Report = silent
) -> TreeImported:
    """Import all repositories below a folder; those that fail are among the entries.

    Errors: NotFound and Refused for the folder, ReadOnly, LimitExceeded.
    """
    begun = time.monotonic()
    options = options or TreeOptions()
    found: list[Found] = []
    for one in repositories_below(root):
        found.append(one)
        if len(found) > FOUND_MAX:
            raise LimitExceeded("tree has too many repositories", limit=FOUND_MAX)
        if not len(found) % 100:
            progress(Progress("looking for repositories", len(found), None, "objects"))
    with store.journal.snapshot() as snapshot:
        check_mode(snapshot)
    entries = _Tree(store, options, found, progress).run()
    entries.sort(key=lambda one: one.name)
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.state] = counts.get(entry.state, 0) + 1
    return TreeImported(
        tuple(entries),
        counts,
        sum(entry.objects for entry in entries),
        time.monotonic() - begun,
    )


class _Tree:
    """One run."""

    def __init__(
        self, store: Store, options: TreeOptions, found: list[Found], progress: Report
    ) -> None:
        self.store = store
        self.options = options
        self.ordered = in_order(found)
        self.progress = progress
        self.stop: ShardgitError | None = None  # no use in going on
        self._names: dict[Path, str] = {}
        self._done: dict[Path, Future[TreeEntry]] = {}
        self._changed = threading.Event()

    def run(self) -> list[TreeEntry]:
        """Import all, bases first; returns what became of each."""
        jobs = self.options.jobs or 2 * (os.cpu_count() or 1)
        taken: set[str] = set()
        with closing(Workers(max(1, min(jobs, JOBS_MAX)))) as workers:
            waiting: list[tuple[Found, Found | None, str]] = []
            for one, base in self.ordered:
                name = self.options.prefix + one.name
                double = name in taken
                taken.add(name)
                self._names[one.git] = name
                waiting.append((one, base, "two sources have that name" if double else ""))
            # A job may wait for its base's: bases come first, so there is always one that waits for nobody.
            for one, base, wrong in waiting:
                self._done[one.git] = workers.submit(self._one, one, base, wrong)
            return self._heard()

    def _heard(self) -> list[TreeEntry]:
        futures = list(self._done.values())
        try:
            while (done := sum(each.done() for each in futures)) < len(futures):
                self._show(done)
                self._changed.wait(SHOW_S)
                self._changed.clear()
        except BaseException:
            self.stop = self.stop or ShardgitError("stopped")
            raise
        self._show(len(futures))
        return [each.result() for each in futures]

    def _show(self, done: int) -> None:
        self.progress(Progress("importing repositories", done, len(self._done), "objects"))

    def _one(self, one: Found, base: Found | None, wrong: str) -> TreeEntry:
        begun = time.monotonic()
        entry = TreeEntry(self._names[one.git], str(one.path), FAILED)
        try:
            if self.stop is not None:
                entry = replace(entry, state=LEFT, error=str(self.stop))
            elif wrong:
                entry = replace(entry, error=wrong)
            else:
                entry = self._imported(entry, one, base)
        except (StorageFull, ReadOnly) as error:
            if isinstance(error, StorageFull) or "repository" not in error.facts:
                self.stop = error
            entry = replace(entry, error=str(error))
        except (ShardgitError, OSError) as error:
            entry = replace(entry, error=str(error))
        self._changed.set()
        return replace(entry, seconds=time.monotonic() - begun)

    def _imported(self, entry: TreeEntry, one: Found, base: Found | None) -> TreeEntry:
        check_repository_name(entry.name, max_bytes=self.store.limits.repository_name_max_bytes)
        above = self._base(base)
        with GitSource(one.path, scratch=self.store.scratch, limits=self.store.limits) as origin:
            state, refs = self._state(entry.name, origin)
        if above and state == NEW:
            entry = replace(entry, base=above)
            state = FORKED
        entry = replace(entry, state=state, refs=refs)
        if self.options.dry_run or state == UNCHANGED:
            return entry
        if state == FORKED:
            # Not a fork: refs of the base that the source lacks would be in the log for good.
            sibling(self.store, above, entry.name, LogNote("", MESSAGE))
        try:
            done = self._import(one, entry.name, borrows=not above)
        except BaseException:
            if (
                state == FORKED
            ):  # what was made for this goes with it; after a crash the next run goes on
                with suppress(ShardgitError):
                    Repositories(self.store).delete(entry.name)
            raise
        return replace(entry, refs=done.refs, objects=done.objects, stored_bytes=done.stored_bytes)

    def _import(self, one: Found, name: str, *, borrows: bool) -> ImportResult:
        """Import a repository; of one whose base the pool has, its own objects are read alone, if they do."""
        overwrite = self.options.overwrite
        if not borrows:
            with suppress(MalformedInput):  # it needs what no ref of its base reaches
                return import_repository(
                    self.store, name, str(one.path), overwrite=overwrite, borrows=False
                )
        return import_repository(self.store, name, str(one.path), overwrite=overwrite)

    def _state(self, name: str, origin: GitSource) -> tuple[str, int]:
        """Say how a source stands to what is there, and how many refs it has."""
        wanted = {
            ref.name: (ref.target, ref.symbolic)
            for ref in origin.refs()
            if ref.name.startswith(b"refs/")
        }
        head = origin.head()
        with self.store.journal.snapshot() as snapshot:
            try:
                record = self.store.repository(snapshot, name)
            except RepositoryMissing:
                return NEW, len(wanted)
            there = {
                ref.name: (ref.target, ref.symbolic)
                for ref in self.store.refs.list(snapshot, record)
            }
            at = self.store.refs.get(snapshot, record, HEAD)
        now = (at.target, at.symbolic) if at is not None else None
        same = there == wanted and (head is None or now == (head.target, head.symbolic))
        return UNCHANGED if same else CHANGED, len(wanted)

    def _base(self, base: Found | None) -> str:
        """Return the name of the repository that one builds on, once that is there; "" without."""
        if base is None:
            return ""
        entry = self._done[base.git].result()
        return entry.name if entry.state not in (FAILED, LEFT) else ""
