"""Which shards a store has, and their weights: changes of the ring that move nothing yet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit import faultpoints
from shardgit.blocks.layout import StoreLayout, add_place, drop_place, open_layout, zone_of
from shardgit.blocks.shard import ShardStore
from shardgit.errors import Conflict, InvalidArgument, Refused, ShardMissing
from shardgit.journal.interface import Compare, Put
from shardgit.journal.records import RING_KEY
from shardgit.operate.operation import running, silent_control
from shardgit.operate.planning import checked_weight
from shardgit.operate.rebalance import KIND, require_settled
from shardgit.operate.shrinking import COMPACTING
from shardgit.operate.strays import sweep
from shardgit.ring.builder import shares
from shardgit.ring.ring import ZONE_MAX, Ring, RingShard

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shardgit.operate.operation import Control
    from shardgit.service.store import Store


@dataclass(frozen=True, slots=True)
class ShardChanged:
    """A shard as a change left it, and the ring's epoch from then on."""

    id: int
    path: str
    zone: int
    weight: float
    epoch: int


def add_shard(
    store: Store, path: Path | None = None, *, weight: float = 1.0, zone: int | None = None
) -> ShardChanged:
    """Make a folder (shards/NNN in the store's without one) a shard; blocks come with the next rebalance.

    Without a zone it gets that of a shard on the same disk, else one of its own. Stopped halfway, the same call ends
    it. Errors: Refused while a rebalance is under way, or when the folder is not empty; InvalidArgument, StorageFull.
    """
    if not checked_weight(weight):
        raise InvalidArgument("a new shard wants a weight above 0", weight=weight)
    if zone is not None and not 0 <= zone <= ZONE_MAX:
        raise InvalidArgument("zone is out of range", zone=zone, most=ZONE_MAX)
    with running(store, KIND):
        require_settled(store)
        layout, ring = layout_of(store), store.routed.ring
        zones = {shard.number: shard.zone for shard in ring.shards}
        folder = _new_folder(layout, path, zones)
        place = add_place(
            layout, folder, lambda made: ShardStore(made, store.workers, create=True).close()
        )
        if place.number in zones:
            raise Refused("folder is a shard already", shard=place.number, path=str(folder))
        where = zone_of(layout, place.path, zones) if zone is None else zone
        shard = RingShard(place.number, where, weight)
        # commit point: before it the folder is a shard that no ring names, after it puts may come with a rebalance.
        faultpoints.reach("ring.before_add")
        after = _put_shards(store, (*ring.shards, shard))
        faultpoints.reach("ring.after_add")
        return _changed(store, after, shard)


def set_weight(store: Store, number: int, weight: float) -> ShardChanged:
    """Give a shard another weight, 0 to drain it; blocks move with the next rebalance.

    Errors: ShardMissing, InvalidArgument when too few shards would be left, Refused while a rebalance is under way.
    """
    checked_weight(weight)
    with running(store, KIND):
        require_settled(store)
        ring = store.routed.ring
        shard = replace(_shard(ring, number), weight=weight)
        shards = [shard if one.number == number else one for one in ring.shards]
        alive = sum(one.weight > 0 for one in shards)
        if alive < ring.replicas:
            raise InvalidArgument(
                "fewer shards than replicas would be left", shards=alive, replicas=ring.replicas
            )
        # commit point: before it the weight is what it was; either way no block has moved.
        faultpoints.reach("ring.before_weight")
        after = _put_shards(store, shards)
        faultpoints.reach("ring.after_weight")
        return _changed(store, after, shard)


def remove_shard(store: Store, number: int, *, control: Control | None = None) -> ShardChanged:
    """Take a drained and empty shard out of the store, and its files out of its folder.

    Stopped halfway, the same call ends it. Errors: ShardMissing, Refused while it keeps a partition or a block.
    """
    with running(store, KIND), running(store, COMPACTING):
        require_settled(store)
        ring = store.routed.ring
        known = {shard.number for shard in ring.shards}
        layout = layout_of(store)
        if number not in known and any(place.number == number for place in layout.shards):
            drop_place(layout, number)  # cut short behind the ring
            return ShardChanged(number, "", 0, 0.0, ring.epoch)
        shard = _shard(ring, number)
        if shard.weight or ring.partitions_of(number):
            raise Refused(
                "shard keeps partitions still; drain it and rebalance first",
                shard=number,
                partitions=ring.partitions_of(number),
            )
        opened = store.routed.shards[number]
        if opened.stats().blocks:
            sweep(store, control or silent_control())
        if left := opened.stats().blocks:
            raise Refused(
                "shard holds damaged blocks that its ring has nowhere else; repair them first",
                shard=number,
                blocks=left,
            )
        changed = ShardChanged(number, str(opened.folder), shard.zone, 0.0, ring.epoch + 1)
        # commit point: before it the shard is drained, after it nobody opens it; its files go last.
        faultpoints.reach("ring.before_remove")
        _put_shards(store, [one for one in ring.shards if one.number != number])
        faultpoints.reach("ring.after_remove")
        drop_place(layout, number)
        return changed


def layout_of(store: Store) -> StoreLayout:
    """Return the store's folder as it is now."""
    return open_layout(store.scratch.parent)


def _new_folder(layout: StoreLayout, path: Path | None, zones: dict[int, int]) -> Path:
    if path is not None:
        return path
    for place in layout.shards:
        if place.number not in zones:
            return place.path  # one that was cut short
    return layout.folder / "shards" / f"{max(place.number for place in layout.shards) + 1:03}"


def _shard(ring: Ring, number: int) -> RingShard:
    for shard in ring.shards:
        if shard.number == number:
            return shard
    raise ShardMissing("store has no such shard", shard=number)


def _put_shards(store: Store, shards: Sequence[RingShard]) -> Ring:
    """Commit the ring of the next epoch with other shards and the same table."""
    shares(shards, replicas=store.routed.ring.replicas)  # they make a ring
    ring = store.routed.ring
    ordered = tuple(sorted(shards, key=lambda shard: shard.number))
    after = replace(ring, epoch=ring.epoch + 1, shards=ordered)
    if not store.try_commit(
        [Compare(RING_KEY, store.routed.ring_revision)], [Put(RING_KEY, after.encode())]
    ):
        raise Conflict("ring was changed by another process")
    store.routed.refresh()
    return after


def _changed(store: Store, ring: Ring, shard: RingShard) -> ShardChanged:
    path = str(store.routed.shards[shard.number].folder)
    return ShardChanged(shard.number, path, shard.zone, shard.weight, ring.epoch)
