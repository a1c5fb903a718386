"""Shards that are read-only: nothing is written to them, and what they hold is read as ever.

No block moves for that. The partition of a block follows from its id, and its id from a random nonce: while a shard is
held, blocks are born with nonces whose partitions lie elsewhere (ADR 0025). What is deleted meanwhile and lies in it
stays, for the next gc once it takes changes again.

A shard is closed in two steps. From the first on new blocks keep off it; what was born before may still be put there.
The second, once nobody has written to it for a while, has what would write to it refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from shardgit import clock, faultpoints
from shardgit.errors import Conflict, Refused, ShardMissing
from shardgit.journal.held import HELD_KEY, HeldShard, decode_held, encode_held
from shardgit.journal.interface import Compare, Delete, Put
from shardgit.operate.operation import running
from shardgit.operate.rebalance import KIND, require_settled
from shardgit.operate.shrinking import COMPACTING
from shardgit.progress import Progress
from shardgit.ring.ring import PARTITIONS
from shardgit.service.modes import checked_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from shardgit.operate.operation import Control
    from shardgit.ring.ring import Ring
    from shardgit.service.store import Store

OPEN_LEAST = (
    PARTITIONS // 32
)  # partitions that must be left: a block is hashed once for each that it may not have
QUIET_S = 3.0  # without a write, until a shard is closed: processes look for news each second
QUIET_MAX_S = 60.0
LOOK_S = 0.2
ROUNDS_MAX = 16


@dataclass(frozen=True, slots=True)
class ShardMode:
    """Whether a shard is read-only, why, who said so, and since when."""

    id: int
    read_only: bool
    why: str = ""
    by: str = ""
    since_ms: int = 0


def set_shard_mode(
    store: Store, number: int, *, read_only: bool, why: str = "", by: str = "", control: Control
) -> ShardMode:
    """Make a shard read-only, or let it take changes again; behind the answer nothing is written to it.

    Errors: ShardMissing; Refused while a rebalance is under way, or when too few partitions were left for new blocks;
    InvalidArgument, Conflict, Stopped (then it is as it was, or to be closed by the same call).
    """
    checked_reason(why)
    with (
        running(store, KIND),
        running(store, COMPACTING),
    ):  # neither the ring nor a file may change meanwhile
        require_settled(store, held=True)
        ring = store.routed.ring
        if number not in {shard.number for shard in ring.shards}:
            raise ShardMissing("store has no such shard", shard=number)
        if not read_only:
            _change(store, lambda held: [one for one in held if one.id != number])
            return ShardMode(number, False)
        held = HeldShard(number, why, by, clock.now_ms())

        def with_it(shards: Sequence[HeldShard]) -> list[HeldShard]:
            others = [one for one in shards if one.id != number]
            _check_room(ring, {number, *(one.id for one in others)})
            before = next((one for one in shards if one.id == number), None)
            return [*others, held if before is None or not before.closed else _again(before, held)]

        found = _change(store, with_it)
        if not next(one for one in found if one.id == number).closed:
            _until_quiet(store, number, control)
            found = _change(store, lambda shards: [_closed(one, number) for one in shards])
        store.routed.refresh()
        return _mode(number, next((one for one in found if one.id == number), None))


def _change(
    store: Store, change: Callable[[Sequence[HeldShard]], list[HeldShard]]
) -> Sequence[HeldShard]:
    for _ in range(ROUNDS_MAX):
        with store.journal.snapshot() as snapshot:
            row = snapshot.get(HELD_KEY)
        before = decode_held(row.value) if row is not None else ()
        after = change(before)
        if tuple(after) == before:
            return before
        # commit point: before it shards take blocks as they did, after it as the row says, in all processes.
        faultpoints.reach("holding.before_commit")
        if store.try_commit(
            [Compare(HELD_KEY, row.revision if row is not None else 0)],
            [Put(HELD_KEY, encode_held(after)) if after else Delete(HELD_KEY)],
        ):
            faultpoints.reach("holding.after_commit")
            store.routed.refresh()
            return after
    raise Conflict("modes of shards are being changed by many at once")


def _check_room(ring: Ring, held: Collection[int]) -> None:
    """Raise Refused when new blocks would find too few partitions."""
    left = sum(set(ring.shards_of(at)).isdisjoint(held) for at in range(PARTITIONS))
    if left < OPEN_LEAST:
        raise Refused(
            "too few partitions would be left for new blocks; add shards, or: shardgit store read-only on",
            partitions=left,
            least=OPEN_LEAST,
        )


def _until_quiet(store: Store, number: int, control: Control) -> None:
    """Wait until nobody has written to a shard for a while, or for so long that whoever still does may fail."""
    shard = store.routed.shards[number]
    begun = since = clock.monotonic()
    last = shard.written()
    while (now := clock.monotonic()) - since < QUIET_S and now - begun < QUIET_MAX_S:
        control.report(Progress("waiting for writers", int(now - since), int(QUIET_S), "seconds"))
        control.sleep(LOOK_S)
        if (found := shard.written()) != last:
            last, since = found, clock.monotonic()


def _again(before: HeldShard, now: HeldShard) -> HeldShard:
    """Return a closed shard of which more is said."""
    return before if not now.why else msgspec.structs.replace(before, why=now.why, by=now.by)


def _closed(one: HeldShard, number: int) -> HeldShard:
    return msgspec.structs.replace(one, closed=True) if one.id == number else one


def _mode(number: int, held: HeldShard | None) -> ShardMode:
    if held is None:
        return ShardMode(number, False)
    return ShardMode(number, True, held.why, held.by, held.since_ms)
