"""Any bit of a database file may flip and any part of it be gone: that is found, or harms nothing."""

from __future__ import annotations

import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from shardgit.blocks.block import HEADER_SIZE, BlockKind, block_id, new_header
from shardgit.blocks.shard import ShardStore
from shardgit.journal.interface import Delete, Put
from shardgit.journal.lmdb import LmdbJournal
from shardgit.lmdbenv import PAGE_BYTES, Environment
from shardgit.oid import BlockId, HashKind, PoolId
from shardgit.operate.scrub import Scrub
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POOL = PoolId(b"p" * 16)
FLIPS = 300
SIZES = (100, 900, 2_100, 4_000, 5_000, 20_000, 60_000)


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(1)
    yield made
    made.close()


def make_block(chance: random.Random) -> tuple[BlockId, bytes]:
    size = chance.choice(SIZES) + chance.randrange(64)
    data = new_header(BlockKind.PART, HashKind.SHA1, POOL, size)
    data += chance.randbytes(size - HEADER_SIZE)
    return block_id(data), data


def made_shard(folder: Path, workers: Workers, chance: random.Random) -> dict[BlockId, bytes]:
    """Make a shard with a past: blocks of all sizes, some deleted, so that there are free pages."""
    shard = ShardStore(folder, workers, create=True)
    held: dict[BlockId, bytes] = {}
    for _ in range(40):
        fresh = [make_block(chance) for _ in range(12)]
        shard.put_many_sync(fresh)
        held.update(fresh)
        gone = chance.sample(sorted(held), 4)
        shard.delete_many_sync(gone)
        for block in gone:
            del held[block]
    shard.close()
    return held


def faults_of(scrub: Scrub, held: dict[BlockId, bytes]) -> list[str]:
    """Return what a whole verification of a shard's file says, blocks that are gone included."""
    found = [f"page {fault.page} {fault.what}" for fault in scrub.walk().faults]
    at: bytes | None = b""
    whole: dict[BlockId, int] = {}
    while at is not None:
        some = scrub.blocks(at, most=1 << 18)
        found += [what for _, what in some.bad]
        found += [f"page {fault.page} {fault.what}" for fault in some.faults]
        whole.update((seen.id, seen.length) for seen in some.whole)
        at = some.next
    found += ["missing" for block, data in held.items() if whole.get(block) != len(data)]
    return found


def flip(file: Path, at: int, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ 1 << bit]))


def is_harmless(
    folder: Path, work: Path, held: dict[BlockId, bytes], workers: Workers, chance: random.Random
) -> bool:
    """Say whether LMDB itself reads all blocks, also once others were put and deleted."""
    work.mkdir()
    shutil.copy(folder / "data.mdb", work / "data.mdb")
    shard = ShardStore(work, workers)
    try:
        more = [make_block(chance) for _ in range(30)]
        for at in range(0, 30, 10):
            shard.put_many_sync(more[at : at + 10])
        shard.delete_many_sync([block for block, _ in more[::2]])
        shard._seen.__init__()  # type: ignore[misc]
        ids = sorted(held)
        return shard.get_many_sync(ids) == [held[block] for block in ids]
    finally:
        shard.close()
        shutil.rmtree(work)


@pytest.mark.slow
def test_each_flipped_bit_of_a_shard_is_found_or_harms_nothing(
    tmp_path: Path, workers: Workers
) -> None:
    chance = random.Random(7)
    folder = tmp_path / "shard"
    held = made_shard(folder, workers, chance)
    file = folder / "data.mdb"
    size = file.stat().st_size
    harmless = 0
    with Scrub(folder) as scrub:
        assert faults_of(scrub, held) == []
        for number in range(FLIPS):
            # Every other one among the first pages of all, and in headers of pages: trees, not values.
            at = chance.randrange(size)
            if number % 2:
                at = at // PAGE_BYTES * PAGE_BYTES + chance.randrange(64)
            bit = chance.randrange(8)
            flip(file, at, bit)
            if not faults_of(scrub, held):
                harmless += 1
                work = tmp_path / "work"
                assert is_harmless(folder, work, held, workers, chance), (at, bit)
            flip(file, at, bit)
        assert faults_of(scrub, held) == []
    assert 0 < harmless < FLIPS / 2


