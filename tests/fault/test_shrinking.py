"""Shards copied into fresh files while others use them, and while the copier dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from moving import check_whole, full_store, opened, parts, placed
from served import clean_environment, shardgit
from waiting import WAIT_S

from shardgit import faultpoints
from shardgit.blocks.block import partition_of
from shardgit.blocks.identity import IDENTITY_FILE, environment_of
from shardgit.blocks.shard import ShardStore
from shardgit.blocks.shrinking import clear_left_environments
from shardgit.errors import BlockCorrupt, DataLoss, Refused, ShardMissing, Stopped, Unavailable
from shardgit.node import check_readers
from shardgit.oid import BlockId
from shardgit.operate.operation import Control, running, silent_control
from shardgit.operate.shrinking import COMPACTING, compact_shards
from shardgit.operate.store_files import StoreFiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from moving import Blocks

CALM = silent_control()
UNKNOWN = BlockId(bytes(32))


def half_empty(folder: Path) -> tuple[Path, Blocks]:
    """Make a store of two shards whose files are more than half free; returns what is left in it."""
    blocks = parts(400, most=20_000)
    full_store(folder, blocks, shards=2)
    gone = sorted(blocks)[::2] + sorted(blocks)[1::4]
    with opened(folder) as store:
        store.blocks.delete_many_sync(gone)
    return folder, {b: data for b, data in blocks.items() if b not in set(gone)}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_free_space_goes_back_to_the_disk_and_nothing_else_changes(tmp_path: Path) -> None:
    folder, blocks = half_empty(tmp_path / "s")
    with opened(folder) as store:
        with pytest.raises(ShardMissing):
            compact_shards(store, [7], control=CALM)
        with running(store, COMPACTING), pytest.raises(Refused):
            compact_shards(store, control=CALM)
        done = compact_shards(store, [0], control=CALM)
        (one,) = done.shards
        assert one.copied
        assert one.file_after < 0.5 * one.file_before
        assert one.file_after <= 1.2 * one.live_bytes
        check_whole(store, blocks)
        extra = parts(20, seed=2)
        store.blocks.put_many_sync(list(extra.items()))
        again = compact_shards(store, [0], control=CALM)
        assert not again.shards[0].copied
        assert [s.copied for s in compact_shards(store, force=True, control=CALM).shards] == [
            True,
            True,
        ]
        check_whole(store, blocks | extra)
    for number in (0, 1):
        shard = folder / "shards" / f"{number:03}"
        assert files(shard) == [environment_of(shard).name, "shard.json"]
    check_readers(folder)
    with opened(folder) as store:
        check_whole(store, blocks | extra)


def test_what_is_put_deleted_and_read_meanwhile_is_right_behind_the_swap(tmp_path: Path) -> None:
    folder, blocks = half_empty(tmp_path / "s")
    late: Blocks = {}
    gone: list[bytes] = []
    with opened(folder) as store:
        threads: list[Thread] = []

        def put() -> None:
            fresh = parts(10, seed=7, most=3_000)
            store.blocks.put_many_sync(list(fresh.items()))
            late.update(fresh)

        def hook(name: str) -> None:
            if name == "shrink.after_copy" and not gone:
                gone.append(min(blocks))
                extra = parts(10, seed=6, most=3_000)
                store.blocks.put_many_sync(list(extra.items()))
                late.update(extra)
                store.blocks.delete_many_sync([min(blocks)])
            if name == "shrink.before_swap":
                # Waits for the lock of the old environment, and must write to the new one.
                threads.append(Thread(target=put))
                threads[-1].start()
                time.sleep(0.1)
                assert store.blocks.get_many_sync([max(blocks)]) == [blocks[max(blocks)]]

        with faultpoints.listening(hook):
            compact_shards(store, force=True, control=CALM)
        for thread in threads:
            thread.join()
        assert len(late) == 20
        left = {b: data for b, data in blocks.items() if b not in gone}
        check_whole(store, left | late)
    with opened(folder) as store:
        check_whole(store, left | late)


def test_a_copy_that_is_stopped_leaves_all_as_it_was(tmp_path: Path) -> None:
    folder, blocks = half_empty(tmp_path / "s")
    control = Control()

    def hook(name: str) -> None:
        if name == "shrink.after_copy":
            control.stop()

    with opened(folder) as store:
        with faultpoints.listening(hook), pytest.raises(Stopped):
            compact_shards(store, [0], control=control)
        check_whole(store, blocks)
        assert environment_of(folder / "shards" / "000") == folder / "shards" / "000"
        compact_shards(store, [0], control=CALM)
        check_whole(store, blocks)
        assert len(files(folder / "shards" / "000")) == 2


def test_a_damaged_block_is_copied_as_it_is(tmp_path: Path) -> None:
    folder, blocks = half_empty(tmp_path / "s")
    with opened(folder) as store:
        victim = min(placed(store)[0])
        shard = store.routed.shards[0]
        with shard._environment.write() as transaction:
            transaction.put(victim, blocks[victim][:-1] + b"?")
        (one,) = compact_shards(store, [0], control=CALM).shards
        assert one.damaged == 1
        with pytest.raises(BlockCorrupt):
            shard.read_sync(victim)
        shard.put_many_sync([(victim, blocks[victim])])
        check_whole(store, blocks)


@pytest.mark.parametrize(
    "point", ["shrink.before_copy", "shrink.after_copy", "shrink.before_swap", "shrink.after_swap"]
)
def test_a_copier_that_is_killed_loses_nothing(tmp_path: Path, point: str) -> None:
    folder, blocks = half_empty(tmp_path / "s")
    words = ("shard", "compact", "--all", "--force", "--json", "--data", str(folder))
    done = shardgit(*words, cwd=tmp_path, environment={"SHARDGIT_FAULT": point})
    assert done.returncode == -signal.SIGKILL
    with opened(folder) as store:
        check_whole(store, blocks)
    done = shardgit(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [one["copied"] for one in json.loads(done.stdout)["shards"]] == [True, True]
    with opened(folder) as store:
        check_whole(store, blocks)
    assert len(files(folder / "shards" / "000")) == 2


def test_a_shard_that_was_not_to_be_seen_for_a_moment_is_as_it_was(tmp_path: Path) -> None:
    folder, blocks = half_empty(tmp_path / "s")
    with opened(folder) as store:
        compact_shards(store, [1], force=True, control=CALM)
        ids_of = {n: sorted(ids) for n, ids in placed(store).items()}
        for number, shard in store.routed.shards.items():
            file = shard.folder / IDENTITY_FILE
            file.rename(tmp_path / "away")
            for _ in range(2):
                with pytest.raises(Unavailable):  # who cannot look does not say that it is missing
                    shard.use(UNKNOWN, bytes)
                assert shard.get_many_sync(ids_of[number]) == [blocks[b] for b in ids_of[number]]
            with pytest.raises(Unavailable):
                shard.put_many_sync(list(parts(1, seed=5).items()))
            (tmp_path / "away").rename(file)
            assert shard.use(UNKNOWN, bytes) is None
            text = file.read_text()
            file.unlink()
            file.write_text(text)  # the same facts in another file
            assert shard.use(UNKNOWN, bytes) is None
            shard.put_many_sync([(ids_of[number][0], blocks[ids_of[number][0]])])
        check_whole(store, blocks)


@pytest.mark.parametrize("trouble", ["gone", "noise", "a folder"])
def test_no_environment_goes_while_nothing_tells_which_one_counts(
    tmp_path: Path, trouble: str
) -> None:
    folder, blocks = half_empty(tmp_path / "s")
    with opened(folder) as store:
        compact_shards(store, [0], force=True, control=CALM)
        file = store.routed.shards[0].folder / IDENTITY_FILE
        before = files(file.parent)
        file.rename(tmp_path / "away")
        if trouble == "noise":
            file.write_bytes(b"\xff\x00")
        if trouble == "a folder":
            file.mkdir()
        with pytest.raises(Refused, match="identity file"):
            clear_left_environments(file.parent)
        with pytest.raises((DataLoss, Unavailable)):
            compact_shards(store, [0], control=CALM)
        if file.is_dir():
            file.rmdir()
        (tmp_path / "away").rename(file)
        assert files(file.parent) == before
        compact_shards(store, [0], force=True, control=CALM)
        check_whole(store, blocks)


def test_a_verification_goes_on_where_it_was_while_nothing_tells_where_that_is(
    tmp_path: Path,
) -> None:
    folder, _ = half_empty(tmp_path / "s")
    with opened(folder) as store:
        compact_shards(store, [0], force=True, control=CALM)
    with StoreFiles(folder) as reading:
        before = reading.shards[0].folder
        file = folder / "shards" / "000" / IDENTITY_FILE
        file.rename(tmp_path / "away")
        reading.refresh()
        assert reading.shards[0].folder == before
        (tmp_path / "away").rename(file)
        with opened(folder) as store:
            compact_shards(store, [0], force=True, control=CALM)
        reading.refresh()
        assert reading.shards[0].folder == environment_of(file.parent) != before


SWAPPER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from moving import opened, parts
from shardgit.operate.operation import silent_control
from shardgit.operate.shrinking import compact_shards
with opened(Path(sys.argv[1])) as store:
    compact_shards(store, force=True, control=silent_control())
    store.blocks.put_many_sync(list(parts(20, seed=8, most=3_000).items()))
"""

