"""Bundles that no row names any more are deleted, once nobody can still read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.errors import InvalidArgument

if TYPE_CHECKING:
    from shardgit.journal.bundles import Bundles
    from shardgit.journal.etcd import EtcdJournal

GRACE_MIN_S = (
    60.0  # a bundle is put before the commit that names it: some 40 s and COMMIT_S at most
)


class BundleGarbage:
    """Looks for orphans again and again; what it has seen without a name for ``grace_s`` it deletes.

    The grace is longer than any request: a snapshot that was opened before a row was deleted still reads its bundle.
    Nothing is kept of what was seen: who begins anew waits once more. ``bundles`` are this journal's alone.
    """

    def __init__(self, journal: EtcdJournal, bundles: Bundles, *, grace_s: float) -> None:
        if grace_s < GRACE_MIN_S:
            raise InvalidArgument("grace of bundles is too short", seconds=grace_s)
        self._journal = journal
        self._bundles = bundles
        self._grace_ms = round(grace_s * 1_000)
        self._unnamed: dict[bytes, int] = {}  # since when

    def sweep(self) -> int:
        """Delete what is due; returns how many bundles. Errors as of Journal.fresh and of Bundles."""
        now = clock.now_ms()
        old = {
            bundle for bundle, created in self._bundles.scan() if created <= now - self._grace_ms
        }
        # Behind the list: whatever was to be named by then is named now, or never will be.
        self._journal.fresh_sync()
        left = old - self._journal.bundles_named()
        self._unnamed = {bundle: self._unnamed.get(bundle, now) for bundle in left}
        due = [bundle for bundle, since in self._unnamed.items() if now - since >= self._grace_ms]
        self._bundles.delete(due)
        for bundle in due:
            del self._unnamed[bundle]
        return len(due)
