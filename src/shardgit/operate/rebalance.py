"""Rebalance: blocks move to where the weights want them, while the store is read and written.

The steps, each of them one commit of the ring and this operation's row together (docs/formats/ring.md, ADR 0010):

    copying    a ring of both tables: what is put from now on goes to both. Partition by partition what lies in the old
               shards is read, checked, put into the new ones and read back; every group of partitions is a row with
               their digests, so that a run after kill -9 goes on behind the last one.
    moved      the tables change places: the new shards are read first. The old copies stay a while.
    clearing   the new table alone: old copies are deleted, each only when its new homes have it.
    done

An abort while copying goes back to the old table alone; one behind it copies back what the old shards lack.
"""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit import clock, faultpoints
from shardgit.blocks.block import partition_of
from shardgit.errors import BlockCorrupt, Conflict, DataLoss, Refused, Stopped
from shardgit.journal.held import check_open
from shardgit.journal.interface import Compare, DeleteRange, Put
from shardgit.journal.operations import (
    Saved,
    decode_operation,
    pieces_range,
    put_operation,
    read_operation,
)
from shardgit.journal.records import RING_KEY
from shardgit.operate.operation import is_running, running
from shardgit.operate.planning import plan_ring
from shardgit.operate.strays import sweep
from shardgit.progress import Progress
from shardgit.ring.ring import PARTITIONS, Phase, Ring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from shardgit.journal.interface import Condition, Operation
    from shardgit.oid import BlockId
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

KIND = "rebalance"
KEEP_S = 60.0
BATCH_BYTES = 4 << 20  # of one fsynced transaction: longer ones keep writers of the target waiting
GROUP_BYTES = 32 << 20  # after so much the journal is told how far it is
GROUP_ENTRIES = 256
GROUP_BLOCKS = 20_000
STEP_PARTITIONS = 256  # looked through at once
PREFIX_BYTES = 8  # of an id in a receipt: two blocks of a partition share them once in 2^48
DAMAGED_MAX = 1_000
LOOK_COST_BYTES = 64
WAIT_STEP_S = 0.5
SHOW_S = 0.5  # between two looks at the shards that grow


@dataclass(frozen=True, slots=True)
class ShardLoad:
    """What the blocks of a shard's partitions take, before and after, and its weight."""

    id: int
    weight: float
    partitions_before: int
    partitions_after: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class Rebalance:
    """The operation's row."""

    id: str
    state: str  # copying, moved, clearing, done; aborting, aborted
    started_ms: int
    epochs: tuple[int, ...]  # of the rings that it has put, the one before them first
    shards: tuple[ShardLoad, ...]
    total_bytes: int  # to copy, as planned
    stored_bytes: int  # of all blocks, replicas counted
    keep_s: float
    next_partition: int = 0
    groups: int = 0
    blocks: int = 0
    bytes: int = 0
    partitions: int = 0  # replicas of partitions that get another shard
    moved_ms: int = 0
    ended_ms: int = 0
    back: bool = False  # it undoes itself
    damaged: tuple[str, ...] = ()  # blocks that no old home has whole

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.state in ("done", "aborted")


@dataclass(frozen=True, slots=True)
class MovedPartition:
    """The blocks of one partition that went to one shard.

    The digests are BLAKE3 over id and length (u64, LE) of each block by rising id, taken from the bytes of the old
    shards as they were read, and from those of the new one as they were read back. ``ids`` are the first 8 bytes of
    each id, in base64.
    """

    partition: int
    sources: tuple[int, ...]
    target: int
    blocks: int
    bytes: int
    before: str
    after: str
    ids: str


@dataclass(frozen=True, slots=True)
class Group:
    """A row of pieces: partitions that were copied between two checkpoints."""

    entries: tuple[MovedPartition, ...]


def rebalance(store: Store, *, control: Control, keep_s: float | None = None) -> Rebalance:
    """Move blocks until the ring's table is what its weights want; goes on with one that was begun before.

    Errors: Refused when another process is at it, Stopped (it can go on later), StorageFull, DataLoss when blocks
    cannot be copied because they are damaged.
    """
    with running(store, KIND):
        run = _Run(store, control, keep_s)
        if run.row.record is None or run.row.record.ended:
            run.begin()
        return run.to_the_end()


def abort(store: Store, *, control: Control, keep_s: float | None = None) -> Rebalance:
    """Go back to the ring before the rebalance that is under way, also under the process that runs it.

    Errors: Refused when there is none, or when it has dropped the old copies already.
    """
    _tell_to_stop(store)
    while is_running(store, KIND):
        control.sleep(WAIT_STEP_S)
    with running(store, KIND):
        run = _Run(store, control, keep_s)
        run.turn_back()
        return run.to_the_end()