READS: dict[str, Callable[[ShardStore, list[BlockId]], bool]] = {
    "use": lambda shard, ids: all(shard.use(block, len) for block in ids),
    "has": lambda shard, ids: all(shard.has_many_sync(ids)),
    "scan": lambda shard, ids: {block for block, _ in shard.scan_sync()}.issuperset(ids),
}


@pytest.mark.parametrize("how", READS)
def test_who_misses_what_another_thread_has_just_taken_over_looks_again(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = half_empty(tmp_path / "s")
    take_over = ShardStore.refresh

    def second(shard: ShardStore) -> bool:
        take_over(shard)  # of a thread that was faster
        return take_over(shard)

    with opened(folder) as store:
        tests = str(Path(__file__).parent.parent)
        words = [sys.executable, "-c", SWAPPER, str(folder), tests]
        subprocess.run(words, env=clean_environment(), check=True, timeout=WAIT_S)
        monkeypatch.setattr(ShardStore, "refresh", second)
        fresh = parts(20, seed=8, most=3_000)
        for number, shard in store.routed.shards.items():
            ids = [b for b in fresh if number in store.routed.ring.shards_of(partition_of(b))]
            assert ids
            assert READS[how](shard, ids)


WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from moving import parts
from shardgit.node import open_store
with open_store(Path(sys.argv[1]), threads=2) as store:
    kept = {}
    for turn in range(100_000):
        fresh = parts(6, seed=1_000 + turn, most=3_000)
        store.blocks.put_many_sync(list(fresh.items()))
        gone = sorted(fresh)[:2]
        store.blocks.delete_many_sync(gone)
        kept |= {block: data for block, data in fresh.items() if block not in gone}
        assert store.blocks.get_many_sync(list(kept)) == list(kept.values())
        os.write(1, b"%d\\n" % turn)
"""


def test_a_writer_in_another_process_goes_on_over_many_swaps(tmp_path: Path) -> None:
    folder, blocks = half_empty(tmp_path / "s")
    told = tmp_path / "told"
    with told.open("wb") as out:
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(Path(__file__).parent.parent)],
            stdout=out,
            stderr=subprocess.PIPE,
            env=clean_environment(),
        )
    try:
        while not (told.exists() and told.stat().st_size):
            time.sleep(0.05)
            assert writer.poll() is None
        with opened(folder) as store:
            for _ in range(6):
                compact_shards(store, force=True, control=CALM)
        seen = told.stat().st_size
        while told.stat().st_size == seen:
            time.sleep(0.05)
            assert writer.poll() is None
    finally:
        writer.kill()
        errors = writer.communicate()[1]
    assert errors == b""
    with opened(folder) as store:
        for turn in map(int, told.read_text().split()):
            fresh = parts(6, seed=1_000 + turn, most=3_000)
            kept = sorted(fresh)[2:]
            assert store.blocks.get_many_sync(kept) == [fresh[block] for block in kept]
        assert store.blocks.get_many_sync(list(blocks)) == list(blocks.values())
