"""A shard when disks fill, bytes rot, files are cut and processes die or fork."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pickle import PickleBuffer
from typing import TYPE_CHECKING

import lmdb
import pytest

from shardgit.blocks.block import HEADER_SIZE, BlockKind, block_id, new_header
from shardgit.blocks.shard import ShardStore
from shardgit.errors import BlockCorrupt, DataLoss, Internal, StorageFull, StoreBusy
from shardgit.lmdbenv import PAGE_BYTES
from shardgit.oid import BlockId, HashKind, PoolId
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POOL = PoolId(b"p" * 16)

WRITER = r"""
import os, random, sys
from pathlib import Path
from shardgit.blocks.block import BlockKind, block_id, new_header
from shardgit.blocks.shard import ShardStore
from shardgit.oid import HashKind, PoolId
from shardgit.workers import Workers
shard = ShardStore(Path(sys.argv[1]), Workers(1))
count = int(sys.argv[2])
n = 0
while n != count:
    batch = []
    for _ in range(3):
        data = new_header(BlockKind.PART, HashKind.SHA1, PoolId(bytes(16)), 30_064)
        data += os.urandom(30_000)
        batch.append((block_id(data), data))
    shard.put_many_sync(batch)
    os.write(1, b"".join(b"%s\n" % block.hex().encode() for block, _ in batch))
    n += 1
shard.close()
"""

READER = r"""
import sys
from pathlib import Path
from shardgit.blocks.shard import ShardStore
from shardgit.oid import BlockId
from shardgit.workers import Workers
shard = ShardStore(Path(sys.argv[1]), Workers(1))
seen = 0
for line in sys.stdin:
    (data,) = shard.get_many_sync([BlockId(bytes.fromhex(line))])
    assert data is not None, line
    seen += len(list(shard.scan_sync())) > 0
