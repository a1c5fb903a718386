"""Which backup of a target holds a moment."""

from __future__ import annotations

from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING

from shardgit.errors import BackupMissing, DataLoss, Refused

if TYPE_CHECKING:
    from shardgit.backup.cut import Cut
    from shardgit.backup.target import Target

LOOKED_AT = 32  # newest backups


def choose_cut(
    target: Target, *, backup: str | None = None, at_ms: int | None = None, store: str = ""
) -> Cut:
    """Return the backup of that id, the newest one without, or the first one taken at a moment or later.

    Its ref log leads back to the moment. Of several stores that share a target it is one of ``store``, an id, if that
    is among them. Errors: BackupMissing, also for a moment behind the newest backup; Refused where the stores take
    turns and nothing says which of them is meant.
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
    wanted = _store_meant(target, ids, store)
    newest: str | None = None
    for name in reversed(ids):
        facts = target.facts(name)
        if wanted not in ("", facts.store):
            continue
        if at_ms is None:
            return target.cut(name)
        if facts.taken_ms < at_ms:
            break
        newest = name
    if newest is None:
        raise BackupMissing(
            "no backup was taken since that moment; without --at the newest one is restored",
            target=target.bucket.where,
            newest=ids[-1],
        )
    return target.cut(newest)


def _store_meant(target: Target, ids: list[str], store: str) -> str:
    """Return the store whose backups are to be taken; "" for whatever is newest.

    A restored store, which has an id of its own, may go on in the target of the store that it was: it takes no turns.
    """
    stores: list[str] = []
    for name in ids[-LOOKED_AT:]:
        with suppress(DataLoss):
            stores.append(target.facts(name).store)
    if store in stores:
        return store
    if len(list(groupby(stores))) > len(set(stores)):
        raise Refused(
            "several stores back up to that target; choose with --backup",
            target=target.bucket.where,
            stores=sorted(set(stores)),
        )
    return ""
