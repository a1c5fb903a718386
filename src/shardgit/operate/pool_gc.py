"""gc of one pool's objects: what its roots do not reach is condemned, written out of its runs, and dropped by a swap.

1. A snapshot shows what the roots reach; what else the manifest's runs hold is condemned, if that pays for a rewrite.
2. The condemned set is published in the journal (pool/condemned.py). From then on whoever makes something of the pool
   reachable compares that row, and deletes it when it relies on what is condemned.
3. A second snapshot shows what became reachable before that; the set shrinks to what nobody needs.
4. Run by run, the newest first, since links and bases lead to older runs: written anew without what goes, and swapped
   into the manifest by a commit that compares the pool's row and the condemned row.

Nothing waits for any of it but a settle, for the swap alone. Whoever is faster wins, and gc looks again. The argument
stands in docs/adr/0011-gc-condemns-then-swaps.md.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints
from shardgit.errors import Conflict, Refused
from shardgit.journal.interface import Compare, Delete, Put
from shardgit.operate.compact import replaced
from shardgit.operate.condemning import (
    Chosen,
    Policy,
    base_runs,
    both_of,
    bytes_of,
    choose,
    condemn,
    garbage_of,
    is_embedded,
)
from shardgit.operate.dropping import Rewritten, rewritten
from shardgit.operate.reserving import reserving
from shardgit.operate.roots import Members, roots_of
from shardgit.operate.settle import settling_alone
from shardgit.pool.append import BlockBatch
from shardgit.pool.condemned import condemned_key, new_record, run_key, segments_of
from shardgit.pool.manifest import encode_manifest
from shardgit.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from shardgit.oid import PoolId
    from shardgit.operate.operation import Control
    from shardgit.pool.view import PlacedRun, PoolView
    from shardgit.service.store import PoolState, Store

ROUNDS_MAX = 4  # looks at a pool that others change all the time
NARROWED_MAX = 8  # times that a published set is narrowed down
LOCK_WAIT_S = 0.05
SMALL_OBJECTS = 20_000  # a pool of so few is written anew faster than others change it


@dataclass(frozen=True, slots=True)
class Collected:
    """What became of a pool. ``garbage_objects`` are those that nothing reaches, dropped or not."""

    garbage_objects: int = 0
    garbage_bytes: int = 0
    dropped_objects: int = 0
    dropped_bytes: int = 0
    runs_rewritten: int = 0
    written_bytes: int = 0

    def plus(self, other: Collected) -> Collected:
        """Return both together."""
        names = (field.name for field in fields(self))
        return Collected(*(getattr(self, name) + getattr(other, name) for name in names))


def collect(
    store: Store,
    pool: PoolId,
    members: Members,
    policy: Policy,
    *,
    control: Control,
    dry_run: bool = False,
) -> Collected:
    """Drop what nothing reaches from a pool. Killed at any point, it has dropped some runs' part or none, whole.

    Errors: DataLoss when the pool lacks what a ref reaches: then nothing is touched. Stopped, StorageFull.
    """
    total = Collected()
    for round_ in range(ROUNDS_MAX):
        done, again = _PoolGc(store, pool, members, policy, control).run(dry_run=dry_run)
        if round_:  # what is garbage still was counted in the first one
            done = replace(done, garbage_objects=0, garbage_bytes=0)
        total = total.plus(done)
        if not again:
            break
    return total


@contextmanager
def without_settles(store: Store, pool: PoolId, control: Control) -> Iterator[None]:
    """Wait for a settle that is at a pool, and keep others out: they skip it."""
    while True:
        with settling_alone(store, pool) as free:
            if free:
                yield
                return
        control.sleep(LOCK_WAIT_S)


class _PoolGc:
    """One look at a pool, and what follows from it."""

    def __init__(
        self, store: Store, pool: PoolId, members: Members, policy: Policy, control: Control
    ) -> None:
        self.store = store
        self.pool = pool
        self.members = members
        self.policy = policy
        self.control = control
        self.revision = 0  # of the condemned row that is ours
        self.condemned: dict[bytes, bytes] = {}
        self.dropped = self.dropped_bytes = self.rewritten = self.written = 0

    def run(self, *, dry_run: bool) -> tuple[Collected, bool]:
        """Collect; says whether there may be more to do, since others were faster."""
        self._clear()
        with self.store.lease():  # on the blocks that are put before a swap
            state = self._look()
            garbage = garbage_of(state.view, self.roots)
            chosen = choose(state.view, garbage, self.policy)
            found = Collected(
                sum(bits.bit_count() for bits in garbage),
                sum(
                    bytes_of(state.view, run, bits)
                    for run, bits in zip(base_runs(state.view), garbage, strict=True)
                ),
            )
            again = False
            if dry_run:
                self.dropped = sum(one.objects for one in chosen)
                self.dropped_bytes = sum(one.size for one in chosen)
            elif chosen:
                with self._reserving(state.view, chosen):
                    if state.view.objects <= SMALL_OBJECTS:
                        with without_settles(self.store, self.pool, self.control):
                            again = self._collect(chosen, locked=True)
                    else:
                        again = self._collect(chosen, locked=False)
        done = Collected(
            found.garbage_objects,
            found.garbage_bytes,
            self.dropped,
            self.dropped_bytes,
            self.rewritten,
            self.written,
        )
        return done, again

    @contextmanager
    def _reserving(self, view: PoolView, chosen: Sequence[Chosen]) -> Iterator[None]:
        """Keep settles from merging what is chosen; a compaction that is at the pool is waited for."""
        keys = {key for one in chosen for key in one.keys}
        records = [run.record for run in base_runs(view) if run_key(view, run) in keys]
        with ExitStack() as held:
            while True:
                try:
                    held.enter_context(reserving(self.store, self.pool, records))
                    break
                except Refused:
                    self.control.sleep(LOCK_WAIT_S)
            yield

    def _look(self) -> PoolState:
        with self.store.journal.snapshot() as snapshot:
            self.roots = roots_of(
                self.store, snapshot, self.pool, self.members, self.policy.grace_ms
            )
            return self.store.pool(snapshot, self.pool)

    # ---- publishing ----

    def _clear(self) -> None:
        """Delete a condemned row that a gc before has left."""
        key = condemned_key(self.pool)
        with self.store.journal.snapshot() as snapshot:
            row = snapshot.get(key)
        if row is not None:
            self.store.try_commit([Compare(key, row.revision)], [Delete(key)])

    def _publish(self, runs: Mapping[bytes, bytes]) -> None:
        """Put the condemned row in place of ours. Conflict when somebody has taken it out of our hands."""
        key, view = condemned_key(self.pool), self.state.view
        record, blocks = new_record(
            runs, pool=self.pool, hash_kind=view.hash_kind, time_ms=clock.now_ms()
        )
        if blocks:
            self.store.blocks.put_many_sync(blocks)
        faultpoints.reach("gc.before_publish")
        # commit point: before it nobody knows; after it whoever relies on what is condemned deletes the row.
        self.revision = self.store.journal.commit_sync(
            [Compare(key, self.revision)], [Put(key, record.encode())]
        )
        faultpoints.reach("gc.after_publish")
        self.condemned = dict(runs)

    def _withdraw(self) -> None:
        key = condemned_key(self.pool)
        if self.revision:
            self.store.try_commit([Compare(key, self.revision)], [Delete(key)])
            self.revision = 0

    def _collect(self, chosen: Sequence[Chosen], *, locked: bool) -> bool:
        """Publish, narrow down, write anew and swap; says whether others were faster."""
        keys = {key for one in chosen for key in one.keys}
        try:
            self.state = self._look()
            self._publish(condemn(self.state.view, self.roots, keys))
            if not self._narrow():
                return True
            if not self.condemned:
                return False
            return not self._swap_all(chosen, locked=locked)
        except Conflict:
            return True
        finally:
            self._withdraw()

    def _narrow(self) -> bool:
        """Take out of the published set what became reachable before it was published, until nothing did.

        Runs that have nothing in it any more are not written anew, so their bases stay.
        """
        for _ in range(NARROWED_MAX):
            self.state = self._look()
            now = condemn(self.state.view, self.roots, set(self.condemned))
            if self.condemned.keys() - now.keys() and not self._present(self.state.view):
                return False  # a settle took a run into another one
            both = {key: both_of(bits, now.get(key, b"")) for key, bits in self.condemned.items()}
            both = {key: bits for key, bits in both.items() if any(bits)}
            if both == self.condemned:
                return True
            self._publish(both)
        return False

    def _present(self, view: PoolView) -> bool:
        """Say whether every run with something condemned in it is there still."""
        return self.condemned.keys() <= {run_key(view, run) for run in base_runs(view)}

    # ---- swapping ----

    def _swap_all(self, chosen: Sequence[Chosen], *, locked: bool) -> bool:
        """Write each group anew and swap it in, the newest first; False when others were faster."""
        total = sum(one.objects for one in chosen)
        done = 0
        for one in reversed(chosen):
            if any(key in self.condemned for key in one.keys):
                self.control.report(Progress("dropping objects", done, total, "objects"))
                made = self._rewrite(one)
                if made is None or not self._swap(one, made, locked=locked):
                    return False
            done += one.objects
        self.control.report(Progress("dropping objects", total, total, "objects"))
        return True

    def _rewrite(self, one: Chosen) -> Rewritten | None:
        with self.store.journal.snapshot() as snapshot:
            state = self.store.pool(snapshot, self.pool)
        runs = _found(state.view, one.keys)
        if runs is None or not self._ours(state):
            return None
        assert state.condemned is not None
        going = state.condemned.bits(state.view)
        size = sum(
            segment.entry.entry_bytes for run in runs for segment in segments_of(state.view, run)
        )
        self.control.pace(size)
        made = rewritten(self.store, state, runs, going, embed=is_embedded(state.view))
        self.control.pace(made.stored_bytes)
        return made

    def _ours(self, state: PoolState) -> bool:
        return state.condemned is not None and state.condemned.revision == self.revision

    def _swap(self, one: Chosen, made: Rewritten, *, locked: bool) -> bool:
        if locked:
            return self._swap_now(one, made)
        with without_settles(self.store, self.pool, self.control):
            return self._swap_now(one, made)

    def _swap_now(self, one: Chosen, made: Rewritten) -> bool:
        with self.store.journal.snapshot() as snapshot:
            state = self.store.pool(snapshot, self.pool)
        view = state.view
        runs = _found(view, one.keys)
        # A run with condemned objects that was merged into another would link to what goes here.
        if runs is None or not self._ours(state) or not self._present(view):
            return False
        order = base_runs(view)
        batch = BlockBatch(self.store.blocks, embed=False)
        base = view.manifest
        if len(runs) < len(order):
            base = view.unembedded(base, batch.take)
        first = order.index(runs[0])
        records = base.runs[first : first + len(runs)]
        manifest = replaced(base, records, made.run)
        assert manifest is not None
        root, blocks = encode_manifest(manifest, pool=self.pool, embedded=made.embedded)
        batch.put(blocks)
        compare, put = self.store.next_pool(state, root)
        faultpoints.reach("gc.before_swap")
        # commit point: before it all objects are there, and blocks that nothing names; after it the condemned ones of
        # these runs are gone.
        done = self.store.try_commit(
            [compare, Compare(condemned_key(self.pool), self.revision)], [put]
        )
        faultpoints.reach("gc.after_swap")
        if done:
            self.dropped += sum(
                int.from_bytes(self.condemned.pop(key, b""), "little").bit_count()
                for key in one.keys
            )
            self.dropped_bytes += one.size
            self.rewritten += len(runs)
            self.written += made.stored_bytes
        return done


def _found(view: PoolView, keys: Sequence[bytes]) -> list[PlacedRun] | None:
    """Return the runs with ``keys``, None unless they stand in a row."""
    runs = base_runs(view)
    names = [run_key(view, run) for run in runs]
    if keys[0] not in names:
        return None
    at = names.index(keys[0])
    return runs[at : at + len(keys)] if tuple(names[at : at + len(keys)]) == tuple(keys) else None
