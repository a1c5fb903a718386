"""shard repair: copies put right from other copies, and what is derived made anew.

It goes over the store as a verification does and mends what that finds, as it finds it: a copy that is damaged or
missing is put again from another shard or from ``sources``; index and graph are made anew from segments. Nothing is
deleted but bytes that match no id and that nothing names, and that only while all that names blocks can be read. What
cannot be mended is listed, with the objects and refs
that it takes along.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit import metrics
from shardgit.blocks.block import BlockKind, parse_header, verify_block
from shardgit.errors import Conflict, DataLoss
from shardgit.journal.held import check_open
from shardgit.oid import BlockId, PoolId
from shardgit.operate.damage import Damage, damage_of
from shardgit.operate.findings import (
    REPAIR_FROM,
    Finding,
    FindingKind,
    Findings,
    shown_repositories,
)
from shardgit.operate.operation import running
from shardgit.operate.rebuild import rebuild_pool
from shardgit.operate.remake import Remade, remake_shard
from shardgit.operate.store_files import BlockSource, StoreFiles
from shardgit.operate.verifying import DERIVED, Suspect, Verification, Verifying

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shardgit.operate.naming import Named
    from shardgit.operate.operation import Control
    from shardgit.service.store import Store

KIND = "repair"
ACTIONS_MAX = 10_000
PASSES_MAX = 8  # a root leads to pages, and these to all else: 3 find everything
LEAVES = {BlockKind.SEGMENT, BlockKind.INDEX, BlockKind.GRAPH, BlockKind.BITMAP, BlockKind.PART}


@dataclass(frozen=True, slots=True)
class Action:
    """Something that was done, or would be with ``dry_run``."""

    what: str
    block: str | None = None
    shard: int | None = None
    pool: str | None = None


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did. ``left`` is what it could not mend, ``damage`` what is lost with it."""

    actions: tuple[Action, ...]
    action_count: int
    left: tuple[Finding, ...]
    left_counts: dict[str, int]
    damage: tuple[Damage, ...]
    dry_run: bool
    seconds: float

    @property
    def whole(self) -> bool:
        """Whether nothing is left to mend."""
        return not set(self.left_counts) - {FindingKind.STRAY.value}

    def then(self, after: Repair) -> Repair:
        """Return this repair and one behind it as one."""
        return replace(
            after,
            actions=(*self.actions, *after.actions)[:ACTIONS_MAX],
            action_count=self.action_count + after.action_count,
            seconds=self.seconds + after.seconds,
        )


def repair_store(
    store: Store,
    *,
    control: Control,
    sources: Sequence[BlockSource] = (),
    dry_run: bool = False,
) -> Repair:
    """Mend what can be mended while the store serves; ``dry_run`` only tells what can be seen of that now.

    A manifest that a source had names blocks that may be lost as well: then the store is gone over again.
    Safe to stop and to do again. Errors: Refused while another repair runs, Stopped, StorageFull.
    """
    before: Repair | None = None
    with running(store, KIND):
        if not dry_run:
            check_open(store.journal)
        for _ in range(PASSES_MAX):
            with StoreFiles(store.scratch.parent) as files:
                work = _Repair(store, files, control, sources, dry_run=dry_run)
                done = work.run()
            before = done if before is None else before.then(done)
            if not work.leads_on or dry_run:
                break
    assert before is not None
    return before


def remake_shards(folder: Path, *, control: Control, dry_run: bool = False) -> tuple[Remade, ...]:
    """Make the databases of shards anew whose own pages are damaged or whose file is gone; before the store is opened.

    Errors: StoreBusy while a process has such a shard open, DataLoss when the journal is damaged too, StorageFull,
    Stopped.
    """
    with StoreFiles(folder) as files:
        looking = Verifying(files, control)
        looking.check_files()
        broken = [number for number in files.shards if number not in looking.sound]
        if not broken:
            return ()
        if any(one.shard is None for one in looking.findings.kept):
            raise DataLoss("journal is damaged; restore the store from a backup", path=str(folder))
        if dry_run:
            return tuple(Remade(number, 0, 0, None) for number in broken)
        looking.read_ring()
        made = []
        for number in broken:

            def belongs(block: BlockId, number: int = number) -> bool:
                return number in files.homes(block)

            made.append(remake_shard(number, files.shards[number], belongs, control=control))
        return tuple(made)