print(seen)
shard.close()
"""


def make_block(size: int = 3_000, seed: int = 0) -> tuple[BlockId, bytes]:
    body = random.Random(seed).randbytes(size - HEADER_SIZE)
    data = new_header(BlockKind.SEGMENT, HashKind.SHA1, POOL, size) + body
    return block_id(data), data


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(2)
    yield made
    made.close()


@contextmanager
def shard_in(
    folder: Path, workers: Workers, *, create: bool = False, bytes_max: int | None = None
) -> Iterator[ShardStore]:
    shard = ShardStore(folder, workers, create=create, bytes_max=bytes_max)
    try:
        yield shard
    finally:
        shard.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# ---- full ----


def test_a_put_past_the_size_limit_is_refused_and_nothing_is_lost(
    tmp_path: Path, workers: Workers
) -> None:
    with shard_in(tmp_path / "s", workers, create=True, bytes_max=1 << 20) as shard:
        kept: list[tuple[BlockId, bytes]] = []
        with pytest.raises(StorageFull):
            for seed in range(100):
                pair = [make_block(50_000, 2 * seed), make_block(50_000, 2 * seed + 1)]
                shard.put_many_sync(pair)
                kept += pair
        assert len(kept) > 10
        assert shard.stats().live_bytes <= 1 << 20
        assert [block for block, _ in shard.scan_sync()] == sorted(block for block, _ in kept)
        assert shard.get_many_sync([block for block, _ in kept]) == [data for _, data in kept]
        shard.put_many_sync(kept)  # what is here already needs no room
        shard.delete_many_sync([block for block, _ in kept[:4]])
        shard.put_many_sync([make_block(50_000, 999)])


def fill_up(shard: ShardStore, size: int) -> list[tuple[BlockId, bytes]]:
    kept: list[tuple[BlockId, bytes]] = []
    with pytest.raises(StorageFull):
        for seed in range(5_000):
            pair = [make_block(size, 2 * seed), make_block(size // 2, 2 * seed + 1)]
            shard.put_many_sync(pair)
            kept += pair
    return kept


def take_the_rest(disk: Path) -> None:
    """Fill a disk to the last byte with something else."""
    with (disk / "other").open("ab", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(PAGE_BYTES))


@pytest.mark.parametrize("size", [400_000, 20_000])
def test_a_full_disk_refuses_the_batch_and_loses_nothing(
    small_disk: Path, workers: Workers, size: int
) -> None:
    with shard_in(small_disk / "s", workers, create=True) as shard:
        kept = fill_up(shard, size)
        ids = [block for block, _ in kept]
        assert sum(len(data) for _, data in kept) > 6 << 20
        assert shard.get_many_sync(ids) == [data for _, data in kept]
        assert [block for block, _ in shard.scan_sync()] == sorted(ids)
        # There is room left to delete, and what was deleted makes room to put.
        half = len(ids) // 2
        shard.delete_many_sync(ids[:half])
        again = make_block(size // 2, 5_000)
        shard.put_many_sync([again])
        assert shard.get_many_sync([again[0]]) == [again[1]]
    with shard_in(small_disk / "s", workers) as shard:
        assert shard.get_many_sync(ids[half:]) == [data for _, data in kept[half:]]


@pytest.mark.parametrize("size", [400_000, 20_000])
def test_a_disk_that_others_filled_fails_the_commit_and_loses_nothing(
    small_disk: Path, workers: Workers, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgit.blocks.shard.RESERVE_BYTES", -(1 << 40))  # filled after the check
    with shard_in(small_disk / "s", workers, create=True) as shard:
        first = [make_block(size, seed) for seed in range(9_000, 9_005)]
        shard.put_many_sync(first)
        take_the_rest(small_disk)
        os.truncate(small_disk / "other", (small_disk / "other").stat().st_size - 2_000_000)
        kept = first + fill_up(shard, size)
        ids = [block for block, _ in kept]
        assert len(kept) > 5
        assert shard.get_many_sync(ids) == [data for _, data in kept]
        assert [block for block, _ in shard.scan_sync()] == sorted(ids)
        (small_disk / "other").unlink()
        shard.put_many_sync([make_block(size, 1)])
    with shard_in(small_disk / "s", workers) as shard:
        assert shard.get_many_sync(ids) == [data for _, data in kept]


def test_a_batch_that_failed_gives_its_room_back_to_others_on_the_disk(
    small_disk: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgit.blocks.shard.RESERVE_BYTES", -(1 << 40))
    with shard_in(small_disk / "s", workers, create=True) as shard:
        shard.put_many_sync([make_block(1_000_000)])
        free_before = os.statvfs(small_disk).f_bfree
        batch = [make_block(5_000_000, seed) for seed in range(1, 7)]
        with pytest.raises(StorageFull):
            shard.put_many_sync(batch)
        assert os.statvfs(small_disk).f_bfree >= free_before - 8
        shard.put_many_sync(batch[:2])


def test_a_shard_on_a_full_disk_opens_and_reads(small_disk: Path, workers: Workers) -> None:
    block, data = make_block()
    with shard_in(small_disk / "s", workers, create=True) as shard:
        shard.put_many_sync([(block, data)])
    take_the_rest(small_disk)
    with shard_in(small_disk / "s", workers) as shard:
        assert shard.get_many_sync([block]) == [data]
        with pytest.raises(StorageFull):
            shard.put_many_sync([make_block(500_000, 1)])
        assert shard.get_many_sync([block]) == [data]
    (small_disk / "s" / "lock.mdb").unlink()
    take_the_rest(small_disk)
    with pytest.raises(StorageFull):  # and not a death by SIGBUS
        ShardStore(small_disk / "s", workers)


def test_the_lock_file_has_all_its_blocks(tmp_path: Path, workers: Workers) -> None:
    with shard_in(tmp_path / "s", workers, create=True):
        stat = (tmp_path / "s" / "lock.mdb").stat()
        assert stat.st_blocks * 512 >= stat.st_size
        assert sorted(os.listdir(tmp_path / "s")) == ["data.mdb", "lock.mdb"]


# ---- damaged ----


def damage(folder: Path, data: bytes) -> None:
    """Flip a bit of a block's bytes where they lie in the file."""
    file = folder / "data.mdb"
    whole = file.read_bytes()
    at = whole.index(data[200:400])
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(bytes([whole[at] ^ 1]))


