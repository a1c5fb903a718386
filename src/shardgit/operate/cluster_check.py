"""cluster verify and cluster repair: is all that a cluster's journal names whole where it is durable?

In order: the rows in etcd, and this node's replica of them; the values in bundles; then every block that the journal
names, in the object store, by rising id. What nodes have on their disks is checked whenever it is read and does not
count here, but it mends: a block that the object store has lost is put there again from a node's disk, from another
source, or, an index or graph, made anew from its segments. What seems to be missing is looked for in the journal again
before it is a finding, since the cluster is served meanwhile.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import clock, telemetry
from shardgit.blocks.block import partition_of, verify_block
from shardgit.errors import BlockCorrupt, DataLoss, JournalCorrupt
from shardgit.journal.etcd import EtcdJournal
from shardgit.journal.interface import END
from shardgit.operate.findings import RESTORE, Finding, FindingKind, Findings, shown_repositories
from shardgit.operate.journal_check import check_rows
from shardgit.operate.named import named_blocks
from shardgit.operate.naming import Owners, named_by
from shardgit.operate.nodes import blocks_of, members
from shardgit.operate.operation import running
from shardgit.operate.rebuild import rebuild_pool
from shardgit.operate.verifying import DERIVED
from shardgit.progress import Progress
from shardgit.ring.ring import PARTITIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from shardgit.oid import BlockId, PoolId
    from shardgit.operate.naming import Named
    from shardgit.operate.operation import Control
    from shardgit.operate.store_files import BlockSource
    from shardgit.service.store import Store

KIND = "verify"
MISSING = "not in the object store"
REPAIR, REPAIR_FROM = "shardgit cluster repair", "shardgit cluster repair --from BACKUP"
BATCH_BLOCKS = 32  # read side by side, of 8 MiB at most
STEP_PARTITIONS = 256  # of one list
PASSES_MAX = 8  # a root leads to pages, and these to all else


@dataclass(frozen=True, slots=True)
class ClusterChecked:
    """What was looked at, what was mended, and what is wrong now. ``findings`` are the first, ``counts`` tell of all.

    ``read_bytes`` is 0 where only lists were looked at. ``replica_renewed``: this node's replica was not what etcd has,
    and comes anew.
    """

    findings: tuple[Finding, ...]
    counts: dict[str, int]
    rows: int
    blocks: int
    read_bytes: int
    mended: tuple[str, ...]
    replica_renewed: bool
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not self.counts


def check_cluster(
    store: Store,
    *,
    control: Control,
    mend: bool = False,
    listed: bool = False,
    sources: Sequence[BlockSource] = (),
) -> ClusterChecked:
    """Check a cluster from one of its nodes, while it is served; with ``mend`` put right what can be.

    ``listed`` reads no block: it holds the object store's lists against what the journal names. Safe to stop and to do
    again. Errors: Refused on one machine, or while another process of this cluster does the same; Unavailable, Stopped.
    """
    blocks_of(store)
    with running(store, KIND):
        return _Check(store, control, mend=mend, listed=listed, sources=sources).run()


class _Check:
    def __init__(
        self,
        store: Store,
        control: Control,
        *,
        mend: bool,
        listed: bool,
        sources: Sequence[BlockSource],
    ) -> None:
        self.store = store
        self.control = control
        self.blocks = blocks_of(store)
        self.mend, self.listed, self.sources = mend, listed, sources
        self.findings = Findings()
        self.rows = self.looked = self.read_bytes = 0
        self.mended: list[str] = []
        self.renewed = False
        self.owners = Owners()
        self._begun = clock.monotonic()
        self._seen: set[BlockId] = set()
        self._node_names = {one.number: one.record.name for one in members(store).members}

    def run(self) -> ClusterChecked:
        if self._rows():
            try:
                self._tell(self._rebuilt(self._still_named(self._blocks())))
            except JournalCorrupt as error:
                self.found(Finding(FindingKind.BROKEN, str(error), RESTORE))
        return ClusterChecked(
            findings=tuple(self.findings.kept),
            counts=dict(self.findings.counts),
            rows=self.rows,
            blocks=self.looked,
            read_bytes=self.read_bytes,
            mended=tuple(self.mended),
            replica_renewed=self.renewed,
            seconds=clock.monotonic() - self._begun,
        )

    def found(self, finding: Finding) -> None:
        """Take a finding."""
        telemetry.SCRUB_FINDINGS.labels(finding.kind.value).inc()
        self.findings.add(finding)

    # ---- rows ----

    def _rows(self) -> bool:
        """Check the journal's rows; says whether what they name can be told."""
        journal = self.store.journal
        assert isinstance(journal, EtcdJournal)
        self.control.report(Progress("reading rows", 0, 1, "objects"))
        checked = check_rows(journal, self.control)
        self.rows = checked.rows
        self.control.report(Progress("reading rows", self.rows, self.rows, "objects"))
        for fault in checked.faults:
            self.renewed = self.renewed or fault.is_replicas
            if not fault.is_replicas:
                finding = Finding(FindingKind.ROW, fault.what, RESTORE, row=fault.key.hex())
                self.found(finding)
        return not self.findings.total

    # ---- blocks ----

    def _blocks(self) -> dict[BlockId, str]:
        """Look at all blocks, and mend what can be; returns what is wrong with which others."""
        left: dict[BlockId, str] = {}
        for _ in range(PASSES_MAX):
            named = named_blocks(self.store, control=self.control)
            wrong = self._look(sorted(named.blocks - self._seen))
            left.update(wrong)
            if not self.mend or not wrong:
                break
            # What a root leads to shows once it is back.
            left = {block: why for block, why in left.items() if not self._mended(block)}
        return left

    def _look(self, ids: Sequence[BlockId]) -> dict[BlockId, str]:
        """Return what is wrong with which blocks."""
        wrong: dict[BlockId, str] = {}
        for done, (block, size) in enumerate(self._listed(ids) if self.listed else self._read(ids)):
            self._seen.add(block)
            self.looked += 1
            if isinstance(size, int):
                self.read_bytes += 0 if self.listed else size
            else:
                wrong[block] = (
                    MISSING if size is None else f"damaged in the object store ({size.message})"
                )
            self.control.report(Progress("checking blocks", done + 1, len(ids), "blocks"))
        return wrong

    def _read(self, ids: Sequence[BlockId]) -> Iterator[tuple[BlockId, int | BlockCorrupt | None]]:
        for at in range(0, len(ids), BATCH_BLOCKS):
            some = ids[at : at + BATCH_BLOCKS]
            sizes = self.blocks.objects.check_many(some)
            self.control.pace(sum(size for size in sizes if isinstance(size, int)))
            yield from zip(some, sizes, strict=True)

    def _listed(self, ids: Sequence[BlockId]) -> Iterator[tuple[BlockId, int | None]]:
        at = 0
        for low in range(0, PARTITIONS, STEP_PARTITIONS):
            end = at
            while end < len(ids) and partition_of(ids[end]) < low + STEP_PARTITIONS:
                end += 1
            if end > at:
                there = dict(self.blocks.objects.scan_sync(low, low + STEP_PARTITIONS))
                self.control.pace(0)
                yield from ((block, there.get(block)) for block in ids[at:end])
            at = end

    def _still_named(self, wrong: dict[BlockId, str]) -> dict[BlockId, str]:
        """Leave out what nobody names any more: gc has deleted it meanwhile."""
        if not wrong:
            return wrong
        self.store.journal.fresh_sync()
        named = named_blocks(self.store, control=self.control)
        return {block: why for block, why in wrong.items() if block in named.blocks}

    # ---- mending ----

    def _mended(self, block: BlockId) -> bool:
        """Put a block into the object store again; says whether it is whole there now."""
        for whence, data in self._copies(block):
            self.blocks.objects.put_many_sync([(block, data)])
            if isinstance(self.blocks.objects.check_many([block])[0], int):
                self.mended.append(f"block {block.hex()}: put again from {whence}")
                return True
        return False

    def _copies(self, block: BlockId) -> Iterator[tuple[str, bytes]]:
        for node, data in self.blocks.copies(block):
            yield f"the disk of {self._node_names.get(node, f'node {node}')}", data
        for source in self.sources:
            (found,) = source.get_many_sync([block])
            if found is not None:
                verify_block(block, found)
                yield "--from", found

    def _rebuilt(self, left: dict[BlockId, str]) -> dict[BlockId, str]:
        """Make index and graph anew of pools that have lost nothing else; returns what is left."""
        if not self.mend or not left:
            return left
        lost: dict[PoolId, set[bool]] = {}
        for names in self._named(left).values():
            for one in names:
                if one.pool is not None:
                    lost.setdefault(one.pool, set()).add(one.kind in DERIVED)
        for pool, derived in lost.items():
            if derived == {True}:
                try:
                    pieces, graphs = rebuild_pool(self.store, pool, control=self.control)
                except DataLoss:
                    continue  # what is left is told
                if pieces or graphs:
                    self.mended.append(
                        f"pool {pool.hex()}: {pieces} index pieces and {graphs} graph blocks made anew"
                    )
        return self._still_named(left)

    # ---- telling ----

    def _named(self, blocks: Iterable[BlockId]) -> dict[BlockId, list[Named]]:
        """Return what some blocks are, by all rows that lead to them."""
        wanted = set(blocks)
        found: dict[BlockId, list[Named]] = {}

        def read(block: BlockId) -> bytes | None:
            try:
                (data,) = self.store.blocks.get_many_sync([block])
            except BlockCorrupt:
                return None
            return data

        with self.store.journal.snapshot() as snapshot:
            for row in snapshot.range(b"\0", END):
                with suppress(DataLoss):  # what does not parse is told when it is read
                    self.owners.take(row)
                    for named in named_by(row, read):
                        if named.block in wanted:
                            found.setdefault(named.block, []).append(named)
        return found

    def _tell(self, left: dict[BlockId, str]) -> None:
        """Make findings of what is wrong with blocks."""
        for block, names in self._named(left).items():
            here = next(self._copies(block), None)
            kind = FindingKind.LOST if here is None else FindingKind.COPY
            if left[block] != MISSING:
                kind = FindingKind.BLOCK
            where = "nor on any node's disk" if here is None else f"but on {here[0]}"
            pool = next((one.pool for one in names if one.pool is not None), None)
            finding = Finding(
                kind,
                f"{names[0].what}: {left[block]}, {where}",
                REPAIR_FROM if here is None else REPAIR,
                block=block.hex(),
                pool=pool.hex() if pool is not None else None,
                repositories=shown_repositories(
                    name for one in names for name in self.owners.of(one)
                ),
            )
            self.found(finding)
