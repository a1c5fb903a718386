"""Repositories for the console: by name, some at a time; sizes only of those that are looked at."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from shardgit.journal.interface import end_of
from shardgit.journal.records import (
    REPOSITORY_NAMES,
    PoolRecord,
    name_key,
    pool_key,
    recents_range,
)
from shardgit.pool.manifest import ALONE
from shardgit.pool.view import PoolView
from shardgit.service.repositories import Repositories
from shardgit.survey import RepositoryPage, RepositoryRow, RepositorySize

if TYPE_CHECKING:
    from shardgit.oid import PoolId
    from shardgit.service.store import Store

PAGE = 20
PASSED_MAX = 20_000  # names that one request looks through: 53 ms
SIZES_CACHED = 4_096


def page(store: Store, *, words: str, after: str) -> RepositoryPage:
    """Return repositories whose names contain ``words``, whatever the case, from the one behind ``after``.

    It looks through PASSED_MAX names at most, so a page may be short, or empty, and not be the last.
    """
    low = name_key(after) + b"\0" if after else REPOSITORY_NAMES
    wanted = words.casefold()
    found: list[str] = []
    last = ""
    passed = 0
    with store.journal.snapshot() as snapshot:
        for row in snapshot.range(low, end_of(REPOSITORY_NAMES)):
            if len(found) == PAGE or passed == PASSED_MAX:
                break
            passed += 1
            last = row.key.removeprefix(REPOSITORY_NAMES).decode()
            if wanted in last.casefold():
                found.append(last)
        else:
            last = ""
    return RepositoryPage(_rows(store, found), last)


def _rows(store: Store, names: list[str]) -> list[RepositoryRow]:
    """Return the rows of repositories; one that went meanwhile is left out."""
    listed = Repositories(store)
    rows = []
    for name in names:
        for info in listed.list(prefix=name, limit=1):
            if info.name == name:
                rows.append(
                    RepositoryRow(
                        info.name,
                        info.head,
                        info.created_ms,
                        info.hash_kind.name.lower(),
                        bool(info.forked_from),
                    )
                )
    return rows


class Sizes:
    """What pools take, from their manifests; a manifest that has not changed is not read again. For one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[PoolId, tuple[int, int, int]] = OrderedDict()

    def of(self, name: str) -> RepositorySize:
        """Return a repository's counts. Errors: RepositoryMissing, DataLoss."""
        store = self._store
        with store.journal.snapshot() as snapshot:
            record = store.repository(snapshot, name)
            refs = store.refs.head(snapshot, record).count
            row = snapshot.get(pool_key(record.pool))
            pool = PoolRecord.decode(record.pool, row.value) if row is not None else None
            waiting = sum(len(one.value) for one in snapshot.range(*recents_range(record.pool)))
        objects, stored = self._stored(pool) if pool is not None else (0, 0)
        return RepositorySize(name, refs, objects, stored, waiting)

    def _stored(self, pool: PoolRecord) -> tuple[int, int]:
        known = self._known.pop(pool.id, None)
        if known is None or known[0] != pool.generation:
            known = (pool.generation, *self._read(pool))
        self._known[pool.id] = known
        if len(self._known) > SIZES_CACHED:
            self._known.popitem(last=False)
        return known[1], known[2]

    def _read(self, pool: PoolRecord) -> tuple[int, int]:
        if pool.manifest is None:
            return 0, 0
        store = self._store
        with store.lease():  # a view of its own: the store's are for who is served
            view = PoolView(store.blocks, pool.hash_kind, pool.manifest, limits=store.limits)
        stored = sum(ref.length for ref in view.manifest.blocks())
        stored += sum(one.entry_bytes for one in view.manifest.segments if one.flags & ALONE)
        return view.objects, stored
