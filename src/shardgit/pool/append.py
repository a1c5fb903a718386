"""Writing a run: its blocks, and the manifest root that describes it alone, as a recent's row holds it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.pool.manifest import Manifest, encode_placed
from shardgit.pool.writer import RunWriter
from shardgit.workers import ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from shardgit._layout import Ingest
    from shardgit.blocks.interface import BlockStore
    from shardgit.limits import Limits
    from shardgit.oid import BlockId, HashKind, PoolId
    from shardgit.pool.writer import NewBlock

BATCH_BYTES = 8 << 20  # blocks put with one fsync a shard
BLOCKS_AHEAD = 8  # that are made while a batch is put, where there are several batches


class BlockBatch:
    """Puts blocks by the batch, or keeps them to be embedded in a manifest root."""

    def __init__(self, blocks: BlockStore, *, embed: bool) -> None:
        self.embed = embed
        self.embedded: dict[BlockId, bytes] = {}
        self.stored_bytes = 0
        self.taken_bytes = 0  # put or waiting
        self._blocks = blocks
        self._waiting: list[tuple[BlockId, bytes]] = []
        self._bytes = 0

    def add(self, block: NewBlock) -> None:
        """Take one block."""
        if self.embed:
            self.embedded[block.id] = block.data
        else:
            self.take(block.id, block.data)

    def take(self, block: BlockId, data: bytes) -> None:
        """Take a block that is not embedded."""
        self._waiting.append((block, data))
        self._bytes += len(data)
        self.taken_bytes += len(data)
        if self._bytes >= BATCH_BYTES:
            self.put([])

    def put(self, more: Iterable[tuple[BlockId, bytes]]) -> None:
        """Put what waits and ``more``; durable on return."""
        blocks = [*self._waiting, *more]
        self._waiting, self._bytes = [], 0
        if blocks:
            self._blocks.put_many_sync(blocks)
        self.stored_bytes += sum(len(data) for _, data in blocks)


def run_bytes(ingest: Ingest, segments: int, stream: bytes) -> int:
    """Return about how many bytes the blocks of a laid-out ingest take."""
    facts = [ingest.segment_facts(number) for number in range(segments)]
    whole = sum(
        length + (entry_bytes if alone else 0) for _, length, entry_bytes, _, _, alone in facts
    )
    return whole + len(stream) + 12 * ingest.objects_kept


def write_run(
    writer: RunWriter,
    batch: BlockBatch,
    *,
    segments: int,
    stream: bytes,
    indexed: bool = True,
    wrote: Callable[[int], None] | None = None,
) -> None:
    """Make all blocks of a run and hand them to the batch. ``wrote`` hears the count of segments."""

    def made() -> Iterator[NewBlock]:
        yield from writer.segments(segments)
        if indexed:
            yield from writer.index()
        yield from writer.graph(stream)

    large = run_bytes(writer.ingest, segments, stream) > BATCH_BYTES
    with ahead(made(), BLOCKS_AHEAD) if large else nullcontext(made()) as blocks:
        for block in blocks:
            batch.add(block)
            if wrote is not None:
                wrote(len(writer.entries))


@dataclass(frozen=True, slots=True)
class Recent:
    """A recent that was written: the root for its row, and the manifest in there."""

    root: bytes
    manifest: Manifest


def write_recent(
    blocks: BlockStore,
    ingest: Ingest,
    *,
    segments: int,
    stream: bytes,
    pool: PoolId,
    hash_kind: HashKind,
    limits: Limits,
) -> Recent:
    """Write a recent. A small one embeds its blocks and has no index; those of a larger one are put.

    Durable are the blocks; the root becomes so with the journal's row. Errors: StorageFull.
    """
    small = run_bytes(ingest, segments, stream) <= limits.recent_embedded_max_bytes
    batch = BlockBatch(blocks, embed=small)
    writer = RunWriter(ingest, pool, hash_kind, first_serial=0, limits=limits)
    write_run(writer, batch, segments=segments, stream=stream, indexed=not small)
    run = writer.record()
    manifest = Manifest(hash_kind, 0, len(writer.entries), (run,), tuple(writer.entries), ())
    _, made, placed = encode_placed(manifest, pool=pool, embedded=batch.embedded)
    *pages, (_, root) = made
    batch.put(pages)
    return Recent(root, placed)