def test_a_flipped_bit_is_found_at_the_first_touch(tmp_path: Path, workers: Workers) -> None:
    good, bad = make_block(9_000, 1), make_block(9_000, 2)
    with shard_in(tmp_path / "s", workers, create=True) as shard:
        shard.put_many_sync([good, bad])
    damage(tmp_path / "s", bad[1])
    with shard_in(tmp_path / "s", workers) as shard:
        for _ in range(2):
            with pytest.raises(BlockCorrupt):
                shard.get_many_sync([bad[0]])
            with pytest.raises(BlockCorrupt):
                shard.use(bad[0], len)
        assert shard.get_many_sync([good[0]]) == [good[1]]
        assert shard.has_many_sync([bad[0]]) == [True]


def test_putting_a_damaged_block_again_repairs_it(tmp_path: Path, workers: Workers) -> None:
    bad = make_block(9_000, 2)
    with shard_in(tmp_path / "s", workers, create=True) as shard:
        shard.put_many_sync([bad])
    damage(tmp_path / "s", bad[1])
    with shard_in(tmp_path / "s", workers) as shard:
        shard.put_many_sync([bad])
        assert shard.get_many_sync([bad[0]]) == [bad[1]]


@pytest.mark.parametrize("keep", [0, 1, 4_095, 8_192, 100_000, 1 << 20])
def test_a_file_that_was_cut_is_data_loss_when_it_is_opened(
    tmp_path: Path, workers: Workers, keep: int
) -> None:
    with shard_in(tmp_path / "s", workers, create=True) as shard:
        for seed in range(20):
            shard.put_many_sync([make_block(100_000, seed)])
    os.truncate(tmp_path / "s" / "data.mdb", keep)
    with pytest.raises(DataLoss):
        ShardStore(tmp_path / "s", workers)


def test_a_missing_file_is_data_loss_and_not_an_empty_shard(
    tmp_path: Path, workers: Workers
) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(DataLoss):
        ShardStore(tmp_path / "s", workers)
    (tmp_path / "s" / "data.mdb").write_bytes(random.Random(0).randbytes(20_000))
    with pytest.raises(DataLoss):
        ShardStore(tmp_path / "s", workers)


def test_a_job_that_keeps_a_buffer_is_a_mistake_that_is_told(
    tmp_path: Path, workers: Workers
) -> None:
    block, data = make_block()
    kept: list[PickleBuffer] = []
    with shard_in(tmp_path / "s", workers, create=True) as shard:
        shard.put_many_sync([(block, data)])
        with pytest.raises(Internal):
            shard.use(block, lambda view: kept.append(PickleBuffer(view)))
        kept.clear()
        assert shard.get_many_sync([block]) == [data]


# ---- processes ----


def test_processes_write_and_read_one_shard_at_once(tmp_path: Path, workers: Workers) -> None:
    with shard_in(tmp_path / "s", workers, create=True) as shard:
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path / "s"), "15"], stdout=subprocess.PIPE
            )
            for _ in range(2)
        ]
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(tmp_path / "s")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert reader.stdin is not None
        told = []
        for writer in writers:
            assert writer.stdout is not None
            for line in writer.stdout:  # acknowledged: from now on every process sees it
                told.append(BlockId(bytes.fromhex(line.decode())))
                reader.stdin.write(line)
                reader.stdin.flush()
                assert shard.has_many_sync([told[-1]]) == [True]
            assert writer.wait() == 0
            writer.stdout.close()
        out, _ = reader.communicate()
        assert reader.returncode == 0
        assert int(out) == len(told) == 90
        assert sorted(told) == [block for block, _ in shard.scan_sync()]
        assert None not in shard.get_many_sync(told)


