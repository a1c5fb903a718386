"""What the shards of a store hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardgit.blocks.routed import Held
    from shardgit.ring.ring import RingShard
    from shardgit.service.store import Store


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard. ``bytes`` are live ones; ``partitions`` count all replicas."""

    id: int
    path: str
    zone: int
    weight: float
    state: str
    blocks: int
    bytes: int
    file_bytes: int
    partitions: int


def list_shards(store: Store) -> list[ShardInfo]:
    """Return every shard of the ring by rising number."""
    store.routed.refresh()
    ring, held = store.routed.ring, store.routed.held
    partitions: Counter[int] = Counter()
    for row in ring.table:
        partitions.update(row)
    found = []
    for place in ring.shards:
        shard = store.routed.shards.get(place.number)
        if shard is None:
            continue  # left meanwhile
        stats = shard.stats()
        found.append(
            ShardInfo(
                id=place.number,
                path=str(shard.folder),
                zone=place.zone,
                weight=place.weight,
                state=_state(held, place, partitions[place.number]),
                blocks=stats.blocks,
                bytes=stats.live_bytes,
                file_bytes=stats.file_bytes,
                partitions=partitions[place.number],
            )
        )
    return found


def _state(held: Held, place: RingShard, partitions: int) -> str:
    if place.number in held.shards:
        return "read-only" if place.number in held.closed else "closing"
    if place.weight:
        return "active"
    return "draining" if partitions else "drained"