def status(store: Store) -> Rebalance | None:
    """Return the last rebalance as it stands, None when there was none."""
    with store.journal.snapshot() as snapshot:
        return read_operation(snapshot, KIND, Rebalance).record


def groups(store: Store) -> list[Group]:
    """Return what the last rebalance has copied, by rising partition."""
    with store.journal.snapshot() as snapshot:
        return [decode_operation(row.value, Group) for row in snapshot.range(*pieces_range(KIND))]


def require_settled(store: Store, *, held: bool = False) -> None:
    """Raise Refused while blocks move between two tables, and ReadOnly while a shard is read-only but for ``held``."""
    if not held:
        check_open(store.journal)
    store.routed.refresh()
    now = status(store)
    if store.routed.ring.phase is not Phase.SETTLED or (now is not None and not now.ended):
        raise Refused(
            "a rebalance is under way; end it with: shard rebalance, or: shard rebalance --abort"
        )


def _tell_to_stop(store: Store) -> None:
    """Leave word in the row that the rebalance is to be undone: its process looks there at each step."""
    for _ in range(64):
        with store.journal.snapshot() as snapshot:
            row = read_operation(snapshot, KIND, Rebalance)
        now = row.record
        if now is None or now.ended:
            raise Refused("no rebalance is under way")
        if now.state == "clearing" or now.back:
            raise Refused(
                "rebalance has dropped old copies already; set the weights back and rebalance again"
                if not now.back
                else "rebalance goes back already; go on with: shard rebalance"
            )
        if now.state == "aborting" or store.try_commit(
            [row.unchanged()], [put_operation(KIND, replace(now, state="aborting"))]
        ):
            return
    raise Conflict("rebalance moves on too fast to be stopped")


