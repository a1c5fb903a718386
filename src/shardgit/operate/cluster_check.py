"""cluster verify and cluster repair: is all that a cluster's journal names whole where it is durable?

In order: the rows in etcd, and this node's replica of them; the values in bundles; then every block that the journal
names, in the object store, by rising id. What nodes have on their disks is checked whenever it is read and does not
count here, but it mends: a block that the object store has lost is put there again from a node's disk, from another
source, or, an index or graph, made anew from its segments.

The cluster is served meanwhile. What is not there is looked for in rows that are read behind that look: only what these
still name is mended, and is a finding. Ids are never born twice, so that cannot be what gc has just deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from shardgit import clock, metrics
from shardgit.blocks.block import HEADER_SIZE, BlockKind, partition_of, verify_block
from shardgit.errors import (
    BlockCorrupt,
    DataLoss,
    JournalCorrupt,
    ShardgitError,
    Stopped,
    Unavailable,
)
from shardgit.journal.etcd import EtcdJournal
from shardgit.journal.interface import end_of
from shardgit.operate.findings import RESTORE, Finding, FindingKind, Findings, shown_repositories
from shardgit.operate.journal_check import check_bundles, check_rows
from shardgit.operate.naming import Owners, named_by
from shardgit.operate.nodes import blocks_of, members
from shardgit.operate.operation import running
from shardgit.operate.rebuild import rebuild_pool
from shardgit.operate.verifying import DERIVED
from shardgit.pool.condemned import CONDEMNED
from shardgit.progress import Progress
from shardgit.ring.ring import PARTITIONS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from shardgit.journal.interface import Row
    from shardgit.oid import BlockId, PoolId
    from shardgit.operate.naming import Named
    from shardgit.operate.operation import Control
    from shardgit.operate.store_files import BlockSource
    from shardgit.service.store import Store

KIND = "verify"
REPAIR, REPAIR_FROM = "shardgit cluster repair", "shardgit cluster repair --from BACKUP"
MISSING = "not in the object store"
REMADE = DERIVED - {BlockKind.BITMAP}
# Blocks go from uploads to recents to manifests, and from the refs to their log: read in that order none slips by.
TABLES = (b"I", b"D", b"U", b"S", b"H", b"L", b"P", CONDEMNED, b"Fo")
BATCH_BLOCKS = 32  # read side by side, of 8 MiB at most
STEP_PARTITIONS = 256  # of one list
PAGE_ROWS = 256  # of one snapshot
PASSES_MAX = 8  # a root leads to pages, and these to all else
TRIES, AWAY_S = 4, 5.0  # while the object store does not answer


@dataclass(frozen=True, slots=True)
class ClusterChecked:
    """What was looked at, what was mended, and what is wrong now. ``findings`` are the first, ``counts`` tell of all.

    ``read_bytes`` is 0 where only lists were looked at. ``replica_renewed``: this node's replica was not what etcd has,
    and has come anew. ``stopped_by`` says why not all was looked at, empty when all was.
    """

    findings: tuple[Finding, ...]
    counts: dict[str, int]
    rows: int
    blocks: int
    read_bytes: int
    mended: tuple[str, ...]
    replica_renewed: bool
    stopped_by: str
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether all was looked at, and nothing is damaged or missing."""
        return not self.counts and not self.stopped_by


