"""The search for new bases in one rewriting: whose objects may have which, threads, room for entries, progress."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import _delta
from shardgit.errors import MalformedObject
from shardgit.graph.closure import bit
from shardgit.journal.records import RepositoryRecord
from shardgit.objects import parse_tree
from shardgit.oid import ObjectId
from shardgit.operate.rewriting import THREADS_MAX
from shardgit.progress import Progress
from shardgit.service.incoming import HOPS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardgit._layout import Ingest
    from shardgit.oid import HashKind, PoolId
    from shardgit.operate.operation import Control
    from shardgit.pool.view import PlacedRun, PoolView
    from shardgit.service.store import Store

WINDOW = 10  # objects that each is tried against, as git does
DEPTH = 50
LEVEL = 9  # of deflate; 12 is 1.5 % smaller and takes twice the time of all the rest
TICK_S = 0.1
TIPS_MAX = 4  # of the runs that are written anew
OLDER_MAX = 50_000  # objects of older runs that are offered as bases
FOLDERS_BATCH = 64
FOLDERS_BYTES = 64 << 20  # of trees that are compared for them
COMMIT, TREE = 1, 2


@dataclass(frozen=True, slots=True)
class Seen:
    """What the first repository of a pool that has forks reaches: a bitset over a view's positions."""

    view: PoolView
    bits: bytes

    def ranks(self, ingest: Ingest) -> bytes:
        """Return 0 for each object that it reaches and 1 for the others, in the order of their ids."""
        flat, size = ingest.sorted_ids(), self.view.hash_kind.size
        ids = [ObjectId(flat[at : at + size]) for at in range(0, len(flat), size)]
        return bytes(0 if at >= 0 and bit(self.bits, at) else 1 for at in self.view.positions(ids))


def seen_by_root(store: Store, view: PoolView, pool: PoolId) -> Seen | None:
    """Return what the oldest repository of a pool reaches; None where there is one alone, or the pool has moved on.

    Its clones are the most, so they stay copies of whole segments, however many forks push.
    """
    with store.journal.snapshot() as snapshot:
        records = (RepositoryRecord.decode(row.value) for row in snapshot.range(b"I", b"J"))
        mine = sorted((one for one in records if one.pool == pool), key=lambda one: one.id)
        if len(mine) < 2:
            return None
        state = store.state(snapshot, mine[0].name)
        if state.pool.view.manifest_id != view.manifest_id:
            return None
        reach = store.reach_of(snapshot, state)
    return Seen(view, reach.bits())


def older_versions(view: PoolView, runs: Sequence[PlacedRun]) -> list[tuple[int, int]]:
    """Return (position in the runs, position in older ones) of what stands at the same paths.

    The newest tips of the runs are compared with their nearest first parents in older runs, whatever pushers sent as
    deltas on what.
    """
    start = runs[0].start
    end = runs[-1].start + runs[-1].record.objects
    if not start:
        return []
    graph, size = view.graph(), view.hash_kind.size
    commits = [
        at
        for run in runs
        for at in range(run.start, run.start + run.record.commits)
        if graph.type_at(at) == COMMIT
    ]
    parents = {parent for at in commits for parent in graph.parents_at(at)}
    tips = sorted((at for at in commits if at not in parents), key=graph.generation_at)[-TIPS_MAX:]
    found: dict[int, int] = {}
    room = FOLDERS_BYTES
    for tip in reversed(tips):
        at = tip
        while at >= start:
            at = next(iter(graph.parents_at(at)), -1)
        if at < 0:
            continue
        trees = [
            bytes.fromhex(one.data[5 : 5 + 2 * size].decode())
            for one in view.read_positions([tip, at])
        ]
        # By what is new, so each tree is looked into once, in however many places it stands.
        level = {ObjectId(trees[0]): ObjectId(trees[1])}
        while level and len(found) < OLDER_MAX:
            places = zip(
                view.positions(list(level)), view.positions(list(level.values())), strict=True
            )
            pairs = {
                new: old
                for new, old in places
                if start <= new < end and 0 <= old < start and new not in found
            }
            found.update(pairs)
            folders = [
                pair
                for pair in pairs.items()
                if graph.type_at(pair[0]) == graph.type_at(pair[1]) == TREE
            ]
            level = {}
            for n in range(0, len(folders), FOLDERS_BATCH):
                some = [at for pair in folders[n : n + FOLDERS_BATCH] for at in pair]
                room -= sum(info.size for info in view.info(some))
                if room < 0 or len(level) >= OLDER_MAX:
                    break
                read = view.read_positions(some)
                for new_tree, old_tree in zip(read[::2], read[1::2], strict=True):
                    level |= _changed(new_tree.data, old_tree.data, view.hash_kind)
    return list(found.items())[:OLDER_MAX]


def _changed(new: bytes, old: bytes, kind: HashKind) -> dict[ObjectId, ObjectId]:
    """Return the new id and the old one of what stands under one name in two trees and is not the same."""
    try:
        before = {entry.name: entry for entry in parse_tree(old, kind)}
        after = parse_tree(new, kind)
    except MalformedObject:  # an import takes some that git takes as well
        return {}
    return {
        entry.id: was.id
        for entry in after
        if (was := before.get(entry.name)) is not None
        and was.id != entry.id
        and was.mode == entry.mode
    }


class Search:
    """The choice of bases in one rewriting: threads, room for entries, progress."""

    def __init__(self, store: Store, control: Control, seen: Seen | None = None) -> None:
        self.store = store
        self.control = control
        self.seen = seen
        self.deltas = 0
        self.older: list[tuple[bytes, bytes]] = []  # ids at the same paths: here, and in older runs

    def choose(self, ingest: Ingest) -> None:
        """Choose bases for all objects of an ingest. Errors: Stopped, StorageFull."""
        limits = self.store.limits
        with tempfile.TemporaryFile(dir=self.store.scratch) as file:
            chooser = _delta.Chooser(
                ingest,
                _rooms(file.fileno()),
                window=WINDOW,
                depth=DEPTH,
                size_most=limits.object_memory_max_bytes,
                family_bytes=limits.block_max_bytes // 2,
                hops_most=HOPS_MAX,
                level=LEVEL,
            )
            if self.seen is not None:
                chooser.sights(self.seen.ranks(ingest))
            chooser.offers(self.older)
            chooser.prepare()
            count = min(self.store.workers.threads, THREADS_MAX) if chooser.objects > 2_000 else 1
            threads = [
                threading.Thread(target=chooser.search, name=f"deltas-{number}")
                for number in range(count)
            ]
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    while thread.is_alive():
                        thread.join(TICK_S)
                        self.control.report(
                            Progress(
                                "choosing deltas", chooser.objects_done, chooser.objects, "objects"
                            )
                        )
                        self.control.check()
            except BaseException:
                chooser.stop()
                for thread in threads:
                    thread.join()
                raise
            self.deltas = chooser.apply()


def _rooms(handle: int) -> Callable[[int], mmap.mmap]:
    """Return what maps one piece of a file after another: entries wait there and not in memory."""
    lock = threading.Lock()
    end = 0

    def room(size: int) -> mmap.mmap:
        nonlocal end
        size = -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        with lock:
            start, end = end, end + size
            # A hole that the disk has no room for would be a SIGBUS at the first write.
            os.posix_fallocate(handle, start, size)
        return mmap.mmap(handle, size, offset=start)

    return room
