"""Receipts of rebalances: what moved, with digests, and the check of one against the store as it is now."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from shardgit.errors import BlockCorrupt, InvalidArgument, Refused
from shardgit.journal.records import STORE_KEY, StoreRecord
from shardgit.operate.named import named_blocks
from shardgit.operate.rebalance import (
    PREFIX_BYTES,
    MovedPartition,
    ShardLoad,
    digest_of,
    groups,
    status,
)
from shardgit.progress import Progress

if TYPE_CHECKING:
    from shardgit.blocks.shard import ShardStore
    from shardgit.oid import BlockId
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

FORMAT = "shardgit rebalance receipt 1"
RECEIPT_MAX_BYTES = 1 << 30
SHOWN_MAX = 100


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a rebalance did. ``checksum`` is BLAKE3 over the rest as JSON with sorted keys, no spaces."""

    format: str
    store: str
    operation: str
    state: str
    epochs: tuple[int, ...]
    started_ms: int
    ended_ms: int
    seconds: float
    replicas: int
    blocks: int
    bytes: int
    stored_bytes: int
    moved_share: float
    moved_partitions: int
    shards: tuple[ShardLoad, ...]
    partitions: tuple[MovedPartition, ...]
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class ReceiptCheck:
    """A receipt held against the store.

    ``ok`` when every block of it is whole in all of its homes, or is wanted no more. ``gone`` counts blocks that were
    deleted since and that nothing names; ``bad`` says what is wrong, in SHOWN_MAX lines at most.
    """

    operation: str
    ok: bool
    partitions: int
    unchanged: int
    blocks: int
    bytes: int
    gone: int
    problems: int
    bad: tuple[str, ...]


def receipt_of(store: Store) -> Receipt:
    """Return the receipt of the last rebalance; Refused while none has copied all that it should."""
    now = status(store)
    if now is None or now.state in ("copying", "aborting"):
        raise Refused("no rebalance has come to its end; there is no receipt yet")
    entries: dict[tuple[int, int], MovedPartition] = {}
    for group in groups(store):
        # A partition with damaged blocks was copied again once they were repaired.
        entries.update(((one.partition, one.target), one) for one in group.entries)
    moved = [entries[key] for key in sorted(entries)]
    with store.journal.snapshot() as snapshot:
        row = snapshot.get(STORE_KEY)
    size = sum(one.bytes for one in moved)
    end_ms = now.ended_ms or now.moved_ms
    receipt = Receipt(
        format=FORMAT,
        store=StoreRecord.decode(row.value).id.hex() if row is not None else "",
        operation=now.id,
        state=now.state,
        epochs=now.epochs,
        started_ms=now.started_ms,
        ended_ms=end_ms,
        seconds=(end_ms - now.started_ms) / 1_000,
        replicas=store.routed.ring.replicas,
        blocks=sum(one.blocks for one in moved),
        bytes=size,
        stored_bytes=now.stored_bytes,
        moved_share=size / now.stored_bytes if now.stored_bytes else 0.0,
        moved_partitions=now.partitions,
        shards=now.shards,
        partitions=tuple(moved),
    )
    return replace(receipt, checksum=_checksum(receipt))


def encode_receipt(receipt: Receipt) -> bytes:
    """Return the receipt's file."""
    return json.dumps(asdict(receipt), indent=1).encode() + b"\n"


def decode_receipt(data: bytes) -> Receipt:
    """Return the receipt in a file; InvalidArgument when it is none, or was changed."""
    if len(data) > RECEIPT_MAX_BYTES:
        raise InvalidArgument("file is too large for a receipt", bytes=len(data))
    try:
        receipt = msgspec.json.decode(data, type=Receipt)
        if receipt.format != FORMAT:
            raise InvalidArgument("receipt is of another format", format=receipt.format[:100])
        for one in receipt.partitions:
            if len(base64.b64decode(one.ids, validate=True)) != PREFIX_BYTES * one.blocks:
                raise InvalidArgument("receipt counts other blocks than it lists")
    except (msgspec.DecodeError, ValueError, RecursionError) as cause:
        raise InvalidArgument("file is no receipt of a rebalance", cause=str(cause)) from cause
    if receipt.checksum != _checksum(receipt):
        raise InvalidArgument("receipt was changed since it was written")
    return receipt


