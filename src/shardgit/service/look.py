"""A consistent look at one repository: record, pool view, and what its refs reach."""

from __future__ import annotations

from array import array
from contextlib import nullcontext
from typing import TYPE_CHECKING

from shardgit._fastpack import tree_children
from shardgit._graph import Walk
from shardgit._objects import outside
from shardgit.errors import ObjectMissing
from shardgit.graph.closure import bit
from shardgit.oid import ObjectId, hex_of
from shardgit.service.hiding import NONE_HIDDEN, HiddenRefs, hidden_from_fetch
from shardgit.service.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.pool.view import PoolView
    from shardgit.service.store import Store


class Look:
    """What a repository may serve at one moment. Methods run in the calling thread, a worker's."""

    def __init__(self, store: Store, name: str, snapshot: JournalSnapshot | None = None) -> None:
        self.store = store
        with store.journal.snapshot() if snapshot is None else nullcontext(snapshot) as seen:
            self._load(seen, name)

    def _load(self, snapshot: JournalSnapshot, name: str) -> None:
        state = self.store.state(snapshot, name)
        self.state = state
        self.record = state.record
        self.view: PoolView | None = self.store.view(state.pool)
        self._reach = self.store.reach_of(snapshot, state, self.hidden())
        self.uploaded = self.store.uploads.of(snapshot, self.record, self.view)

    def hidden(self) -> HiddenRefs:
        """Return the refs that do not count here: none."""
        return NONE_HIDDEN

    @property
    def is_quick(self) -> bool:
        """Whether what the refs reach is known without a walk."""
        return self._reach.is_known

    @property
    def sequence(self) -> int:
        """The number of the newest row of the ref log."""
        return self._reach.sequence

    @property
    def reachable(self) -> bytes:
        """The bitset of what the repository may serve."""
        return self._reach.bits()

    def positions(self, ids: Sequence[ObjectId]) -> list[int]:
        """Return pool positions of what the repository reaches, -1 for all else."""
        if self.view is None:
            return [-1] * len(ids)
        return [
            at if at >= 0 and bit(self.reachable, at) else -1 for at in self.view.positions(ids)
        ]

    def positions_in_pool(self, ids: Sequence[ObjectId]) -> list[int]:
        """Return positions in the pool, whoever reaches the object; -1 without. Never to be told to a client."""
        return self.view.positions(ids) if self.view is not None else [-1] * len(ids)

    def owned(self, ids: Sequence[ObjectId]) -> list[int]:
        """Return positions of what the repository reaches or was given by id of late, -1 for all else."""
        if self.view is None:
            return [-1] * len(ids)
        places = array("q", self.view.positions(ids))
        for number in outside(self.reachable, places):
            if not self.uploaded.has(places[number]):
                places[number] = -1
        return places.tolist()

    def owns(self, position: int) -> bool:
        """Return whether the repository reaches an object of the pool, or was given it by id of late."""
        return bit(self.reachable, position) or self.uploaded.has(position)

    def owns_whole(self, position: int) -> bool:
        """Return whether the repository owns an object of its own and all that it leads to.

        What was given by id led only to what the repository had then, and may have lost since.
        """
        if bit(self.reachable, position):
            return True
        assert self.view is not None
        walk = Walk(self.view.graph(), self.reachable)
        walk.mark([position])
        while waiting := walk.run():
            for tree in self.view.read_positions(waiting):
                children = tree_children(tree.data, self.record.hash_kind.size)
                walk.expand(self.view.positions([ObjectId(oid) for oid in children]))
        more = int.from_bytes(walk.bitset(), "little")
        return not walk.incomplete and not more & ~int.from_bytes(self.uploaded.bits(), "little")

    def position(self, oid: ObjectId) -> int:
        """Return one position; ObjectMissing when the repository does not reach the object."""
        (at,) = self.positions([oid])
        if at < 0:
            raise ObjectMissing(
                "object is not in the repository", oid=hex_of(oid), repository=self.record.name
            )
        return at


def history_ends(store: Store, name: str) -> list[ObjectId]:
    """Return the commits whose parents a repository lacks, those that shown refs reach; [] when it is whole."""
    with store.journal.snapshot() as snapshot:
        if not store.grafts(snapshot, store.repository(snapshot, name)):
            return []
    look = ShownLook(store, name)
    if look.view is None:
        return []
    return sorted(look.view.ids_at([at for at in look.view.cut if bit(look.reachable, at)]))


class ShownLook(Look):
    """What a repository may serve to those who fetch: hidden refs reach nothing."""

    def hidden(self) -> HiddenRefs:
        """Return what settings hide from fetches."""
        return hidden_from_fetch(settings_of(self.record))
