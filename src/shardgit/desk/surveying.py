"""A look at a store for the console: its shards or nodes, what runs, what ran last. Cheap, and writes nothing."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.backup.last import last_backup
from shardgit.blocks.clustered import ClusteredBlocks
from shardgit.cluster.members import membership
from shardgit.errors import ShardgitError
from shardgit.journal.operations import read_operation
from shardgit.operate.gc import KIND as GC
from shardgit.operate.gc import GcLast
from shardgit.operate.notes import operations_under_way
from shardgit.operate.rebalance import KIND as REBALANCE
from shardgit.operate.rebalance import Rebalance
from shardgit.operate.verifying import KIND as VERIFY
from shardgit.operate.verifying import VerifyState
from shardgit.service.shards import list_shards
from shardgit.service.sizes import human_bytes
from shardgit.survey import Ended, Operation, Shard, Survey

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.cluster.members import Membership
    from shardgit.journal.interface import JournalSnapshot
    from shardgit.ring.ring import Ring
    from shardgit.service.store import Store


def survey(store: Store) -> Survey:
    """Return what the console shows of a store. Errors: as of the journal and the shards."""
    with store.journal.snapshot() as snapshot:
        moving = _moving(snapshot)
        ended = _ended(snapshot, moving)
    if store.in_cluster:
        with store.journal.snapshot() as snapshot:
            found = membership(snapshot)
        ring, shards = found.ring.ring, _nodes(store, found)
    else:
        shards = _shards(store)
        ring = store.routed.ring
    return Survey(
        time_ms=clock.now_ms(),
        clustered=store.in_cluster,
        epoch=ring.epoch,
        replicas=ring.replicas,
        phase=ring.phase.name.lower(),
        shards=shards,
        operations=_operations(store, moving),
        ended=ended,
        journal_bytes=store.journal.sizes(),
        moving=ring.moving_partitions(),
    )


def _shards(store: Store) -> list[Shard]:
    found = list_shards(store)
    ring = store.routed.ring
    return [
        Shard(
            id=one.id,
            name=f"shard {one.id}",
            zone=str(one.zone),
            weight=one.weight,
            state=one.state,
            partitions=one.partitions,
            others=_others(ring, one.id),
            blocks=one.blocks,
            bytes=one.bytes,
            file_bytes=one.file_bytes,
            free_bytes=_free(store.routed.shards[one.id].folder)
            if one.id in store.routed.shards
            else None,
        )
        for one in found
    ]


def _nodes(store: Store, found: Membership) -> list[Shard]:
    blocks = store.blocks
    assert isinstance(blocks, ClusteredBlocks)
    weights = {shard.number: shard.weight for shard in found.ring.ring.shards}
    rows = []
    for one in found.members:
        here = one.number == blocks.nodes.me
        weight = weights.get(one.number, 0.0)
        state = _state(weight, one.partitions)
        rows.append(
            Shard(
                id=one.number,
                name=one.record.name,
                zone=one.record.zone,
                weight=weight,
                state=state if one.processes else "silent",
                partitions=one.partitions,
                others=_others(found.ring.ring, one.number),
                file_bytes=sum(blocks.tier.bytes_used().values()) if here else None,
                free_bytes=_free(store.scratch) if here else None,
                processes=one.processes,
                is_here=here,
            )
        )
    return rows


def _state(weight: float, partitions: int) -> str:
    if weight:
        return "active" if partitions else "joined"
    return "draining" if partitions else "drained"


def _others(ring: Ring, number: int) -> int:
    return sum(row.count(number) for row in ring.other)


def _free(folder: Path) -> int | None:
    with suppress(OSError):
        disk = os.statvfs(folder)
        return disk.f_bavail * disk.f_frsize
    return None


def _operations(store: Store, moving: Rebalance | None) -> list[Operation]:
    found = [
        Operation(
            note.kind,
            note.stage,
            note.done,
            note.total,
            note.unit,
            note.started_ms,
            note.told_ms,
            note.pid,
        )
        for note in operations_under_way(store.scratch)
    ]
    if moving is not None and not moving.ended and all(one.kind != REBALANCE for one in found):
        # Of another machine's process, or of one that was stopped and can go on.
        found.append(
            Operation(
                REBALANCE,
                moving.state,
                moving.bytes,
                moving.total_bytes,
                "bytes",
                moving.started_ms,
                moving.started_ms,
                0,
            )
        )
    return found


def _moving(snapshot: JournalSnapshot) -> Rebalance | None:
    """Return the last rebalance; None where its row is of another version."""
    with suppress(ShardgitError):
        return read_operation(snapshot, REBALANCE, Rebalance).record
    return None


def _ended(snapshot: JournalSnapshot, moved: Rebalance | None) -> list[Ended]:
    """Return what ran last of each kind; a row of another version is passed over."""
    found: list[Ended] = []
    with suppress(ShardgitError):
        backup = last_backup(snapshot)
        if backup is not None:
            found.append(
                Ended("backup", backup.finished_ms, f"{human_bytes(backup.sent_bytes)} sent")
            )
    with suppress(ShardgitError):
        gc = read_operation(snapshot, GC, GcLast).record
        if gc is not None:
            words = f"{gc.dropped_objects:,} objects dropped, {human_bytes(gc.bytes_freed)} freed"
            found.append(Ended("gc", gc.ended_ms, words))
    with suppress(ShardgitError):
        verified = read_operation(snapshot, VERIFY, VerifyState).record
        if verified is not None and verified.finished_ms:
            count = sum(verified.counts.values())
            words = f"{verified.blocks:,} blocks, {count:,} findings"
            found.append(Ended("verify", verified.finished_ms, words, is_well=not count))
    if moved is not None and moved.ended:
        words = f"{moved.state}: {moved.blocks:,} blocks, {human_bytes(moved.bytes)} moved"
        found.append(Ended("rebalance", moved.ended_ms, words, is_well=not moved.damaged))
    return sorted(found, key=lambda one: -one.ended_ms)
