"""The mode of a store: whether it takes changes, set by operators while it is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints
from shardgit.errors import Conflict, InvalidArgument
from shardgit.journal.interface import Compare, Delete, Put
from shardgit.journal.mode import MODE_KEY, ModeRecord, mode_of

if TYPE_CHECKING:
    from shardgit.service.store import Store

WHY_MAX = 1_000
ROUNDS_MAX = 16


@dataclass(frozen=True, slots=True)
class StoreMode:
    """Whether a store is read-only, why, who said so, and since when."""

    read_only: bool
    why: str = ""
    by: str = ""
    since_ms: int = 0


def checked_reason(why: str) -> str:
    """Return a reason that a mode may have; InvalidArgument otherwise."""
    if len(why) > WHY_MAX or not (why.isprintable() or not why):
        raise InvalidArgument("reason is too long or not printable", limit=WHY_MAX)
    return why


def store_mode(store: Store) -> StoreMode:
    """Return the mode of a store."""
    with store.journal.snapshot() as snapshot:
        mode = mode_of(snapshot)
    return StoreMode(False) if mode is None else StoreMode(True, mode.why, mode.by, mode.since_ms)


def set_mode(store: Store, *, read_only: bool, why: str = "", by: str = "") -> StoreMode:
    """Make a store read-only, or let it take changes again; no commit of any process passes behind that.

    Errors: InvalidArgument, Conflict.
    """
    checked_reason(why)
    for _ in range(ROUNDS_MAX):
        with store.journal.snapshot() as snapshot:
            row = snapshot.get(MODE_KEY)
        if row is None and not read_only:
            return StoreMode(False)
        made = Put(MODE_KEY, ModeRecord(why, by, clock.now_ms()).encode())
        # commit point: before it changes are taken as they were, after it as the new mode says, in all processes.
        faultpoints.reach("mode.before_commit")
        if store.try_commit(
            [Compare(MODE_KEY, row.revision if row is not None else 0)],
            [made if read_only else Delete(MODE_KEY)],
        ):
            faultpoints.reach("mode.after_commit")
            return store_mode(store)
    raise Conflict("mode is being changed by many at once")
