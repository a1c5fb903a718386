"""Which backup of a target holds a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.errors import BackupMissing

if TYPE_CHECKING:
    from shardgit.backup.cut import Cut
    from shardgit.backup.target import Target


def choose_cut(target: Target, *, backup: str | None = None, at_ms: int | None = None) -> Cut:
    """Return the backup of that id, the newest one without, or the first one taken at a moment or later.

    Its ref log leads back to the moment. Errors: BackupMissing, also for a moment behind the newest backup.
    """
    if backup is not None:
        found = target.cut(backup)
        if at_ms is not None and found.facts.taken_ms < at_ms:
            raise BackupMissing(
                "backup is older than that moment", backup=backup, taken_ms=found.facts.taken_ms
            )
        return found
    ids = target.cut_ids()
    if not ids:
        raise BackupMissing("target holds no backup", target=target.bucket.where)
    if at_ms is None:
        return target.cut(ids[-1])
    newest: str | None = None
    for name in reversed(ids):
        if target.facts(name).taken_ms < at_ms:
            break
        newest = name
    if newest is None:
        raise BackupMissing(
            "no backup was taken since that moment; without --at the newest one is restored",
            target=target.bucket.where,
            newest=ids[-1],
        )
    return target.cut(newest)
