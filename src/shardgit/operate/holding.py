"""Shards that are read-only: nothing is written to them, and what they hold is read as ever.

No block moves for that. The partition of a block follows from its id, and its id from a random nonce: while a shard is
held, blocks are born with nonces whose partitions lie elsewhere (ADR 0025). What is deleted meanwhile and lies in it
stays, for the next gc once it takes changes again.

A shard is closed in two steps. From the first on new blocks keep off it; what was born before may still be put there.
The second, once all have ended who began before the first, has what would write to it refused.
"""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING

import msgspec

from shardgit import clock, faultpoints
from shardgit.errors import Conflict, JournalCorrupt, Refused, ShardMissing
from shardgit.journal.held import HELD_KEY, HeldShard, decode_held, encode_held
from shardgit.journal.interface import Compare, Delete, Put
from shardgit.operate.operation import running
from shardgit.operate.rebalance import KIND as REBALANCE
from shardgit.operate.rebalance import require_settled
from shardgit.operate.repair import KIND as REPAIR
from shardgit.operate.shrinking import COMPACTING
from shardgit.progress import Progress
from shardgit.ring.ring import PARTITIONS
from shardgit.service.modes import checked_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from shardgit.blocks.shard import ShardStore
    from shardgit.operate.operation import Control
    from shardgit.ring.ring import Ring
    from shardgit.service.store import Store

OPEN_LEAST = (
    PARTITIONS // 32
)  # partitions that must be left: a birth tries nonces until one leads to these
NEWS_S = 2.0  # until each process has heard of it: workers look each second, and who takes a lease looks then
WAIT_MAX_S = 60.0  # for those who began before: who puts blocks later is refused
LOOK_S = 0.1
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

    Errors: ShardMissing; Refused while a rebalance, a repair or a compaction of shards runs, or when too few partitions
    were left for new blocks; InvalidArgument, Conflict, Stopped (then the same call goes on with it).
    """
    checked_reason(why)
    with ExitStack() as held:
        # Neither the ring nor a file may change meanwhile.
        for kind in (REBALANCE, COMPACTING, REPAIR):
            held.enter_context(running(store, kind))
        require_settled(store, held=True)
        known = store.routed.shards.keys() | (set() if read_only else store.routed.held.shards)
        if number not in known:
            raise ShardMissing("store has no such shard", shard=number)
        if not read_only:
            _change(store, lambda shards: [one for one in shards if one.id != number])
            return ShardMode(number, False)
        fresh = HeldShard(number, why, by, clock.now_ms())
        shards = _change(store, lambda before: _with(store.routed.ring, before, fresh))
        if not _of(shards, number).closed:
            _await_earlier(store, store.journal.revision(), control)
            shards = _change(store, lambda before: [_closed(one, number) for one in before])
        _await_writers(store.routed.shards[number], control)
        one = _of(shards, number)
        return ShardMode(number, True, one.why, one.by, one.since_ms)


def _change(
    store: Store, change: Callable[[Sequence[HeldShard]], list[HeldShard]]
) -> Sequence[HeldShard]:
    for _ in range(ROUNDS_MAX):
        with store.journal.snapshot() as snapshot:
            row = snapshot.get(HELD_KEY)
        try:
            before, whole = decode_held(row.value) if row is not None else (), True
        except JournalCorrupt:  # what it said is lost
            before, whole = (), False
        after = change(before)
        if tuple(after) == before and whole:
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


def _with(ring: Ring, before: Sequence[HeldShard], fresh: HeldShard) -> list[HeldShard]:
    """Return what is held with one more; of one that is held already it tells the news."""
    others = [one for one in before if one.id != fresh.id]
    _check_room(ring, {fresh.id, *(one.id for one in others)})
    known = next((one for one in before if one.id == fresh.id), None)
    if known is not None and fresh.why:
        known = msgspec.structs.replace(known, why=fresh.why, by=fresh.by)
    return sorted([*others, known or fresh], key=lambda one: one.id)


def _check_room(ring: Ring, held: Collection[int]) -> None:
    """Raise Refused when new blocks would find too few partitions."""
    left = sum(set(ring.shards_of(at)).isdisjoint(held) for at in range(PARTITIONS))
    if left < OPEN_LEAST:
        raise Refused(
            "too few partitions would be left for new blocks; add shards, or: shardgit store read-only on",
            partitions=left,
            least=OPEN_LEAST,
        )


def _await_earlier(store: Store, revision: int, control: Control) -> None:
    """Wait for all who began before a revision, which have blocks that they have not put yet; but not for ever."""
    begun = clock.monotonic()
    with store.holders.asking() as asked:
        while (took := clock.monotonic() - begun) < WAIT_MAX_S:
            if took >= NEWS_S and not asked.awaited(revision, 0):
                break
            control.report(Progress("waiting for requests", int(took), int(WAIT_MAX_S), "seconds"))
            control.sleep(LOOK_S)


def _await_writers(shard: ShardStore, control: Control) -> None:
    """Wait for who writes to a shard now, in a thread that may be left: a process that is stopped keeps the lock."""
    done: Future[None] = Future()

    def wait() -> None:
        try:
            shard.await_writers()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    begun = clock.monotonic()
    Thread(target=wait, name="shardgit-await-writers", daemon=True).start()
    while not done.done():
        waited = int(clock.monotonic() - begun)
        control.report(Progress("waiting for the last writer", waited, None, "seconds"))
        control.sleep(LOOK_S)
    done.result()


def _of(shards: Sequence[HeldShard], number: int) -> HeldShard:
    return next(one for one in shards if one.id == number)


def _closed(one: HeldShard, number: int) -> HeldShard:
    return msgspec.structs.replace(one, closed=True) if one.id == number else one