def test_what_a_killed_writer_acknowledged_is_there(tmp_path: Path, workers: Workers) -> None:
    with shard_in(tmp_path / "s", workers, create=True):
        pass
    for round_ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "s"), "-1"], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(3)]
        time.sleep(0.05 * round_)
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.wait()
        writer.stdout.close()
        with shard_in(tmp_path / "s", workers) as shard:
            told = [BlockId(bytes.fromhex(line.decode())) for line in lines if len(line) == 65]
            assert None not in shard.get_many_sync(told)
            ids = [block for block, _ in shard.scan_sync()]
            assert None not in shard.get_many_sync(ids)
            assert len(ids) % 3 == 0  # whole batches only
            shard.put_many_sync([make_block(seed=3 * round_ + n) for n in range(3)])


def test_the_slots_of_dead_readers_are_freed(tmp_path: Path, workers: Workers) -> None:
    block, data = make_block()
    with shard_in(tmp_path / "s", workers, create=True) as shard:
        shard.put_many_sync([(block, data)])
        code = (
            "import os, signal, sys\nfrom pathlib import Path\n"
            "from shardgit.blocks.shard import ShardStore\nfrom shardgit.workers import Workers\n"
            "shard = ShardStore(Path(sys.argv[1]), Workers(1))\n"
            "shard.use(bytes.fromhex(sys.argv[2]), lambda v: os.kill(os.getpid(), 9))\n"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "s"), block.hex()]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert shard.reader_check() == 1
        assert shard.reader_check() == 0


def test_use_across_a_fork_is_refused(tmp_path: Path, workers: Workers) -> None:
    block, data = make_block()
    with shard_in(tmp_path / "s", workers, create=True) as shard:
        shard.put_many_sync([(block, data)])
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for call in (
                    lambda: shard.get_many_sync([block]),
                    lambda: shard.put_many_sync([make_block(seed=9)]),
                    lambda: shard.delete_many_sync([block]),
                    lambda: list(shard.scan_sync()),
                ):
                    with pytest.raises(Internal):
                        call()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert shard.get_many_sync([block]) == [data]


def test_a_shard_opens_once_in_a_process(tmp_path: Path, workers: Workers) -> None:
    with shard_in(tmp_path / "s", workers, create=True), pytest.raises(StoreBusy):
        ShardStore(tmp_path / "s", workers)


def test_a_closed_shard_is_a_mistake_that_is_told(tmp_path: Path, workers: Workers) -> None:
    with shard_in(tmp_path / "s", workers, create=True) as shard:
        pass
    with pytest.raises(Internal):
        shard.get_many_sync([make_block()[0]])
    with pytest.raises(Internal):
        shard.put_many_sync([make_block()])


# ---- readers ----


def test_no_reader_outlives_a_read_so_freed_pages_are_used_again(
    tmp_path: Path, workers: Workers
) -> None:
    with shard_in(tmp_path / "s", workers, create=True) as shard:
        scans = []
        for seed in range(60):
            pair = [make_block(200_000, 2 * seed), make_block(200_000, 2 * seed + 1)]
            shard.put_many_sync(pair)
            scans.append(shard.scan_sync())  # left half way
            next(scans[-1])
            shard.get_many_sync([pair[0][0]])
            if seed >= 5:
                gone = [make_block(200_000, 2 * seed - 10 + n) for n in range(2)]
                shard.delete_many_sync([block for block, _ in shard.scan_sync()][:2])
                del gone
        stats = shard.stats()
        assert stats.blocks == 60 * 2 - 55 * 2
        assert stats.file_bytes < 3 * stats.live_bytes


def test_the_map_is_reserved_once_and_the_file_is_no_larger_than_needed(
    tmp_path: Path, workers: Workers
) -> None:
    with shard_in(tmp_path / "s", workers, create=True) as shard:
        shard.put_many_sync([make_block(1_000_000)])
        assert shard._environment._environment.info()["map_size"] >= 1 << 40
        assert shard.stats().file_bytes < 2 << 20
        assert isinstance(shard._environment._environment, lmdb.Environment)
