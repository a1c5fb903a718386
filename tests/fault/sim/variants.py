"""Stores that are wrong on purpose: the simulator must find each of them out."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fault.sim.disk import SimJournal, SimShard

from shardgit.journal.interface import Compare
from shardgit.journal.leases import Held, Leases
from shardgit.journal.records import pool_key, recents_range
from shardgit.operate import orphans, settle
from shardgit.service.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from shardgit.oid import BlockId, PoolId
    from shardgit.service.store import PoolState


@contextmanager
def _replaced(owner: Any, name: str, other: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _pool_not_compared() -> Iterator[None]:
    """Pushes do not notice that a settle has swapped the manifest under them."""
    before = Store.rely

    def rely(self: Store, pool: PoolState, on: Callable[[], Iterable[bytes]]) -> Any:
        conditions, operations = before(self, pool, on)
        kept = [
            one
            for one in conditions
            if not (isinstance(one, Compare) and one.key == pool_key(pool.record.id))
        ]
        return kept, operations

    with _replaced(Store, "rely", rely):
        yield


@contextmanager
def _blocks_behind_the_commit() -> Iterator[None]:
    """Blocks reach the disk only with the next commit of their process, after it."""
    put, use, apply = SimShard.put_verified_sync, SimShard.use, SimJournal._apply
    waiting: dict[int, list[tuple[SimShard, Sequence[tuple[BlockId, bytes]]]]] = {}

    def late(self: SimShard, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        waiting.setdefault(id(self._process), []).append((self, list(blocks)))

    def seen(self: SimShard, block: BlockId, job: Callable[[memoryview], Any]) -> Any:
        for shard, blocks in waiting.get(id(self._process), []):
            if shard is self and block in dict(blocks):
                return job(memoryview(dict(blocks)[block]))
        return use(self, block, job)

    def applied(self: SimJournal) -> None:
        apply(self)
        self._scheduler.switch("blocks are late")
        for shard, blocks in waiting.pop(id(self._process), []):
            put(shard, blocks)

    with (
        _replaced(SimShard, "put_verified_sync", late),
        _replaced(SimShard, "use", seen),
        _replaced(SimJournal, "_apply", applied),
    ):
        yield


@contextmanager
def _answered_too_soon() -> Iterator[None]:
    """A commit is acknowledged before it is durable, as with an fsync that lies."""
    before = SimJournal._apply

    def apply(self: SimJournal) -> None:
        old = self.disk.rows
        before(self)
        if self._scheduler.dice.random() < 0.05:  # the machine forgets it
            self.disk.rows = old

    with _replaced(SimJournal, "_apply", apply):
        yield


@contextmanager
def _settle_takes_too_much() -> Iterator[None]:
    """A settle deletes recents that came after it had looked."""

    def whole(pool: PoolId, **_: object) -> tuple[bytes, bytes]:
        return recents_range(pool)

    with _replaced(settle, "recents_range", whole):
        yield


@contextmanager
def _gc_waits_for_nobody() -> Iterator[None]:
    """gc deletes what requests that began before may read still."""

    def awaited(*_: object) -> tuple[str, ...]:
        return ()

    with _replaced(orphans, "_awaited", awaited):
        yield


@contextmanager
def _gc_knows_no_leases() -> Iterator[None]:
    """gc deletes what a push under way has put and is about to name, and what requests read."""

    def nobody(self: Leases) -> Iterator[Held]:
        del self
        return iter(())

    with _replaced(Leases, "all", nobody):
        yield


@contextmanager
def _condemned_not_compared() -> Iterator[None]:
    """Who relies on what gc has condemned does not say so."""

    def rely(self: Store, pool: PoolState, on: Callable[[], Iterable[bytes]]) -> Any:
        del self, on
        return [Compare(pool_key(pool.record.id), pool.revision)], []

    with _replaced(Store, "rely", rely):
        yield


@contextmanager
def _no_variant() -> Iterator[None]:
    yield


VARIANTS: dict[str, Callable[[], Any]] = {
    "": _no_variant,
    "pool-not-compared": _pool_not_compared,
    "blocks-behind-the-commit": _blocks_behind_the_commit,
    "answered-too-soon": _answered_too_soon,
    "settle-takes-too-much": _settle_takes_too_much,
    "gc-waits-for-nobody": _gc_waits_for_nobody,
    "gc-knows-no-leases": _gc_knows_no_leases,
    "condemned-not-compared": _condemned_not_compared,
}


def varied(name: str) -> Any:
    """Return a context in which the store is wrong in one way, right for ""."""
    return VARIANTS[name]()