@pytest.mark.slow
def test_each_flipped_bit_of_the_pages_of_trees_is_found_or_harms_nothing(
    tmp_path: Path, workers: Workers
) -> None:
    """Branch and leaf pages, the free list's and both meta pages, byte by byte in steps."""
    chance = random.Random(11)
    folder = tmp_path / "shard"
    held = made_shard(folder, workers, chance)
    file = folder / "data.mdb"
    trees = [
        page
        for page in range(file.stat().st_size // PAGE_BYTES)
        if int.from_bytes(file.read_bytes()[page * PAGE_BYTES + 10 :][:2], "little") in (1, 2, 8)
    ]
    harmless = found = 0
    with Scrub(folder) as scrub:
        for page in trees[:2] + chance.sample(trees[2:], min(4, len(trees) - 2)):
            for at in [*range(0, 150, 4), *chance.sample(range(150, PAGE_BYTES), 12)]:
                bit = chance.randrange(8)
                flip(file, page * PAGE_BYTES + at, bit)
                if faults_of(scrub, held):
                    found += 1
                else:
                    harmless += 1
                    work = tmp_path / "work"
                    assert is_harmless(folder, work, held, workers, chance), (page, at, bit)
                flip(file, page * PAGE_BYTES + at, bit)
    assert (
        found > 40
    )  # the rest lies in unused rows and pages; how many depends on where pages fell


def test_a_file_that_is_cut_short_is_found(tmp_path: Path, workers: Workers) -> None:
    chance = random.Random(3)
    folder = tmp_path / "shard"
    held = made_shard(folder, workers, chance)
    whole = (folder / "data.mdb").read_bytes()
    for _ in range(8):
        size = chance.randrange(2 * PAGE_BYTES, len(whole) - PAGE_BYTES)
        cut = tmp_path / "cut"
        cut.mkdir()
        (cut / "data.mdb").write_bytes(whole[:size])
        with Scrub(cut) as scrub:
            faults = faults_of(scrub, held)
        assert (
            any("behind the end of the file" in fault for fault in faults)
            or size > len(whole) - 64 * PAGE_BYTES
        ), size
        shutil.rmtree(cut)


def test_pages_full_of_noise_end_a_verification_with_findings(
    tmp_path: Path, workers: Workers
) -> None:
    chance = random.Random(5)
    folder = tmp_path / "shard"
    held = made_shard(folder, workers, chance)
    whole = (folder / "data.mdb").read_bytes()
    for number in range(12):
        noisy = bytearray(whole)
        for _ in range(1 + 20 * (number % 3)):
            page = chance.randrange(len(whole) // PAGE_BYTES)
            at = page * PAGE_BYTES
            noisy[at : at + PAGE_BYTES] = chance.randbytes(PAGE_BYTES)
            if chance.random() < 0.5:  # one that passes for a page of a tree
                noisy[at : at + 12] = page.to_bytes(8, "little") + b"\0\0" + bytes([1, 0])
        other = tmp_path / "noisy"
        other.mkdir()
        (other / "data.mdb").write_bytes(noisy)
        with Scrub(other) as scrub:
            assert len(faults_of(scrub, held)) < 10_000
        shutil.rmtree(other)


def test_each_flipped_bit_of_the_journal_is_found_or_harms_nothing(tmp_path: Path) -> None:
    chance = random.Random(13)
    folder = tmp_path / "journal"
    journal = LmdbJournal(folder, create=True)
    held: dict[bytes, bytes] = {}
    for number in range(60):
        rows = {
            b"R%08d%d" % (chance.randrange(200), n): chance.randbytes(
                chance.choice((20, 300, 5_000))
            )
            for n in range(5)
        }
        gone = chance.sample(sorted(held), min(len(held), 2))
        gone = [key for key in gone if key not in rows]
        puts = [Put(key, value) for key, value in rows.items()]
        journal.commit_sync([], [*puts, *map(Delete, gone)])
        held.update(rows)
        for key in gone:
            del held[key]
        assert number >= 0
    journal.close()
    file = folder / "data.mdb"
    size = file.stat().st_size
    with Scrub(folder) as scrub:

        def faults() -> list[str]:
            found = [fault.what for fault in scrub.walk().faults]
            whole: dict[bytes, bytes] = {}
            for some in scrub.rows():
                found += [what for _, what in some.bad] + [fault.what for fault in some.faults]
                whole.update((row.key, row.value) for row in some.whole)
            return found + ["other rows"] * (whole != held)

        assert faults() == []
        harmless = 0
        for _ in range(FLIPS):
            at, bit = chance.randrange(size), chance.randrange(8)
            flip(file, at, bit)
            if not faults():
                harmless += 1
                work = tmp_path / "work"
                work.mkdir()
                shutil.copy(file, work / "data.mdb")
                opened = LmdbJournal(work)
                for number in range(3):
                    opened.commit_sync([], [Put(b"Z%d" % number, bytes(3_000))])
                with opened.snapshot() as snapshot:
                    rows = {row.key: row.value for row in snapshot.range(b"R", b"S")}
                opened.close()
                assert rows == held, (at, bit)
                shutil.rmtree(work)
            flip(file, at, bit)
    assert harmless < FLIPS


def test_a_healthy_file_of_any_past_has_no_fault(tmp_path: Path) -> None:
    chance = random.Random(17)
    for number in range(6):
        folder = tmp_path / str(number)
        environment = Environment(folder, create=True)
        held: list[bytes] = []
        with Scrub(folder) as scrub:
            for _ in range(25):
                with environment.write() as transaction:
                    for _ in range(chance.randrange(30)):
                        key = chance.randbytes(chance.choice((1, 8, 32, 200)))
                        held.append(key)
                        transaction.put(
                            key, chance.randbytes(chance.choice((0, 50, 3_000, 30_000)))
                        )
                    for _ in range(chance.randrange(min(len(held), 25) + 1)):
                        transaction.delete(held.pop(chance.randrange(len(held))))
                walked = scrub.walk()
                assert walked.faults == ()
                assert walked.entries == environment.entries()
        environment.close()


def test_a_verifier_sees_one_moment_while_others_write(tmp_path: Path, workers: Workers) -> None:
    chance = random.Random(23)
    folder = tmp_path / "shard"
    held = made_shard(folder, workers, chance)
    shard = ShardStore(folder, workers)
    others = ThreadPoolExecutor(1)
    stop = False

    def write() -> int:
        count = 0
        while not stop:
            fresh = [make_block(chance) for _ in range(4)]
            shard.put_many_sync(fresh)
            shard.delete_many_sync([block for block, _ in fresh])
            count += 1
        return count

    os.sched_yield()
    writing = others.submit(write)
    try:
        with Scrub(folder) as scrub:
            for _ in range(25):
                assert faults_of(scrub, held) == []
    finally:
        stop = True
        assert writing.result() > 0
        others.shutdown()
        shard.close()
