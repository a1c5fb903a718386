"""Receipts of moves between nodes, and the check of one against the cluster as it is now."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.blocks.block import partition_of
from shardgit.errors import Refused
from shardgit.operate.nodes import NodesMoved, PartitionMoved, blocks_of
from shardgit.operate.planning import STEP_PARTITIONS
from shardgit.operate.rebalance import PREFIX_BYTES, digest_of
from shardgit.operate.receipt import (
    Checking,
    ReceiptCheck,
    decode_sealed,
    prefixes_of,
    seal_of,
    store_id,
)
from shardgit.progress import Progress

if TYPE_CHECKING:
    from shardgit.oid import BlockId
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

FORMAT = "shardgit nodes receipt 1"
BATCH_BLOCKS = 32  # read side by side, of 8 MiB at most


@dataclass(frozen=True, slots=True)
class NodesReceipt:
    """What a move did. ``checksum`` is BLAKE3 over the rest as JSON with sorted keys, no spaces."""

    format: str
    store: str
    ended_ms: int
    moved: NodesMoved
    checksum: str = ""

    @property
    def partitions(self) -> tuple[PartitionMoved, ...]:
        """What was moved."""
        return self.moved.moves


def receipt_of(store: Store, done: NodesMoved) -> NodesReceipt:
    """Return the receipt of a move that has just ended."""
    receipt = NodesReceipt(FORMAT, store_id(store), clock.now_ms(), done)
    return replace(receipt, checksum=seal_of(receipt))


def decode_nodes_receipt(data: bytes) -> NodesReceipt:
    """Return the receipt in a file; InvalidArgument when it is none, or was changed."""
    return decode_sealed(data, NodesReceipt, FORMAT)


def check_nodes_receipt(store: Store, receipt: NodesReceipt, *, control: Control) -> ReceiptCheck:
    """Hold a receipt against the cluster: every block of it is read from the object store, and its bytes are hashed.

    Errors: Refused when it is another cluster's, Unavailable, Stopped.
    """
    blocks_of(store)
    store.journal.fresh_sync()
    if store_id(store) != receipt.store:
        raise Refused("receipt is another cluster's", store=receipt.store)
    check = _Check(store, control)
    steps: dict[int, list[PartitionMoved]] = defaultdict(list)
    for one in receipt.partitions:
        steps[one.partition // STEP_PARTITIONS].append(one)
    for step, entries in sorted(steps.items()):
        check.step(step * STEP_PARTITIONS, entries)
        control.report(
            Progress("checking", check.bytes, max(receipt.moved.bytes, check.bytes), "bytes")
        )
    operation = f"ring epochs {', '.join(map(str, receipt.moved.epochs))}"
    return check.result(operation, len(receipt.partitions))


class _Check(Checking):
    def step(self, low: int, entries: list[PartitionMoved]) -> None:
        """Check the entries between ``low`` and the next step."""
        objects = blocks_of(self.store).objects
        there: dict[tuple[int, bytes], BlockId] = {}
        for known, _ in objects.scan_sync(low, low + STEP_PARTITIONS):
            there[partition_of(known), bytes(known[:PREFIX_BYTES])] = known
        sizes: dict[BlockId, int] = {}
        gone: set[BlockId] = set()
        wanted = sorted(
            {
                block
                for one in entries
                for prefix in prefixes_of(one.ids)
                if (block := there.get((one.partition, prefix))) is not None
            }
        )
        for at in range(0, len(wanted), BATCH_BLOCKS):
            some = wanted[at : at + BATCH_BLOCKS]
            for block, found in zip(some, objects.check_many(some), strict=True):
                if isinstance(found, int):
                    sizes[block] = found
                    self.bytes += found
                elif found is None:  # listed, and not there
                    gone.add(block)
                else:
                    self.problem(f"block {block.hex()}: damaged in the object store")
            self.control.pace(sum(sizes[block] for block in some if block in sizes))
        self.blocks += len(wanted) - len(gone)
        there = {key: block for key, block in there.items() if block not in gone}
        for one in entries:
            self._entry(one, there, sizes)

    def _entry(
        self,
        entry: PartitionMoved,
        there: dict[tuple[int, bytes], BlockId],
        sizes: dict[BlockId, int],
    ) -> None:
        listed: list[tuple[BlockId, int]] = []
        prefixes = prefixes_of(entry.ids)
        for prefix in prefixes:
            found = there.get((entry.partition, prefix))
            if found is None:
                self.missing.append((entry.partition, prefix))
            elif found in sizes:
                listed.append((found, sizes[found]))
        if len(listed) < len(prefixes):
            return
        if digest_of(sorted(listed)) == entry.digest:
            self.unchanged += 1
        else:
            self.problem(f"partition {entry.partition:04x}: its blocks give another digest")