class _Repair:
    def __init__(
        self,
        store: Store,
        files: StoreFiles,
        control: Control,
        sources: Sequence[BlockSource],
        *,
        dry_run: bool,
    ) -> None:
        self.store = store
        self.files = files
        self.control = control
        self.sources = sources
        self.dry_run = dry_run
        self.actions: list[Action] = []
        self.action_count = 0
        self.stale: set[PoolId] = set()
        self.lost: dict[BlockId, list[Named]] = {}
        self.leads_on = False  # to blocks that were not looked for, as what names them was lost
        self.verifying = Verifying(files, control, mend=self.mend)

    def run(self) -> Repair:
        """Do all of it."""
        found = self.verifying.run()
        left = self._without_rebuilt(found)
        return Repair(
            actions=tuple(self.actions),
            action_count=self.action_count,
            left=tuple(left.kept),
            left_counts=dict(left.counts),
            damage=damage_of(self.store, self.lost, self.verifying.owners),
            dry_run=self.dry_run,
            seconds=found.seconds,
        )

    def did(self, action: Action) -> None:
        """Note an action."""
        metrics.BLOCK_REPAIRS.labels("would" if self.dry_run else "done").inc()
        self.action_count += 1
        if len(self.actions) < ACTIONS_MAX:
            self.actions.append(action)

    # ---- blocks ----

    def mend(self, suspect: Suspect, names: list[Named]) -> Suspect | None:
        """Put right what is wrong with one block; returns what is left."""
        block = suspect.block
        bad = sorted({*suspect.missing, *suspect.damaged})
        if bad and len(block) == 32:
            data = self.files.read(block)
            fetched = data is None
            if data is None:
                data = self._fetched(block)
            if data is not None:
                put = self._put(block, data, bad, suspect)
                if put and fetched and parse_header(data).kind not in LEAVES:
                    self.leads_on = True
            elif not names and self.verifying.blind:
                pass  # what names it may be what is lost, and comes back from a backup
            elif not names:
                self._drop(suspect)
            elif all(one.kind in DERIVED for one in names):
                pools = {one.pool for one in names if one.pool is not None}
                self.stale |= pools
                suspect.missing, suspect.damaged = [], {}
            else:
                self.lost[block] = names
        if suspect.wrong and names and all(one.kind in DERIVED for one in names):
            self.stale |= {one.pool for one in names if one.pool is not None}
            suspect.wrong = ""
        if suspect.missing or suspect.damaged or suspect.strays or suspect.wrong:
            return suspect
        return None

    def _fetched(self, block: BlockId) -> bytes | None:
        """Return a block that a source has, None without."""
        for source in self.sources:
            try:
                (data,) = source.get_many_sync([block])
                if data is not None:
                    verify_block(block, data)
                    return data
            except DataLoss:
                continue
        return None

    def _put(self, block: BlockId, data: bytes, bad: list[int], suspect: Suspect) -> bool:
        """Put a block where it is missing or damaged; says whether any shard took it."""
        put = False
        homes = self.files.homes(block)
        for number in bad:
            # A shard whose trees are damaged takes nothing: a write could make it worse.
            if number not in self.verifying.sound:
                continue
            if number in homes:
                if not self.dry_run:
                    self.store.routed.shards[number].put_verified_sync([(block, data)])
                self.did(Action("copy put again", block.hex(), number))
                put = True
            elif number in suspect.damaged:
                self._delete(number, block)
            if number in suspect.missing:
                suspect.missing.remove(number)
            suspect.damaged.pop(number, None)
        return put

    def _drop(self, suspect: Suspect) -> None:
        """Delete bytes that match no id and that nothing names: they are a copy of nothing."""
        for number in list(suspect.damaged):
            if number in self.verifying.sound:
                self._delete(number, suspect.block)
                del suspect.damaged[number]

    def _delete(self, number: int, block: BlockId) -> None:
        if not self.dry_run:
            self.store.routed.shards[number].delete_many_sync([block])
        self.did(Action("damaged bytes that nothing names were deleted", block.hex(), number))

    # ---- what is derived ----

    def _without_rebuilt(self, found: Verification) -> Findings:
        """Make index and graph anew where they were off; returns the findings that are left."""
        for finding in found.findings:
            if finding.kind is FindingKind.INDEX and finding.pool is not None:
                self.stale.add(PoolId(bytes.fromhex(finding.pool)))
        lost_pools = {one.pool for names in self.lost.values() for one in names}
        failed: dict[PoolId, str] = {}
        for pool in sorted(self.stale):
            if pool in lost_pools:
                failed[pool] = "blocks that it is made from are lost"
                continue
            try:
                self._rebuild(pool)
            except (DataLoss, Conflict) as error:
                failed[pool] = str(error)
        left = Findings()
        left.counts.update(found.counts)
        for finding in found.findings:
            failing = {pool.hex() for pool in failed}
            if finding.kind is FindingKind.INDEX and finding.pool not in failing:
                left.counts[FindingKind.INDEX] -= 1
            else:
                left.kept.append(finding)
        for pool, why in failed.items():
            text = f"index or graph cannot be made anew: {why}"
            names = shown_repositories(self.verifying.owners.of_pool(pool))
            left.add(
                Finding(FindingKind.INDEX, text, REPAIR_FROM, pool=pool.hex(), repositories=names)
            )
        left.counts = +left.counts
        return left

    def _rebuild(self, pool: PoolId) -> None:
        if self.dry_run:
            self.did(Action("index or graph made anew", pool=pool.hex()))
            return
        pieces, graphs = rebuild_pool(self.store, pool, control=self.control)
        if pieces or graphs:
            what = f"{pieces} index pieces and {graphs} graph blocks made anew"
            self.did(Action(what, pool=pool.hex()))