class _Run:
    """One process's turn at a rebalance."""

    def __init__(self, store: Store, control: Control, keep_s: float | None) -> None:
        self.store = store
        self.control = control
        self.keep_s = keep_s
        self._in_flight = 0  # bytes copied since the last checkpoint
        self._reached: dict[int, int] = {}  # bytes copied to each shard
        self._shown_s = 0.0
        store.routed.refresh()
        self.row = self._read()

    def _read(self) -> Saved[Rebalance]:
        with self.store.journal.snapshot() as snapshot:
            return read_operation(snapshot, KIND, Rebalance)

    @property
    def now(self) -> Rebalance:
        """The row as this run left it."""
        assert self.row.record is not None
        return self.row.record

    def _save(
        self,
        record: Rebalance,
        *,
        ring: Ring | None = None,
        group: Group | None = None,
        fresh: bool = False,
    ) -> None:
        """Write the row, with another ring or a group that was copied; Stopped when someone else has written it."""
        conditions: list[Condition] = [self.row.unchanged()]
        operations: list[Operation] = [put_operation(KIND, record)]
        if ring is not None:
            conditions.append(Compare(RING_KEY, self.store.routed.ring_revision))
            operations.append(Put(RING_KEY, ring.encode()))
        if group is not None:
            operations.append(put_operation(KIND, group, f"{record.groups:06}"))
        if fresh:
            operations.append(DeleteRange(*pieces_range(KIND)))
        try:
            revision = self.store.journal.commit_sync(conditions, operations)
        except Conflict:
            self._check_told()
            raise
        self.row = Saved(self.row.key, record, revision)
        if ring is not None:
            self.store.routed.refresh()

    def _check_told(self) -> None:
        """Raise Stopped when another process wants the rebalance undone."""
        now = self._read()
        if now.record is not None and now.revision != self.row.revision:
            raise Stopped("rebalance was told to go back by another process")

    def begin(self) -> None:
        """Plan, and let puts go to both tables."""
        require_settled(self.store)
        plan = plan_ring(self.store, control=self.control)
        summary = plan.summary()
        loads = tuple(
            ShardLoad(
                one.id,
                one.weight,
                one.partitions_before,
                one.partitions_after,
                one.bytes_before,
                one.bytes_after,
            )
            for one in summary.shards
        )
        record = Rebalance(
            id=uuid.uuid4().hex,
            state="copying",
            started_ms=clock.now_ms(),
            epochs=(plan.before.epoch,),
            shards=loads,
            total_bytes=summary.moved_bytes,
            stored_bytes=summary.bytes,
            keep_s=KEEP_S if self.keep_s is None else self.keep_s,
            partitions=summary.moved_partitions,
        )
        if not plan.moves:
            done = replace(record, state="done", ended_ms=clock.now_ms())
            self._save(done, fresh=True)
            return
        ring = plan.before.towards(plan.after.table)
        record = replace(record, epochs=(*record.epochs, ring.epoch))
        # commit point: before it nothing has begun; after it puts go to old and new shards, and reads go on as before.
        faultpoints.reach("rebalance.before_begin")
        self._save(record, ring=ring, fresh=True)
        faultpoints.reach("rebalance.after_begin")

    def turn_back(self) -> None:
        """Make the old table the one to get to."""
        now, ring = self.now, self.store.routed.ring
        if now.state != "aborting":
            raise Refused("no rebalance is under way that could be undone")
        if ring.phase is Phase.SETTLED:
            return  # done before; copies are left over
        if ring.phase is Phase.COPYING:
            after = ring.settled()
            record = replace(now, epochs=(*now.epochs, after.epoch))
            # commit point: before it the rebalance can go on; after it the ring is the old one, and copies are left
            # over that nobody reads.
            faultpoints.reach("rebalance.before_abort")
            self._save(record, ring=after)
            faultpoints.reach("rebalance.after_abort")
            return
        after = ring.towards(ring.other)
        before, planned = loads_by_shard(now)
        record = replace(
            now,
            state="copying",
            back=True,
            epochs=(*now.epochs, after.epoch),
            shards=tuple(
                replace(
                    one,
                    partitions_before=one.partitions_after,
                    partitions_after=one.partitions_before,
                    bytes_before=planned[one.id],
                    bytes_after=before[one.id],
                )
                for one in now.shards
            ),
            next_partition=0,
            groups=0,
            blocks=0,
            bytes=0,
            keep_s=now.keep_s if self.keep_s is None else self.keep_s,
        )
        # commit point: after it what is put goes to the old shards too, and what they lack is copied back.
        faultpoints.reach("rebalance.before_back")
        self._save(record, ring=after, fresh=True)
        faultpoints.reach("rebalance.after_back")

    def to_the_end(self) -> Rebalance:
        """Do what is left, from whatever state."""
        if self.now.state == "aborting":
            self.turn_back()
        if self.now.state == "copying":
            self._copy_all()
            self._flip()
        if self.now.state == "moved":
            self._keep()
            self._settle()
        if self.now.state in ("clearing", "aborting"):
            sweep(self.store, self.control, stage="clearing")
            ended = "aborted" if self.now.state == "aborting" or self.now.back else "done"
            # commit point: before it a run looks for left copies again; after it there is nothing left to do.
            faultpoints.reach("rebalance.before_end")
            self._save(replace(self.now, state=ended, ended_ms=clock.now_ms()))
            faultpoints.reach("rebalance.after_end")
        return self.now

    # ---- copying ----

    def _copy_all(self) -> None:
        copier = _Copier(self.store, self.store.routed.ring, self._copied)
        for one in (entry for group in groups(self.store) for entry in group.entries):
            self._reached[one.target] = self._reached.get(one.target, 0) + one.bytes
        damaged: list[str] = []
        waiting = _Waiting()
        for again in sorted({int(text[:4], 16) for text in self.now.damaged}):
            waiting.add(copier.gather(again, again + 1))
        for low in range(self.now.next_partition, PARTITIONS, STEP_PARTITIONS):
            high = min(low + STEP_PARTITIONS, PARTITIONS)
            for part in copier.gather(low, high):
                waiting.add([part])
                if waiting.full:
                    self._checkpoint(
                        part.partition + 1, copier.copy(waiting.parts, damaged), damaged
                    )
                    waiting = _Waiting()
            self.control.pace(LOOK_COST_BYTES)
            self._check_told()
        self._checkpoint(PARTITIONS, copier.copy(waiting.parts, damaged), damaged)
        self._show_shards()
        if damaged:
            raise _damage(damaged)

    def _copied(self, sizes: Mapping[int, int]) -> None:
        """Tell progress, keep the pace and look for word from others, after each batch: bytes by target."""
        size_bytes = sum(sizes.values())
        self._in_flight += size_bytes
        for target, size in sizes.items():
            self._reached[target] = self._reached.get(target, 0) + size
        now = clock.monotonic()
        if now - self._shown_s >= SHOW_S:
            self._shown_s = now
            self._show_shards()
        done = self.now.bytes + self._in_flight
        self.control.report(Progress("copying", done, max(self.now.total_bytes, done), "bytes"))
        self.control.pace(size_bytes + LOOK_COST_BYTES)
        self._check_told()

    def _show_shards(self) -> None:
        """Tell how far each shard is that grows."""
        for one in self.now.shards:
            if one.bytes_after > one.bytes_before:
                done, total = self._reached.get(one.id, 0), one.bytes_after - one.bytes_before
                self.control.report(Progress(f"to shard {one.id}", done, max(done, total), "bytes"))

    def _checkpoint(
        self, partition: int, entries: Sequence[MovedPartition], damaged: Sequence[str]
    ) -> None:
        if len(damaged) > DAMAGED_MAX:
            raise _damage(damaged)  # a row that leaves some out would let them be forgotten
        now = self.now
        record = replace(
            now,
            next_partition=partition,
            groups=now.groups + bool(entries),
            blocks=now.blocks + sum(one.blocks for one in entries),
            bytes=now.bytes + sum(one.bytes for one in entries),
            damaged=tuple(damaged),
        )
        # commit point: before it a run copies these partitions again; after it behind them.
        faultpoints.reach("rebalance.before_checkpoint")
        self._save(record, group=Group(tuple(entries)) if entries else None)
        faultpoints.reach("rebalance.after_checkpoint")
        self._in_flight = 0

    def _flip(self) -> None:
        ring = self.store.routed.ring.moved()
        record = replace(
            self.now, state="moved", moved_ms=clock.now_ms(), epochs=(*self.now.epochs, ring.epoch)
        )
        # commit point: before it reads go to the old shards, after it to the new ones; both have everything.
        faultpoints.reach("rebalance.before_move")
        self._save(record, ring=ring)
        faultpoints.reach("rebalance.after_move")

    def _keep(self) -> None:
        """Wait until the old copies may go."""
        keep_s = self.now.keep_s if self.keep_s is None else self.keep_s
        until = self.now.moved_ms + int(keep_s * 1_000)
        while (left := until - clock.now_ms()) > 0:
            done = max(int(keep_s) - left // 1_000, 0)
            self.control.report(Progress("keeping old copies", done, int(keep_s), "seconds"))
            self.control.sleep(min(left / 1_000, WAIT_STEP_S))
            self._check_told()

    def _settle(self) -> None:
        ring = self.store.routed.ring.settled()
        record = replace(self.now, state="clearing", epochs=(*self.now.epochs, ring.epoch))
        # commit point: before it the rebalance can be undone; after it the old copies are nobody's.
        faultpoints.reach("rebalance.before_settle")
        self._save(record, ring=ring)
        faultpoints.reach("rebalance.after_settle")


def _damage(damaged: Sequence[str]) -> DataLoss:
    return DataLoss(
        "damaged blocks cannot be moved; repair them, then go on with: shard rebalance",
        blocks=damaged[:8],
        count=len(damaged),
    )


def loads_by_shard(now: Rebalance) -> tuple[dict[int, int], dict[int, int]]:
    """Return bytes before and after, by shard."""
    return (
        {one.id: one.bytes_before for one in now.shards},
        {one.id: one.bytes_after for one in now.shards},
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A partition that is to be copied: where from, where to, and its blocks with their lengths."""

    partition: int
    homes: tuple[int, ...]
    targets: tuple[int, ...]
    sizes: dict[BlockId, int]


class _Waiting:
    """Partitions of the next group."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self._entries = self._blocks = self._bytes = 0

    def add(self, parts: Sequence[_Part]) -> None:
        for part in parts:
            self.parts.append(part)
            self._entries += len(part.targets)
            self._blocks += len(part.sizes) * len(part.targets)
            self._bytes += sum(part.sizes.values()) * len(part.targets)

    @property
    def full(self) -> bool:
        """Whether they are enough for a checkpoint."""
        return (
            self._entries >= GROUP_ENTRIES
            or self._blocks >= GROUP_BLOCKS
            or self._bytes >= GROUP_BYTES
        )


class _Copier:
    """Copies partitions from the shards of a ring's table to those of its other one."""

    def __init__(
        self, store: Store, ring: Ring, copied: Callable[[Mapping[int, int]], None]
    ) -> None:
        self.ring = ring
        self.blocks = store.routed
        self.shards = store.routed.shards
        self.copied = copied  # told of each batch's bytes, by target

    def gather(self, low: int, high: int) -> list[_Part]:
        """Return what is to be copied of partitions ``low`` to ``high`` - 1."""
        parts: dict[int, _Part] = {}
        for partition in range(low, high):
            homes = self.ring.shards_of(partition)
            if homes != tuple(row[partition] for row in self.ring.other):
                to = (row[partition] for row in self.ring.other)
                targets = tuple(shard for shard in to if shard not in homes)
                if targets:
                    parts[partition] = _Part(partition, homes, targets, {})
        # Of all replicas: what one has lost is copied from another.
        for home in {home for part in parts.values() for home in part.homes}:
            for block, size in self.shards[home].scan_sync(low, high):
                part = parts.get(partition_of(block))
                if part is not None and home in part.homes:
                    part.sizes[block] = size
        return [part for part in parts.values() if part.sizes]

    def copy(self, parts: Sequence[_Part], damaged: list[str]) -> list[MovedPartition]:
        """Copy partitions to their targets; returns an entry for each and each target."""
        copies = {(part.partition, to): _Copies() for part in parts for to in part.targets}
        for batch in _batches(parts):
            by_target: dict[int, list[tuple[BlockId, bytes]]] = {}
            for part, block in batch:
                found = self._read(part.homes, block, damaged)
                for target in part.targets if found is not None else ():
                    by_target.setdefault(target, []).append((block, found or b""))
            for target, blocks in by_target.items():
                put = methodcaller("put_verified_sync", blocks)
                self.blocks.write_to(self.shards[target], put)
                for block, data in blocks:
                    read_back = self._read_back(target, block)
                    copies[partition_of(block), target].add(block, data, read_back)
            self._drop_deleted(batch, copies)
            self.copied(
                {to: sum(len(data) for _, data in blocks) for to, blocks in by_target.items()}
            )
        entries = [
            copies[part.partition, to].entry(part.partition, part.homes, to)
            for part in parts
            for to in part.targets
        ]
        return [one for one in entries if one.blocks]

    def _read(self, homes: Sequence[int], block: BlockId, damaged: list[str]) -> bytes | None:
        """Return a block's bytes, checked; None when it was deleted meanwhile or no home has it whole."""
        broken = False
        for home in homes:
            try:
                found = self.shards[home].read_sync(block)
            except BlockCorrupt:
                broken = True
                continue
            if found is not None:
                return found
        if broken and block.hex() not in damaged:
            damaged.append(block.hex())
        return None

    def _read_back(self, target: int, block: BlockId) -> int | None:
        """Return the length of a copy whose bytes give its id; None when it was deleted meanwhile."""
        found = self.shards[target].read_sync(block)
        return None if found is None else len(found)

    def _drop_deleted(
        self, batch: Sequence[tuple[_Part, BlockId]], copies: dict[tuple[int, int], _Copies]
    ) -> None:
        """Take back copies of blocks that were deleted while they were copied: ids are never born again."""
        for part, block in batch:
            if any(self.shards[home].has_many_sync([block])[0] for home in part.homes):
                continue
            for target in part.targets:
                delete = methodcaller("delete_many_sync", [block])
                self.blocks.write_to(self.shards[target], delete)
                copies[part.partition, target].drop(block)


class _Copies:
    """What one shard got of one partition."""

    def __init__(self) -> None:
        self._lengths: dict[BlockId, tuple[int, int | None]] = {}

    def add(self, block: BlockId, data: bytes, read_back: int | None) -> None:
        self._lengths[block] = (len(data), read_back)

    def drop(self, block: BlockId) -> None:
        self._lengths.pop(block, None)

    def entry(self, partition: int, sources: tuple[int, ...], target: int) -> MovedPartition:
        """Return the entry of a receipt."""
        whole = sorted((b, old, new) for b, (old, new) in self._lengths.items() if new is not None)
        return MovedPartition(
            partition=partition,
            sources=sources,
            target=target,
            blocks=len(whole),
            bytes=sum(old for _, old, _ in whole),
            before=digest_of([(block, old) for block, old, _ in whole]),
            after=digest_of([(block, new) for block, _, new in whole]),
            ids=base64.b64encode(b"".join(block[:PREFIX_BYTES] for block, _, _ in whole)).decode(),
        )


def digest_of(blocks: Sequence[tuple[BlockId, int]]) -> str:
    """Return the digest of blocks whose bytes have been checked against their ids; see MovedPartition."""
    digest = blake3()
    for block, size in blocks:
        digest.update(block + size.to_bytes(8, "little"))
    return digest.hexdigest()


def _batches(parts: Sequence[_Part]) -> Iterator[list[tuple[_Part, BlockId]]]:
    """Return the blocks of partitions in their order, in pieces of one transaction."""
    batch: list[tuple[_Part, BlockId]] = []
    held = 0
    for part in parts:
        for block in sorted(part.sizes):
            if batch and held + part.sizes[block] > BATCH_BYTES:
                yield batch
                batch, held = [], 0
            batch.append((part, block))
            held += part.sizes[block]
    if batch:
        yield batch
