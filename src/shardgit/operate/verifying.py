"""shard verify: every page, row and block of a store, what names blocks, and on demand every object.

In order: the pages of all database files, the rows of the journal, then the blocks by rising
partition over all shards at once, so that a verification that was stopped goes on at a partition.
What seems to be missing is looked for again before it is a finding, since a store is served
meanwhile. Nothing is read through LMDB: see operate/scrubber.py.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints, metrics
from shardgit.blocks.block import BlockKind
from shardgit.errors import Conflict, DataLoss, ShardMissing
from shardgit.journal.interface import Compare
from shardgit.journal.operations import put_operation, read_operation
from shardgit.journal.records import RING_KEY, PoolRecord
from shardgit.limits import DEFAULT
from shardgit.oid import BlockId, PoolId
from shardgit.operate.findings import (
    REBALANCE,
    REPAIR,
    REPAIR_FROM,
    RESTORE,
    Finding,
    FindingKind,
    Findings,
    shown_repositories,
)
from shardgit.operate.naming import Named, Owners, named_by
from shardgit.operate.operation import running
from shardgit.operate.pool_check import PoolCheck
from shardgit.operate.scrub import BATCH_BYTES
from shardgit.operate.store_files import StoreFiles
from shardgit.progress import Progress
from shardgit.ring.ring import PARTITIONS, Ring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from shardgit.journal.interface import Journal, Row
    from shardgit.operate.operation import Control
    from shardgit.operate.scrub import SeenBlock, WalkedFile
    from shardgit.service.store import Store

KIND = "verify"
STRIDE_BYTES = 64 << 20  # of blocks between two looks at what is missing
CHECKPOINT_S = 5.0
CONFIRM_PART = 10  # a look at all rows may take a tenth of the time
DERIVED = frozenset({BlockKind.INDEX, BlockKind.GRAPH, BlockKind.BITMAP})


@dataclass(frozen=True, slots=True)
class VerifyState:
    """How far a verification is, as the journal keeps it. ``finished_ms`` is 0 while it is not done.

    ``last_full_ms`` is when the last one that left nothing out ended.
    """

    started_ms: int
    objects: bool
    shard: int | None
    partition: int = 0
    pool: str = ""
    segment: int = 0
    blocks: int = 0
    read_bytes: int = 0
    objects_checked: int = 0
    unnamed: int = 0
    findings: tuple[Finding, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    finished_ms: int = 0
    last_full_ms: int = 0


@dataclass(frozen=True, slots=True)
class Verification:
    """What was verified and found. ``blocks`` counts copies; ``unnamed`` are those that nothing names (gc's)."""

    findings: tuple[Finding, ...]
    counts: dict[str, int]
    rows: int
    blocks: int
    read_bytes: int
    unnamed: int
    objects: int
    resumed: bool
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not set(self.counts) - {FindingKind.STRAY.value}


@dataclass(slots=True)
class Suspect:
    """A block of which something is not as it must be: at which shards, and what is wrong there."""

    block: BlockId
    missing: list[int] = field(default_factory=list)  # homes without it
    damaged: dict[int, str] = field(default_factory=dict)
    strays: list[int] = field(default_factory=list)
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class _Want:
    kind: BlockKind
    length: int | None
    flags: int | None


def verify(
    store: Store,
    *,
    control: Control,
    shard: int | None = None,
    objects: bool = False,
    resume: bool = False,
) -> Verification:
    """Verify a store that is open, perhaps served. Errors: as verify_store, and Refused while another runs."""
    with running(store, KIND):
        return verify_store(
            store.scratch.parent,
            control=control,
            journal=store.journal,
            shard=shard,
            objects=objects,
            resume=resume,
            detect=store.detects_always,
        )


def verify_store(
    folder: Path,
    *,
    control: Control,
    journal: Journal | None = None,
    shard: int | None = None,
    objects: bool = False,
    resume: bool = False,
    detect: bool = False,
) -> Verification:
    """Verify the store in a folder; its ``journal``, when it opens, keeps how far the verification is.

    One shard alone, with ``shard``. With ``detect`` ``objects`` are looked at for collision attacks, too. Errors:
    Stopped, Conflict when another verification has taken over, ShardMissing.
    """
    with StoreFiles(folder) as files:
        if shard is not None and shard not in files.shards:
            raise ShardMissing("the store has no such shard", shard=shard)
        work = Verifying(
            files, control, journal=journal, shard=shard, objects=objects, resume=resume
        )
        work.detect = detect
        return work.run()


class Verifying:
    """One verification. ``mend`` is given what is wrong with blocks, and returns what is left of it."""

    def __init__(
        self,
        files: StoreFiles,
        control: Control,
        *,
        journal: Journal | None = None,
        shard: int | None = None,
        objects: bool = False,
        resume: bool = False,
        mend: Callable[[Suspect, list[Named]], Suspect | None] | None = None,
    ) -> None:
        self.files = files
        self.control = control
        self.journal = journal
        self.owners = Owners()
        self.findings = Findings()
        self.mend = mend
        self.rows = 0
        self.resumed = False
        self.detect = False  # SHA-1 collision attacks
        self.sound: set[int] = set()  # shards whose pages are as they must be
        self.blind = False  # at the last look not all that leads to blocks could be read
        self._begun = clock.monotonic()
        self._revision = 0
        self._wanted: dict[bytes, _Want] = {}
        self._pools: dict[PoolId, PoolRecord] = {}
        self._suspects: dict[bytes, Suspect] = {}
        self._checked_s = self._confirm_s = 0.0
        self.state = VerifyState(clock.now_ms(), objects, shard)
        if journal is not None:
            self._take_over(resume=resume)

    def _take_over(self, *, resume: bool) -> None:
        assert self.journal is not None
        with suppress(DataLoss), self.journal.snapshot() as snapshot:
            saved = read_operation(snapshot, KIND, VerifyState)
            self._revision = saved.revision
            before = saved.record
            if before is None:
                return
            self.state = replace(self.state, last_full_ms=before.last_full_ms)
            same = (before.objects, before.shard) == (self.state.objects, self.state.shard)
            if resume and same and not before.finished_ms:
                self.state = before
                self.resumed = True
                self.findings.kept = list(before.findings)
                self.findings.counts.update(before.counts)

    @property
    def numbers(self) -> list[int]:
        """The shards that are looked at."""
        return [self.state.shard] if self.state.shard is not None else sorted(self.files.shards)

    def run(self) -> Verification:
        """Do all of it."""
        if not self.resumed:
            self.check_files()
        self.read_rows(tell=not self.resumed)
        self.check_blocks()
        if self.state.shard is None:
            self.check_pools()
        self.state = replace(
            self.state,
            finished_ms=clock.now_ms(),
            last_full_ms=clock.now_ms() if self.state.shard is None else self.state.last_full_ms,
        )
        self.checkpoint(last=True)
        state = self.state
        metrics.SCRUB_FINISHED.set(state.last_full_ms / 1_000)
        return Verification(
            findings=tuple(self.findings.kept),
            counts=dict(self.findings.counts),
            rows=self.rows,
            blocks=state.blocks,
            read_bytes=state.read_bytes,
            unnamed=state.unnamed,
            objects=state.objects_checked,
            resumed=self.resumed,
            seconds=clock.monotonic() - self._begun,
        )

    def found(self, finding: Finding) -> None:
        """Take a finding."""
        metrics.SCRUB_FINDINGS.labels(finding.kind.value).inc()
        self.findings.add(finding)

    # ---- files and rows ----

    def check_files(self) -> None:
        """Walk the pages of the journal's and the shards' files."""
        todo: list[int | None] = [None, *self.numbers]
        for done, number in enumerate(todo):
            self.control.report(Progress("walking pages", done, len(todo), "blocks"))
            walked = self._walk(number)
            if walked is None:
                continue
            for fault in walked.faults:
                mend = RESTORE if number is None else REPAIR
                self.found(Finding(FindingKind.PAGE, fault.what, mend, number, page=fault.page))
            if not walked.opens and not walked.faults:
                mend = RESTORE if number is None else REPAIR
                self.found(Finding(FindingKind.FILE, "LMDB does not open it", mend, number))
            elif not walked.faults and number is not None:
                self.sound.add(number)
            self.control.pace(0)

    def _walk(self, number: int | None) -> WalkedFile | None:
        scrub = self.files.journal if number is None else self.files.shards[number]
        file = scrub.folder / "data.mdb"
        mend = RESTORE if number is None else REPAIR
        try:
            if not file.stat().st_size:
                raise FileNotFoundError(file)
            return scrub.walk()
        except (DataLoss, OSError) as error:
            what = f"database is not there or cannot be read: {error}"
            self.found(Finding(FindingKind.FILE, what, mend, number))
            return None

    def read_rows(self, *, tell: bool) -> None:
        """Check the journal's rows, and note which blocks they name."""
        for row in self._each_row(tell=tell):
            self.rows += 1
            self._take_ring(row)
        # The ring first: blocks that name others are looked for where they must be.
        for row in self._each_row(tell=False):
            try:
                self.owners.take(row)
                if row.key[:1] == b"P":
                    pool = PoolId(row.key[1:])
                    self._pools[pool] = PoolRecord.decode(pool, row.value)
                for named in named_by(row, self.files.read):
                    if named.block not in self._wanted:
                        self._wanted[named.block] = _Want(named.kind, named.length, named.flags)
            except DataLoss as error:
                if tell:
                    self.found(Finding(FindingKind.BROKEN, str(error), RESTORE, row=row.key.hex()))

    def read_ring(self) -> None:
        """Read the ring alone."""
        for row in self.files.rows(RING_KEY, RING_KEY + b"\0"):
            self._take_ring(row)

    def _take_ring(self, row: Row) -> None:
        if row.key == RING_KEY:
            with suppress(DataLoss):
                self.files.ring = Ring.decode(row.value)

    def _each_row(self, *, tell: bool) -> Iterator[Row]:
        try:
            for some in self.files.journal.rows():
                self.blind = self.blind or bool(some.bad)
                self.control.pace(sum(len(row.value) for row in some.whole))
                for key, what in some.bad if tell else ():
                    self.found(Finding(FindingKind.ROW, what, RESTORE, row=key.hex()))
                yield from some.whole
        except (DataLoss, OSError) as error:
            self.blind = True
            if tell and not self.findings.counts[FindingKind.FILE]:
                self.found(Finding(FindingKind.FILE, f"journal cannot be read: {error}", RESTORE))

    # ---- blocks ----

    def check_blocks(self) -> None:
        """Read and hash all blocks, and look whether each that is named has all its copies."""
        total = sum(
            (scrub.folder / "data.mdb").stat().st_size
            for number, scrub in self.files.shards.items()
            if number in self.numbers and (scrub.folder / "data.mdb").exists()
        )
        stride = max(1, min(PARTITIONS, STRIDE_BYTES * PARTITIONS // max(total, 1)))
        order = sorted(self._wanted)
        while self.state.partition < PARTITIONS:
            low = self.state.partition
            high = min(low + stride, PARTITIONS)
            start, end = low.to_bytes(2, "big"), high.to_bytes(3, "big")[-2:]
            begin = bisect_left(order, start)
            behind = bisect_left(order, end) if high < PARTITIONS else len(order)
            self._check_range(
                start, end if high < PARTITIONS else b"\xff" * 33, order[begin:behind]
            )
            self.state = replace(self.state, partition=high)
            self.control.report(Progress("reading blocks", self.state.read_bytes, total, "bytes"))
            self.checkpoint()

    def _check_range(self, start: bytes, end: bytes, wanted: list[bytes]) -> None:
        self.files.refresh()
        whole: dict[bytes, set[int]] = defaultdict(set)
        for number in self.numbers:
            for seen in self._read_shard(number, start, end):
                whole[seen.id].add(number)
                self._check_seen(number, seen)
        homes_known = self.files.ring is not None
        for raw in wanted:
            block = BlockId(raw)
            homes = [n for n in self.files.homes(block) if n in self.numbers]
            gone = [n for n in homes if n not in whole.get(raw, ())]
            if gone and (homes_known or len(gone) == len(homes)):
                self._suspect(block).missing += gone
        self.state = replace(
            self.state, unnamed=self.state.unnamed + sum(1 for b in whole if b not in self._wanted)
        )

    def _read_shard(self, number: int, start: bytes, end: bytes) -> Iterator[SeenBlock]:
        at: bytes | None = start
        while at is not None:
            try:
                some = self.files.shards[number].blocks(at, end, most=BATCH_BYTES)
            except (DataLoss, OSError):
                return  # the file is a finding already; its blocks are missing copies
            yield from some.whole
            for key, what in some.bad:
                self._suspect(BlockId(key)).damaged[number] = what
            self.state = replace(
                self.state,
                blocks=self.state.blocks + len(some.whole) + len(some.bad),
                read_bytes=self.state.read_bytes + some.read_bytes,
            )
            metrics.SCRUB_BYTES.inc(some.read_bytes)
            self.control.pace(some.read_bytes)
            at = some.next

    def _check_seen(self, number: int, seen: SeenBlock) -> None:
        want = self._wanted.get(seen.id)
        if want is not None and (
            want.kind is not seen.kind
            or want.length not in (None, seen.length)
            or want.flags not in (None, seen.flags)
        ):
            what = f"{seen.kind.name.lower()} of {seen.length} bytes, flags {seen.flags}"
            self._suspect(seen.id).wrong = (
                f"it is a {what}; what names it says {want.kind.name.lower()}"
                f" of {want.length} bytes"
            )
        if self.files.ring is not None and number not in self.files.may_keep(seen.id):
            self._suspect(seen.id).strays.append(number)

    def _suspect(self, block: BlockId) -> Suspect:
        return self._suspects.setdefault(block, Suspect(block))

    # ---- what seemed to be wrong is looked at again ----

    def checkpoint(self, *, last: bool = False) -> None:
        """Now and then, look again at what seemed wrong, and keep how far we are."""
        now = clock.monotonic()
        if not last and now - self._checked_s < max(CHECKPOINT_S, CONFIRM_PART * self._confirm_s):
            return
        if self._suspects:
            self._confirm()
        if self.journal is not None:
            self.state = replace(
                self.state,
                findings=tuple(self.findings.kept),
                counts=dict(self.findings.counts),
            )
            self._keep()
        self._checked_s = clock.monotonic()

    def _keep(self) -> None:
        assert self.journal is not None
        put = put_operation(KIND, self.state)
        try:
            # commit point: before it a verification that is resumed goes over the last part again.
            faultpoints.reach("verify.before_checkpoint")
            self._revision = self.journal.commit_sync([Compare(put.key, self._revision)], [put])
            faultpoints.reach("verify.after_checkpoint")
        except Conflict as error:
            raise Conflict("another verification has taken over") from error

    def _confirm(self) -> None:
        begun = clock.monotonic()
        suspects, self._suspects = self._suspects, {}
        self.files.refresh()
        named: dict[bytes, list[Named]] = defaultdict(list)
        self.blind = False
        for row in self._each_row(tell=False):
            try:
                self.owners.take(row)
                self._take_ring(row)
                for one in named_by(row, self._read_on):
                    if one.block in suspects:
                        named[one.block].append(one)
            except DataLoss:
                self.blind = True
        for raw in sorted(suspects):
            suspect = suspects[raw]
            names = named.get(raw, [])
            self._look_again(suspect, named=bool(names))
            left: Suspect | None = suspect
            if self.mend is not None:
                left = self.mend(suspect, names)
            if left is not None:
                self._tell(left, names)
        self._confirm_s = clock.monotonic() - begun

    def _read_on(self, block: BlockId) -> bytes | None:
        data = self.files.read(block)
        self.blind = self.blind or data is None
        return data

    def _look_again(self, suspect: Suspect, *, named: bool) -> None:
        """Drop what has changed meanwhile: a block that was put, deleted or moved while we read on."""
        homes = self.files.homes(suspect.block)
        for number in list(suspect.missing):
            if not named or number not in homes or self._has(number, suspect.block):
                suspect.missing.remove(number)
        for number in list(suspect.damaged):
            if self._has(number, suspect.block) or not self._stands(number, suspect.block):
                del suspect.damaged[number]
            elif number in suspect.missing:
                suspect.missing.remove(number)
        may_keep = self.files.may_keep(suspect.block)
        suspect.strays = [
            number
            for number in suspect.strays
            if number not in may_keep and self._has(number, suspect.block)
        ]
        if not named:
            suspect.wrong = ""

    def _has(self, number: int, block: BlockId) -> bool:
        try:
            return self.files.shards[number].get_many([block])[0] is not None
        except (DataLoss, OSError):
            return False

    def _stands(self, number: int, block: BlockId) -> bool:
        """Say whether a shard has a row of that key, whole or not."""
        if len(block) < 2:
            return True
        try:
            end = block + b"\0"
            some = self.files.shards[number].blocks(block, end, most=1)
        except (DataLoss, OSError):
            return True
        return bool(some.bad or some.whole)

    def _tell(self, suspect: Suspect, names: list[Named]) -> None:
        """Make findings of what is wrong with one block."""
        block = suspect.block
        whole = len(block) == 32 and self.files.read(block) is not None
        pool = next((one.pool for one in names if one.pool is not None), None)
        what = names[0].what if names else "named by nothing"
        owners = shown_repositories(name for one in names for name in self.owners.of(one))
        derived = bool(names) and all(one.kind in DERIVED for one in names)
        mend = REPAIR if whole or derived or not names else REPAIR_FROM
        facts = Finding(
            FindingKind.BLOCK,
            what,
            mend,
            block=block.hex(),
            pool=pool.hex() if pool is not None else None,
            repositories=owners,
        )
        for number, wrong in sorted(suspect.damaged.items()):
            text = f"{what}: {wrong}" + ("" if whole or not names else "; no other copy")
            self.found(replace(facts, what=text, shard=number))
        kind = FindingKind.COPY if whole else FindingKind.LOST
        for number in sorted(set(suspect.missing)):
            text = f"{what}: not there" + ("" if whole else ", nor anywhere else")
            self.found(replace(facts, kind=kind, what=text, shard=number))
        if suspect.wrong:
            self.found(replace(facts, kind=FindingKind.WRONG, what=f"{what}: {suspect.wrong}"))
        for number in sorted(set(suspect.strays)):
            text = f"{what}: the ring keeps it at {list(self.files.homes(block))}"
            self.found(
                replace(facts, kind=FindingKind.STRAY, what=text, shard=number, mend=REBALANCE)
            )

    # ---- pools ----

    def check_pools(self) -> None:
        """Check each pool's index and graph against its segments, and on demand every object."""
        for pool, record in sorted(self._pools.items()):
            if pool.hex() < self.state.pool:
                continue
            self._check_pool(record)
            self.state = replace(self.state, pool=pool.hex() + "~", segment=0)
            self.checkpoint()

    def _check_pool(self, record: PoolRecord) -> None:
        name = record.id.hex()
        skip = self.state.segment if self.state.pool == name else 0
        if not skip:
            self.state = replace(self.state, pool=name, segment=0)
        check = PoolCheck(self.files, record, DEFAULT, detect=self.detect)
        try:
            steps = check.run(objects=self.state.objects, skip=skip)
            for segment, count, read, found in steps:
                for finding in found:
                    self.found(
                        replace(
                            finding,
                            pool=name,
                            repositories=shown_repositories(self.owners.of_pool(record.id)),
                        )
                    )
                done = self.state.objects_checked + count
                self.state = replace(self.state, segment=segment, objects_checked=done)
                self.control.report(Progress("making objects", done, None, "objects"))
                self.control.pace(read)
                self.checkpoint()
        except DataLoss as error:
            # Of blocks that are gone there is a finding already.
            if not any(one.pool == name for one in self.findings.kept):
                self.found(Finding(FindingKind.BROKEN, str(error), REPAIR, pool=name))
