"""Writing runs anew without the objects that are to go; entries are copied as they are stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardgit.operate.compact import NewRun
from shardgit.operate.rewriting import level_of, merged
from shardgit.pool.append import BlockBatch, run_bytes, write_run
from shardgit.pool.writer import RunWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.oid import BlockId
    from shardgit.pool.view import PlacedRun
    from shardgit.service.store import PoolState, Store


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What became of some runs: one, None when nothing of them is left; its blocks, where they were not put."""

    run: NewRun | None
    embedded: dict[BlockId, bytes] = field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the blocks that were put."""
        return self.run.stored_bytes if self.run else 0


def rewritten(
    store: Store, pool: PoolState, runs: Sequence[PlacedRun], going: bytes, *, embed: bool
) -> Rewritten:
    """Write consecutive runs anew as one, without the objects in ``going``, a bitset over the pool's positions.

    The blocks are put; with ``embed`` those of a small run are given instead. A delta on what goes, wherever that
    stands, is written whole. Errors: StorageFull.
    """
    view, limits = pool.view, store.limits
    everything = (1 << view.objects) - 1
    keep = everything & ~int.from_bytes(going, "little")
    with merged(
        store,
        view,
        runs,
        bases_max_bytes=limits.pack_raw_max_bytes,  # it was stored once, however much its bases are
        keep=keep.to_bytes((view.objects + 7) // 8, "little"),
    ) as (ingest, segments, stream):
        if not ingest.objects_kept:
            return Rewritten(None)
        size = run_bytes(ingest, segments, stream)
        batch = BlockBatch(store.blocks, embed=embed and size < limits.block_target_bytes // 2)
        writer = RunWriter(
            ingest, pool.record.id, view.hash_kind, 0, level=level_of(size), limits=limits
        )
        write_run(writer, batch, segments=segments, stream=stream)
        batch.put([])
        run = NewRun(writer.record(), tuple(writer.entries), batch.stored_bytes, 0)
        return Rewritten(run, dict(batch.embedded))