def check_cluster(
    store: Store,
    *,
    control: Control,
    mend: bool = False,
    listed: bool = False,
    sources: Sequence[BlockSource] = (),
) -> ClusterChecked:
    """Check a cluster from one of its nodes, while it is served; with ``mend`` put right what can be.

    ``listed`` reads no block and no bundle: it holds the object store's lists against what the journal names. Safe to
    stop and to do again. Errors: Refused on one machine, or while another process of this cluster does the same;
    Unavailable when etcd does not answer, Stopped.
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
        assert isinstance(store.journal, EtcdJournal)
        self.store = store
        self.journal = store.journal
        self.control = control
        self.blocks = blocks_of(store)
        self.mend, self.listed, self.sources = mend, listed, sources
        self.findings = Findings()
        self.rows = self.looked = self.read_bytes = 0
        self.mended: list[str] = []
        self.renewed = False
        self.stopped_by = ""
        self.owners = Owners()
        self._begun = clock.monotonic()
        self._told: set[bytes] = set()  # rows of which a finding says that they are damaged
        self._broken: dict[
            bytes, str
        ] = {}  # rows that lead to what does not parse, or cannot be read
        self._unread: dict[BlockId, str] = {}  # blocks that lead to others, and could not be read
        self._left: dict[BlockId, str] = {}  # what is wrong with which blocks
        self._names: dict[
            BlockId, list[Named]
        ] = {}  # what these are, as far as it was looked at behind that
        self._node_names = {one.number: one.record.name for one in members(store).members}

    def run(self) -> ClusterChecked:
        for step in (self._rows, self._blocks):
            try:
                step()
            except ShardgitError as error:  # what was found so far is told all the same
                self.stopped_by = self.stopped_by or str(error)
        self._tell()
        return ClusterChecked(
            findings=tuple(self.findings.kept),
            counts=dict(self.findings.counts),
            rows=self.rows,
            blocks=self.looked,
            read_bytes=self.read_bytes,
            mended=tuple(self.mended),
            replica_renewed=self.renewed,
            stopped_by=self.stopped_by,
            seconds=clock.monotonic() - self._begun,
        )

    def found(self, finding: Finding) -> None:
        """Take a finding."""
        metrics.SCRUB_FINDINGS.labels(finding.kind.value).inc()
        self.findings.add(finding)

    # ---- rows ----

    def _rows(self) -> None:
        """Check the journal's rows, and where their values lie."""
        self.control.report(Progress("reading rows", 0, 1, "objects"))
        checked = check_rows(self.journal)
        self.rows, self.renewed = checked.rows, checked.renewed
        self.control.report(Progress("reading rows", self.rows, self.rows, "objects"))
        faults = list(checked.faults)
        try:
            if not self.listed:
                self.read_bytes += check_bundles(
                    self.journal, checked.spilled, self.control, faults
                )
        finally:
            for fault in faults:
                self._told.add(fault.key)
                self.found(Finding(FindingKind.ROW, fault.what, RESTORE, row=fault.key.hex()))

    def _each_row(self) -> Iterator[Row]:
        """Return the rows that lead to blocks, a page of one snapshot at a time, by TABLES."""
        for table in TABLES:
            low, high = table, end_of(table)
            while True:
                page: list[Row] = []
                with self.journal.replica_snapshot() as snapshot:
                    keys = [row.key for row in islice(snapshot.stored(low, high), PAGE_ROWS)]
                    for key in keys:
                        try:
                            row = snapshot.get(key)
                        except JournalCorrupt as error:
                            if key not in self._told:
                                self._broken[key] = str(error)
                            continue
                        if row is not None:
                            page.append(row)
                yield from page
                if len(keys) < PAGE_ROWS:
                    break
                low = keys[-1] + b"\0"

    def _each_named(self) -> Iterator[Named]:
        """Return what the rows lead to, as far as it can be read, and note which rows lead to what does not parse."""
        self.journal.fresh_sync()
        self.owners = Owners()
        self._broken, self._unread = {}, {}
        away: list[Unavailable] = []

        def read(block: BlockId) -> bytes | None:
            try:
                (data,) = self.store.blocks.get_many_sync([block])
            except BlockCorrupt as error:
                self._unread[block] = f"damaged in the object store ({error})"
                return None
            except Unavailable as error:
                away.append(error)
                raise
            if data is None:
                self._unread[block] = MISSING
            return data

        for row in self._each_row():
            self.control.pace(0)
            try:
                self.owners.take(row)
                yield from named_by(row, read)
            except DataLoss as error:
                if away:
                    raise away[0] from error
                self._broken[row.key] = str(error)

    # ---- blocks ----

    def _blocks(self) -> None:
        """Look at all blocks, and mend what can be; what is left stays in ``_left``."""
        seen = self._look_at_new(set())
        for _ in range(PASSES_MAX if self.mend else 1):
            if not self._left:
                return
            self._names = self._names_of(self._left)
            # What is not named any more has gone, or stands below a root that cannot be read: to be looked at again.
            seen -= set(self._left) - set(self._names)
            self._left = {block: self._left[block] for block in self._names}
            if not self._left or not self.mend:
                return
            before = len(self.mended)
            self._put_again()
            self._rebuild({block: self._names[block] for block in self._left})
            if len(self.mended) == before:
                return
            seen = self._look_at_new(seen)  # what a root leads to shows once it is back
        self._names = self._names_of(self._left)
        self._left = {block: self._left[block] for block in self._names}

    def _look_at_new(self, seen: set[BlockId]) -> set[BlockId]:
        """Look at the blocks that are named and were not looked at; returns all that have been now."""
        named = {one.block: one.length or 0 for one in self._each_named()}
        unread = dict(self._unread)
        self._look({block: size for block, size in named.items() if block not in seen})
        for block, why in unread.items():
            if block in named and block not in seen:
                self._left.setdefault(block, why)
        return seen | set(named)

    def _look(self, wanted: dict[BlockId, int]) -> None:
        """Note what is wrong with which blocks; ``wanted`` has their lengths, 0 where they are not known."""
        ids = sorted(wanted)
        found = self._listed(ids) if self.listed else self._read(ids)
        for done, (block, size) in enumerate(found):
            self.looked += 1
            if isinstance(size, int):
                self.read_bytes += 0 if self.listed else size
                if size < HEADER_SIZE or wanted[block] not in (0, size):
                    self._left[block] = f"{size} bytes in the object store"
            elif size is None:
                self._left[block] = MISSING
            else:
                self._left[block] = f"damaged in the object store ({size})"
            self.control.report(Progress("checking blocks", done + 1, len(ids), "blocks"))

    def _read(self, ids: Sequence[BlockId]) -> Iterator[tuple[BlockId, int | BlockCorrupt | None]]:
        for at in range(0, len(ids), BATCH_BLOCKS):
            some = ids[at : at + BATCH_BLOCKS]
            sizes = self._patiently(some)
            self.control.pace(sum(size for size in sizes if isinstance(size, int)))
            yield from zip(some, sizes, strict=True)

    def _patiently(self, ids: Sequence[BlockId]) -> list[int | BlockCorrupt | None]:
        for _ in range(TRIES - 1):
            try:
                return self.blocks.objects.check_many(ids)
            except Unavailable:
                self.control.sleep(AWAY_S)
        return self.blocks.objects.check_many(ids)

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

    def _names_of(self, blocks: Collection[BlockId]) -> dict[BlockId, list[Named]]:
        """Return what some blocks are, those that nobody names any more left out."""
        found: dict[BlockId, list[Named]] = {}
        for named in self._each_named():
            if named.block in blocks:
                found.setdefault(named.block, []).append(named)
        return found

    # ---- mending ----

    def _put_again(self) -> None:
        """Put blocks into the object store again, from wherever they are to be had."""
        wrong = sorted(self._left)
        nodes, _ = self.blocks.whereabouts(wrong)
        for done, block in enumerate(wrong):
            self.control.report(Progress("mending", done, len(wrong), "blocks"))
            for whence, data in self._copies(block, nodes.get(block, ())):
                self.blocks.objects.put_many_sync([(block, data)])
                self.control.pace(len(data))
                if isinstance(self.blocks.objects.check_many([block])[0], int):
                    self.mended.append(f"block {block.hex()}: put again from {whence}")
                    del self._left[block]
                    break

    def _copies(self, block: BlockId, nodes: Sequence[int]) -> Iterator[tuple[str, bytes]]:
        for node in nodes:
            data = self.blocks.copy_from(node, block)
            if data is not None:
                yield f"the disk of {self._name(node)}", data
        for source in self.sources:
            try:
                (data,) = source.get_many_sync([block])
                if data is not None:
                    verify_block(block, data)
            except (ShardgitError, OSError):
                continue  # it is damaged there, or cannot be read
            if data is not None:
                yield "--from", data

    def _name(self, node: int) -> str:
        return self._node_names.get(node, f"node {node}")

    def _rebuild(self, names: dict[BlockId, list[Named]]) -> None:
        """Make index and graph anew of pools that have lost nothing else."""
        lost: dict[PoolId, set[bool]] = {}
        for some in names.values():
            for one in some:
                if one.pool is not None:
                    lost.setdefault(one.pool, set()).add(one.kind in REMADE)
        for pool, derived in lost.items():
            if derived != {True}:
                continue
            try:
                pieces, graphs = rebuild_pool(self.store, pool, control=self.control)
            except (Stopped, Unavailable):
                raise
            except ShardgitError:
                continue  # what is left is told
            if pieces or graphs:
                what = f"{pieces} index pieces and {graphs} graph blocks made anew"
                self.mended.append(f"pool {pool.hex()}: {what}")

    # ---- telling ----

    def _tell(self) -> None:
        """Make findings of what is wrong with blocks, and of rows that lead to what cannot be read."""
        left, names = self._left, self._names
        nodes, silent = self.blocks.whereabouts(sorted(left)) if left else ({}, set())
        for block, why in sorted(left.items()):
            named = names.get(block, [])
            have = nodes.get(block, [])
            kind = FindingKind.LOST if not have else FindingKind.COPY
            if why != MISSING:
                kind = FindingKind.BLOCK
            if have:
                where = f"but on the disk of {self._name(have[0])}"
            elif silent:
                unheard = ", ".join(sorted(map(self._name, silent)))
                where = f"nor on the disk of any node that answered; {unheard} did not"
            else:
                where = "nor on any node's disk"
            derived = bool(named) and all(one.kind in REMADE for one in named)
            pool = next((one.pool for one in named if one.pool is not None), None)
            finding = Finding(
                kind,
                f"{named[0].what if named else 'not looked at again'}: {why}, {where}",
                REPAIR if (have or derived) and not self.mend else REPAIR_FROM,
                block=block.hex(),
                pool=pool.hex() if pool is not None else None,
                repositories=shown_repositories(
                    name for one in named for name in self.owners.of(one)
                ),
            )
            self.found(finding)
        for key, what in sorted(self._broken.items()):
            self.found(Finding(FindingKind.BROKEN, what, RESTORE, row=key.hex()))
