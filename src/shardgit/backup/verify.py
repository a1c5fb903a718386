"""Verifying backups: that all they name is there, and with ``deep`` that every byte of it is right."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.backup.lease import writing
from shardgit.backup.pack import check_pack
from shardgit.backup.prune import rewrite
from shardgit.backup.source import BackupBlocks, CutSnapshot
from shardgit.errors import BackupMissing, DataLoss
from shardgit.operate.naming import Following
from shardgit.progress import Progress
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.backup.cut import Cut
    from shardgit.backup.pack import Pack
    from shardgit.backup.target import Target
    from shardgit.operate.operation import Control

READERS = 3
PROBLEMS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, with which backup ("" where it is a pack's own), and the object or blob."""

    what: str
    backup: str
    subject: str


@dataclass(frozen=True, slots=True)
class BackupsVerified:
    """What was verified. ``problems`` are cut at 1,000; ``problem_count`` is whole."""

    target: str
    backups: int
    packs: int
    blobs: int
    bytes: int  # that were read
    deep: bool
    problem_count: int
    problems: tuple[Problem, ...]
    dropped: int  # blobs that were taken out, so that the next backup sends them again
    seconds: float


def verify_backups(
    target: Target,
    *,
    backup: str | None = None,
    deep: bool = False,
    drop_damaged: bool = False,
    control: Control,
) -> BackupsVerified:
    """Verify one backup, or all.

    Every object is there in its right size and every backup's manifest is whole. With ``deep`` each blob that a backup
    needs is hashed, and what its rows lead to must be what it names. With ``drop_damaged`` (deep) damaged blobs are
    taken out: the next backup sends those that the store still has.
    """
    job = _Verify(target, control, deep=deep)
    ids = [backup] if backup is not None else target.cut_ids()
    if not ids:
        raise BackupMissing("target holds no backup", target=target.bucket.where)
    begun = time.monotonic()
    target.load()
    cuts = list(job.cuts(ids))
    needed = set().union(*(cut.blobs for cut in cuts))
    bad: list[Pack] = []
    if deep:
        bad = job.packs(needed)
        for cut in cuts:
            job.rows(cut)
    before = len([blob for blob in needed if blob in target])
    if bad and drop_damaged:
        with writing(target.bucket) as renew:
            rewrite(target, bad, lambda _: True, control=control, renew=renew, drop_damaged=True)
    return BackupsVerified(
        target.bucket.where,
        len(ids),
        len(target.packs),
        len(needed),
        job.bytes,
        deep,
        job.count,
        tuple(job.problems),
        before - len([blob for blob in needed if blob in target]),
        time.monotonic() - begun,
    )


class _Verify:
    def __init__(self, target: Target, control: Control, *, deep: bool) -> None:
        self.target = target
        self.control = control
        self.deep = deep
        self.problems: list[Problem] = []
        self.count = 0
        self.bytes = 0

    def _found(self, what: str, backup: str, subject: str) -> None:
        self.count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(what, backup, subject))

    def cuts(self, ids: list[str]) -> Iterator[Cut]:
        """Return the backups whose manifests are whole, having looked for all that they name."""
        for number, name in enumerate(ids):
            self.control.report(Progress("reading backups", number, len(ids), "objects"))
            try:
                cut = self.target.cut(name)
            except DataLoss as error:
                self._found(error.message, name, f"cuts/{name}")
                continue
            for blob in sorted(cut.blobs):
                if blob not in self.target:
                    self._found("blob is missing", name, blob.hex())
            yield cut

    def packs(self, needed: set[bytes]) -> list[Pack]:
        """Hash every pack that holds what is needed; returns those with damage."""
        packs = [
            pack
            for pack in self.target.packs.values()
            if any(entry.id in needed for entry in pack.entries)
        ]
        total = sum(pack.size for pack in packs)
        bad: list[Pack] = []
        workers = Workers(READERS)
        try:
            for at in range(0, len(packs), READERS):
                some = packs[at : at + READERS]
                for pack, wrong in zip(some, workers.map(self._check, some), strict=True):
                    self.bytes += pack.size
                    self.control.pace(pack.size)
                    for what, blob in wrong:
                        self._found(what, "", f"{pack.name}#{blob}" if blob else pack.name)
                    if wrong:
                        bad.append(pack)
                self.control.report(Progress("hashing packs", self.bytes, total, "bytes"))
        finally:
            workers.close()
        return bad

    def _check(self, pack: Pack) -> list[tuple[str, str]]:
        data = self.target.bucket.get(pack.name)
        if data is None:
            return [("pack is missing", "")]
        try:
            return [("blob does not match its id", blob.hex()) for blob in check_pack(pack, data)]
        except DataLoss as error:
            return [(error.message, "")]

    def rows(self, cut: Cut) -> None:
        """Follow a backup's rows to blocks: all of them must be named by it, and no other."""
        named = set(cut.block_ids())
        led: set[bytes] = set()
        workers = Workers(1)
        blocks = BackupBlocks(self.target, workers)
        naming = Following(blocks)
        snapshot = CutSnapshot(self.target, cut)
        total = sum(chunk.rows for chunk in cut.chunks)
        done = 0
        try:
            for number in range(len(cut.chunks)):
                for row in snapshot.rows(number):
                    done += 1
                    led.update(naming.of(row))
                self.control.report(Progress("following rows", done, total, "objects"))
                self.control.check()
        except DataLoss as error:
            self._found(error.message, cut.facts.id, "rows")
            return
        finally:
            workers.close()
        for block in led - named:
            self._found(
                "row leads to a block that the backup does not name", cut.facts.id, block.hex()
            )
        for block in named - led:
            self._found("backup names a block that no row leads to", cut.facts.id, block.hex())
