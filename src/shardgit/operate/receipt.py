"""Receipts of rebalances: what moved, with digests, and the check of one against the store as it is now."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

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
    from collections.abc import Sequence

    from shardgit.blocks.shard import ShardStore
    from shardgit.oid import BlockId
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

S = TypeVar("S", bound="Sealed")
FORMAT = "shardgit rebalance receipt 1"
RECEIPT_MAX_BYTES = 1 << 30
SHOWN_MAX = 100


class _Named(msgspec.Struct):
    """What every receipt says first."""

    format: str


class Entry(Protocol):
    """A partition in a receipt; ``ids`` are the first 8 bytes of each id, in base64."""

    @property
    def blocks(self) -> int:
        """How many."""
        ...

    @property
    def ids(self) -> str:
        """Which."""
        ...


class Sealed(Protocol):
    """A receipt: a dataclass, with a checksum over the rest as JSON with sorted keys, no spaces."""

    @property
    def checksum(self) -> str:
        """In hex."""
        ...

    @property
    def partitions(self) -> Sequence[Entry]:
        """What was moved."""
        ...


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
    size = sum(one.bytes for one in moved)
    end_ms = now.ended_ms or now.moved_ms
    receipt = Receipt(
        format=FORMAT,
        store=store_id(store),
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
    return replace(receipt, checksum=seal_of(receipt))


def encode_receipt(receipt: Sealed) -> bytes:
    """Return the receipt's file."""
    return json.dumps(asdict(receipt), indent=1).encode() + b"\n"  # type: ignore[call-overload]


def decode_receipt(data: bytes) -> Receipt:
    """Return the receipt in a file; InvalidArgument when it is none, or was changed."""
    return decode_sealed(data, Receipt, FORMAT)


def decode_sealed(data: bytes, kind: type[S], form: str) -> S:
    """Return the receipt of a kind in a file; InvalidArgument when it is none, or was changed."""
    if len(data) > RECEIPT_MAX_BYTES:
        raise InvalidArgument("file is too large for a receipt", bytes=len(data))
    try:
        named = msgspec.json.decode(data, type=_Named).format
        if named != form:
            raise InvalidArgument("receipt is of another format", format=named[:100])
        receipt = msgspec.json.decode(data, type=kind)
        for one in receipt.partitions:
            if len(base64.b64decode(one.ids, validate=True)) != PREFIX_BYTES * one.blocks:
                raise InvalidArgument("receipt counts other blocks than it lists")
    except (msgspec.DecodeError, ValueError, RecursionError) as cause:
        raise InvalidArgument("file is no receipt of a move", cause=str(cause)) from cause
    if receipt.checksum != seal_of(receipt):
        raise InvalidArgument("receipt was changed since it was written")
    return receipt


def seal_of(receipt: Sealed) -> str:
    """Return a receipt's checksum."""
    facts = {**asdict(receipt), "checksum": ""}  # type: ignore[call-overload]
    return blake3(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_receipt(store: Store, receipt: Receipt, *, control: Control) -> ReceiptCheck:
    """Hold a receipt against the store: every block of it is read from all of its homes, and its bytes are hashed.

    Errors: Refused when it is another store's, Stopped.
    """
    if store_id(store) != receipt.store:
        raise Refused("receipt is another store's", store=receipt.store)
    check = _Check(store, control)
    for one in receipt.partitions:
        check.partition(one)
        control.report(Progress("checking", check.bytes, max(receipt.bytes, check.bytes), "bytes"))
    return check.result(receipt.operation, len(receipt.partitions))


def store_id(store: Store) -> str:
    """Return a store's id in hex, empty for one that has none."""
    with store.journal.snapshot() as snapshot:
        row = snapshot.get(STORE_KEY)
    return StoreRecord.decode(row.value).id.hex() if row is not None else ""


class Checking:
    """What comes of a check of a receipt."""

    def __init__(self, store: Store, control: Control) -> None:
        self.store = store
        self.control = control
        self.unchanged = self.blocks = self.bytes = self.gone = self.problems = 0
        self.bad: list[str] = []
        self.missing: list[tuple[int, bytes]] = []  # partition and prefix of blocks in no home

    def result(self, operation: str, partitions: int) -> ReceiptCheck:
        """Judge what was not there, and return all of it."""
        self._judge_gone()
        return ReceiptCheck(
            operation=operation,
            ok=not self.problems,
            partitions=partitions,
            unchanged=self.unchanged,
            blocks=self.blocks,
            bytes=self.bytes,
            gone=self.gone,
            problems=self.problems,
            bad=tuple(self.bad),
        )

    def _judge_gone(self) -> None:
        """Tell blocks that nobody names any more from those that are lost."""
        if not self.missing:
            return
        self.store.journal.fresh_sync()
        named = named_blocks(self.store, control=self.control)
        prefixes = {bytes(block[:PREFIX_BYTES]) for block in named.blocks}
        for at, prefix in self.missing:
            if prefix in prefixes:
                self.problem(f"block {prefix.hex()}...: lost from partition {at:04x}, and is named")
            else:
                self.gone += 1
        for pool, why in sorted(named.damaged.items()):
            self.problem(f"pool {pool.hex()}: what it names cannot be told: {why}")

    def problem(self, text: str) -> None:
        """Note that something is wrong."""
        self.problems += 1
        if len(self.bad) < SHOWN_MAX:
            self.bad.append(text)


def prefixes_of(ids: str) -> list[bytes]:
    """Return the first bytes of each id that an entry lists."""
    raw = base64.b64decode(ids)
    return [raw[at : at + PREFIX_BYTES] for at in range(0, len(raw), PREFIX_BYTES)]


class _Check(Checking):
    def __init__(self, store: Store, control: Control) -> None:
        super().__init__(store, control)
        store.routed.refresh()

    def partition(self, entry: MovedPartition) -> None:
        """Check one entry."""
        at = entry.partition
        homes = self.store.routed.ring.shards_of(at)
        here = {home: dict(self._shard(home).scan_sync(at, at + 1)) for home in homes}
        by_prefix = {block[:PREFIX_BYTES]: block for found in here.values() for block in found}
        lengths: list[tuple[BlockId, int]] = []
        whole = True
        for prefix in prefixes_of(entry.ids):
            block = by_prefix.get(prefix)
            if block is None:
                self.missing.append((at, prefix))
                whole = False
                continue
            self.blocks += 1
            sizes = [self._read(home, block) for home in homes]
            if None in sizes:
                whole = False
            else:
                lengths.append((block, sizes[0] or 0))
        if entry.before != entry.after:
            self.problem(f"partition {at:04x}: its digests before and after differ")
        elif whole and digest_of(sorted(lengths)) != entry.after:
            self.problem(f"partition {at:04x}: its blocks give another digest")
        elif whole:
            self.unchanged += 1

    def _shard(self, number: int) -> ShardStore:
        return self.store.routed.shards[number]

    def _read(self, home: int, block: BlockId) -> int | None:
        """Return a block's length in one of its homes; None, and a problem, when it is not whole there."""
        try:
            data = self._shard(home).read_sync(block)
        except BlockCorrupt:
            self.problem(f"block {block.hex()}: damaged in shard {home}")
            return None
        if data is None:
            self.problem(f"block {block.hex()}: not in shard {home}")
            return None
        self.bytes += len(data)
        self.control.pace(len(data))
        return len(data)