def _checksum(receipt: Receipt) -> str:
    facts = asdict(replace(receipt, checksum=""))
    return blake3(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_receipt(store: Store, receipt: Receipt, *, control: Control) -> ReceiptCheck:
    """Hold a receipt against the store: every block of it is read from all of its homes, and its bytes are hashed.

    Errors: Refused when it is another store's, Stopped.
    """
    with store.journal.snapshot() as snapshot:
        row = snapshot.get(STORE_KEY)
    if row is None or StoreRecord.decode(row.value).id.hex() != receipt.store:
        raise Refused("receipt is another store's", store=receipt.store)
    check = _Check(store, control)
    for one in receipt.partitions:
        check.partition(one)
        control.report(Progress("checking", check.bytes, max(receipt.bytes, check.bytes), "bytes"))
    check.judge_gone()
    return ReceiptCheck(
        operation=receipt.operation,
        ok=not check.problems,
        partitions=len(receipt.partitions),
        unchanged=check.unchanged,
        blocks=check.blocks,
        bytes=check.bytes,
        gone=check.gone,
        problems=check.problems,
        bad=tuple(check.bad),
    )


class _Check:
    def __init__(self, store: Store, control: Control) -> None:
        self.store = store
        self.control = control
        self.unchanged = self.blocks = self.bytes = self.gone = self.problems = 0
        self.bad: list[str] = []
        self._missing: list[tuple[int, bytes]] = []  # partition and prefix of blocks in no home
        store.routed.refresh()

    def partition(self, entry: MovedPartition) -> None:
        """Check one entry."""
        at = entry.partition
        homes = self.store.routed.ring.shards_of(at)
        here = {home: dict(self._shard(home).scan_sync(at, at + 1)) for home in homes}
        by_prefix = {block[:PREFIX_BYTES]: block for found in here.values() for block in found}
        raw = base64.b64decode(entry.ids)
        prefixes = [raw[n : n + PREFIX_BYTES] for n in range(0, len(raw), PREFIX_BYTES)]
        lengths: list[tuple[BlockId, int]] = []
        whole = True
        for prefix in prefixes:
            block = by_prefix.get(prefix)
            if block is None:
                self._missing.append((at, prefix))
                whole = False
                continue
            self.blocks += 1
            sizes = [self._read(home, block) for home in homes]
            if None in sizes:
                whole = False
            else:
                lengths.append((block, sizes[0] or 0))
        if entry.before != entry.after:
            self._problem(f"partition {at:04x}: its digests before and after differ")
        elif whole and digest_of(sorted(lengths)) != entry.after:
            self._problem(f"partition {at:04x}: its blocks give another digest")
        elif whole:
            self.unchanged += 1

    def _shard(self, number: int) -> ShardStore:
        return self.store.routed.shards[number]

    def _read(self, home: int, block: BlockId) -> int | None:
        """Return a block's length in one of its homes; None, and a problem, when it is not whole there."""
        try:
            data = self._shard(home).read_sync(block)
        except BlockCorrupt:
            self._problem(f"block {block.hex()}: damaged in shard {home}")
            return None
        if data is None:
            self._problem(f"block {block.hex()}: not in shard {home}")
            return None
        self.bytes += len(data)
        self.control.pace(len(data))
        return len(data)

    def judge_gone(self) -> None:
        """Tell blocks that nobody names any more from those that are lost."""
        if not self._missing:
            return
        named = named_blocks(self.store, control=self.control)
        prefixes = {bytes(block[:PREFIX_BYTES]) for block in named.blocks}
        for at, prefix in self._missing:
            if prefix in prefixes:
                self._problem(
                    f"block {prefix.hex()}...: lost from partition {at:04x}, and is named"
                )
            else:
                self.gone += 1
        for pool, why in sorted(named.damaged.items()):
            self._problem(f"pool {pool.hex()}: what it names cannot be told: {why}")

    def _problem(self, text: str) -> None:
        self.problems += 1
        if len(self.bad) < SHOWN_MAX:
            self.bad.append(text)
