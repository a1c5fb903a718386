"""One gc behind all kills: blocks that are there are those that something names, and pages are used or free."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gcing import AT_ONCE, assert_no_leak

from shardgit.journal.interface import Delete, DeleteRange, Put, end_of
from shardgit.journal.lmdb import LmdbJournal
from shardgit.journal.pins import PINS
from shardgit.operate.gc import gc
from shardgit.operate.notes import operations_under_way
from shardgit.operate.operation import silent_control
from shardgit.operate.scrub import Scrub
from shardgit.processes import drop_left
from shardgit.service.modes import set_mode

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.service.store import Store

FILES = {"format", "shard.json", "data.mdb", "lock.mdb", "leases", "trailers"}
REWRITING = re.compile("/rewriting-[0-9a-f]{8}.note$")  # one a pool, of some bytes, written over
SPARE_PAGES = 64  # free ones of a journal: so many, and a small commit makes its file no larger
COMMITS = 24


def forget_pins(store: Store) -> None:
    """Let be now what is a quarter of an hour later: pins of backups that were killed hold nothing."""
    with store.journal.snapshot() as snapshot:
        if not any(snapshot.range(PINS, end_of(PINS), limit=1)):
            return
    store.journal.commit_sync([], [DeleteRange(PINS, end_of(PINS))])


def check_no_leak(store: Store) -> int:
    """Run one gc, and look for what nobody will ever free; returns how many blocks it deleted.

    Nobody else may have the store open.
    """
    forget_pins(store)
    set_mode(store, read_only=False)  # a client may have been killed before it did
    done = gc(store, AT_ONCE, control=silent_control())
    assert not done.damaged, done.damaged
    assert not done.blocks_waiting, done.waiting_for
    assert not done.blocks_young
    assert_no_leak(store)
    drop_left(store.scratch, "push")  # as a worker that begins does
    operations_under_way(store.scratch)  # drops what processes that were killed have noted
    left = [file for file in store.scratch.parent.rglob("*") if file.is_file()]
    unknown = [str(file) for file in left if file.name not in FILES and file.suffix != ".lock"]
    unknown = [name for name in unknown if not REWRITING.search(name)]
    assert not unknown, f"files that nobody will remove: {unknown}"
    for shard in store.routed.shards.values():
        _pages(shard.folder)
    free = _pages(store.scratch.parent / "journal")
    assert isinstance(store.journal, LmdbJournal)
    _, before = store.journal.stats()
    if free > SPARE_PAGES:
        for number in range(COMMITS):
            step = Put(b"Zspare", bytes(100)) if number % 2 == 0 else Delete(b"Zspare")
            store.journal.commit_sync([], [step])
        assert store.journal.stats()[1] == before, "free pages of the journal are not used"
    return done.blocks_deleted


def _pages(folder: Path) -> int:
    """Check that each page of a database is used or free; returns how many are free."""
    with Scrub(folder) as scrub:
        walked = scrub.walk()
    assert walked.faults == (), f"{folder}: {walked.faults}"
    return walked.free
