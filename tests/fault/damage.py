"""Bits that flip and files that are cut short, in copies of a store: found or harmless, and brought back.

A copy is backed up and damaged. Then each read of it gives what was stored or a typed error, a verification finds what
a read can meet, and a repair (of the journal: a restore) makes the store again what it was.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fault.child import ended, in_child
from fault.sim.judge import judge, whole

from shardgit.backup.create import create_backup
from shardgit.backup.target import Target
from shardgit.blocks.block import BlockKind, parse_header
from shardgit.errors import ShardgitError
from shardgit.lmdbenv import PAGE_BYTES
from shardgit.node import open_store, restore_store
from shardgit.operate.block_sources import opened_source
from shardgit.operate.operation import silent_control
from shardgit.operate.repair import remake_shards, repair_store
from shardgit.operate.verifying import verify_store
from shardgit.service.repositories import Repositories

if TYPE_CHECKING:
    import random
    from collections import Counter
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from fault.sim.client import Place

    from shardgit.limits import Limits
    from shardgit.service.store import Store

WAYS = ("block", "manifest", "bits", "bits", "tree", "noise", "cut", "gone")
READ_MAX_S = 120
_TREES = (1, 2)  # flags of branch and leaf pages


@dataclass(frozen=True, slots=True)
class Served:
    """How reads of a damaged store ended: repositories that were read whole, and errors that were told."""

    whole: int
    errors: tuple[str, ...]


class Damaging:
    """Damages copies of one store in ways chosen by dice, and counts."""

    def __init__(
        self, folder: Path, limits: Limits, place: Callable[[], Place], counts: Counter[str]
    ) -> None:
        self.folder = folder
        self.limits = limits
        self.place = place
        self.counts = counts

    def once(self, data: Path, dice: random.Random) -> None:
        """Damage a copy of the store in ``data`` in one way; AssertionError when that is not as it should be."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        copy, backup = self.folder / "copy", self.folder / "backup"
        shutil.copytree(data, copy)
        blocks = in_child(lambda: self._backed_up(copy, backup))
        way = dice.choice(WAYS)
        files = sorted(copy.glob("shards/*/data.mdb"))
        journal = copy / "journal" / "data.mdb"
        file = (
            journal
            if way in ("bits", "tree", "noise", "cut") and dice.random() < 0.4
            else dice.choice(files)
        )
        what = _damage(way, file, dice, blocks)
        of = "journal" if file == journal else "shard"
        told = f"{what} in the {of}"
        self.counts[f"{way} of a {of}"] += 1
        served = ended(lambda: self._served(copy), seconds=READ_MAX_S)
        assert not served.failure, f"{told}: {served.failure}"
        if served.signal:
            self.counts[f"readers that died of signal {served.signal}"] += 1
        found = in_child(lambda: self._verified(copy))
        if not found:
            self.counts["harmless"] += 1
            assert not served.signal, f"{told}: a reader died, and a verification finds nothing"
            assert not served.result.errors, f"{told}: unnoticed, and {served.result.errors}"
            in_child(lambda: self._judged(copy))
            return
        self.counts["found"] += 1
        if of == "journal":
            in_child(lambda: self._restored(backup, self.folder / "restored"))
        else:
            left = in_child(lambda: self._repaired(copy, backup))
            assert not left, f"{told}: not mended: {left}"
            assert not (left := in_child(lambda: self._verified(copy))), (
                f"{told}: mended, but {left}"
            )
            in_child(lambda: self._judged(copy))
        self.counts["brought back"] += 1

    # ---- jobs of processes of their own ----

    def _backed_up(self, data: Path, backup: Path) -> list[tuple[BlockKind, bytes]]:
        """Back the store up; returns where to look for its blocks."""
        with open_store(data, threads=1, limits=self.limits) as store:
            create_backup(store, str(backup), control=silent_control())
            found = []
            for block, _ in store.blocks.scan_sync():
                (held,) = store.blocks.get_many_sync([block])
                assert held is not None
                found.append((parse_header(held).kind, held))
            return found

    def _served(self, data: Path) -> Served:
        """Read all there is. Wrong bytes are an error that is not the store's."""
        errors = []
        number = 0
        place = self.place()
        try:
            with open_store(data, threads=1, limits=self.limits) as store:
                for info in Repositories(store).list():
                    try:
                        _read(place, store, info.name)
                        number += 1
                    except ShardgitError as error:
                        errors.append(f"{info.name}: {error!r}")
        except ShardgitError as error:
            errors.append(repr(error))
        return Served(number, tuple(errors))

    def _verified(self, data: Path) -> str:
        """Return what a verification finds, "" when that is nothing."""
        try:
            found = verify_store(data, control=silent_control(), objects=True)
        except ShardgitError as error:
            return repr(error)
        return "" if found.clean else str([one.line for one in found.findings[:8]])

    def _repaired(self, data: Path, backup: Path) -> str:
        remake_shards(data, control=silent_control())
        with (
            open_store(data, threads=1, limits=self.limits) as store,
            opened_source(str(backup)) as source,
        ):
            done = repair_store(store, control=silent_control(), sources=[source])
        return "" if done.whole else str([one.line for one in done.left[:8]])

    def _judged(self, data: Path) -> None:
        with open_store(data, threads=1, limits=self.limits) as store:
            judge(self.place(), store)

    def _restored(self, backup: Path, data: Path) -> None:
        target = Target.open(str(backup))
        restore_store(target, data, backup=target.cut_ids()[-1], control=silent_control())
        self._judged(data)


def _read(place: Place, store: Store, name: str) -> None:
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
        refs = {one.name: one.target for one in store.refs.list(snapshot, record) if one.target}
    whole(place, store, name, refs)


def _damage(
    way: str, file: Path, dice: random.Random, blocks: list[tuple[BlockKind, bytes]]
) -> str:
    """Damage a file; returns words for what was done."""
    data = bytearray(file.read_bytes())
    pages = len(data) // PAGE_BYTES
    if way in ("block", "manifest"):
        some = [held for kind, held in blocks if way == "block" or kind is BlockKind.MANIFEST]
        here = [at for held in some if (at := data.find(held)) >= 0]
        if here:
            held = dice.choice([held for held in some if held in data])
            at = data.find(held) + dice.randrange(len(held))
            data[at] ^= 1 << dice.randrange(8)
            file.write_bytes(data)
            return f"a bit of a {way} at {at} flipped"
        way = "bits"
    if way == "gone":
        file.unlink()
        return "the file removed"
    if way == "cut":
        size = dice.randrange(len(data))
        file.write_bytes(data[:size])
        return f"cut to {size} of {len(data)}"
    if way == "noise":
        at = dice.randrange(pages) * PAGE_BYTES
        data[at : at + PAGE_BYTES] = dice.choice((bytes(PAGE_BYTES), dice.randbytes(PAGE_BYTES)))
        file.write_bytes(data)
        return f"page {at // PAGE_BYTES} overwritten"
    spots: Sequence[int] = range(pages)
    if way == "tree":
        spots = [
            page
            for page in range(pages)
            if int.from_bytes(data[page * PAGE_BYTES + 10 :][:2], "little") in _TREES
        ] or range(pages)
    flipped = []
    for _ in range(dice.choice((1, 1, 3, 20))):
        at = dice.choice(spots) * PAGE_BYTES + dice.randrange(64 if way == "tree" else PAGE_BYTES)
        data[at] ^= 1 << dice.randrange(8)
        flipped.append(at)
    file.write_bytes(data)
    return f"bits at {flipped} flipped"
