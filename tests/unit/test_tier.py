"""The node's tier: bounded, shared by processes, and never in the way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from clustering import take_away
from hypothesis import given, settings
from hypothesis import strategies as st
from moved import Moved
from waiting import WAIT_S

from shardgit import faultpoints
from shardgit.blocks import generation_folder
from shardgit.blocks.block import HEADER_SIZE, BlockKind, block_id, new_header
from shardgit.blocks.frequency import COUNT_MAX, Sketch
from shardgit.blocks.generation_folder import BOOT, SEALED
from shardgit.blocks.generations import AWAY_S, GENERATIONS, Found, Generations
from shardgit.blocks.tier import FOREIGN, OWNED, Tier
from shardgit.clock import replaced
from shardgit.errors import MalformedPack
from shardgit.oid import BlockId, HashKind, PoolId
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POOL = PoolId(b"p" * 16)
MIB = 1 << 20


def make_block(size: int, seed: int) -> tuple[BlockId, bytes]:
    body = random.Random(seed).randbytes(size - HEADER_SIZE)
    data = new_header(BlockKind.SEGMENT, HashKind.SHA1, POOL, size) + body
    return block_id(data), data


@contextmanager
def opened(
    *folders: Path, owned: int = 8 * MIB, foreign: int = 8 * MIB
) -> Iterator[tuple[Tier, Workers]]:
    tier = Tier(folders, owned_bytes=owned, foreign_bytes=foreign)
    try:
        yield tier, tier.workers
    finally:
        tier.close()


def settle(workers: Workers) -> None:
    """Wait for what runs behind."""
    done = threading.Event()
    workers.later("settle", done.set)
    assert done.wait(30)


def read(tier: Tier, block: BlockId) -> bytes | None:
    found = tier.use(block, bytes)
    return None if found is None else found[0]


def test_what_was_put_is_there_and_what_was_deleted_is_not(tmp_path: Path) -> None:
    moved = Moved()
    with opened(tmp_path) as (tier, _):
        owned, foreign = make_block(5_000, 1), make_block(70_000, 2)
        assert tier.put(*owned, owned=True)
        assert tier.put(*foreign, owned=False)
        ids = [owned[0], foreign[0], BlockId(b"\1" * 32)]
        assert [read(tier, block) for block in ids] == [owned[1], foreign[1], None]
        assert moved("shardgit_tier_writes_total") == {"owned done": 1, "foreign done": 1}
        assert moved("shardgit_tier_reads_total") == {"owned": 1, "foreign": 1, "miss": 1}
        assert tier.has_many(ids) == [True, True, False]
        assert set(tier.scan()) == {(owned[0], 5_000), (foreign[0], 70_000)}
        tier.delete_many(ids)
        assert tier.has_many(ids) == [False] * 3


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(100, 400_000), min_size=5, max_size=60), disks=st.integers(1, 3))
def test_it_stays_within_its_bytes_and_gives_back_what_was_put(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], disks: int
) -> None:
    folder = tmp_path_factory.mktemp("tier")
    most = 6 * MIB * disks
    with opened(*(folder / str(n) for n in range(disks)), owned=most) as (tier, _):
        blocks = [make_block(size, seed) for seed, size in enumerate(sizes)]
        for block, data in blocks:
            assert tier.put(block, data, owned=True) == (len(data) < most // disks // 8 - 200_000)
            assert tier.bytes_used()[OWNED] <= most
        for block, data in blocks:
            assert read(tier, block) in (data, None)
        small = [b for b in blocks if len(b[1]) < 300_000]
        if small:
            assert read(tier, small[-1][0]) == small[-1][1]


def test_the_oldest_go_and_those_that_are_read_stay(tmp_path: Path) -> None:
    moved = Moved()
    with opened(tmp_path, owned=8 * MIB) as (tier, workers):
        kept, *others = [make_block(100_000, seed) for seed in range(200)]
        tier.put(*kept, owned=True)
        for block, data in others:
            tier.put(block, data, owned=True)
            assert read(tier, kept[0]) == kept[1]
            settle(workers)
        assert tier.has_many([block for block, _ in others[:20]]) == [False] * 20
        assert tier.has_many([block for block, _ in others[-20:]]) == [True] * 20
    begun = max(int(path.name[2:], 16) for path in (tmp_path / OWNED).glob("g-*")) + 1
    left = len(list((tmp_path / OWNED).glob("g-*")))
    assert moved("shardgit_tier_drops_total") == {"oldest": begun - left}


def test_a_damaged_block_is_a_miss_and_is_dropped(tmp_path: Path) -> None:
    block, data = make_block(50_000, 1)
    with opened(tmp_path) as (tier, _):
        tier.put(block, data, owned=True)
    (file,) = (tmp_path / OWNED).glob("g-*/data.mdb")
    raw = bytearray(file.read_bytes())
    raw[raw.index(data[1_000:1_100]) + 50] ^= 1
    file.write_bytes(raw)
    moved = Moved()
    with opened(tmp_path) as (tier, _):
        assert read(tier, block) is None
        assert moved("shardgit_tier_reads_total") == {"damaged": 1}
        assert moved("shardgit_tier_drops_total") == {"block": 1}
        assert read(tier, block) is None
        assert moved("shardgit_tier_reads_total") == {"damaged": 1, "miss": 1}
        assert tier.has_many([block]) == [False]
        tier.put(block, data, owned=True)
        assert read(tier, block) == data


def test_bytes_that_go_bad_under_a_job_are_dropped_and_other_failures_are_the_jobs(
    tmp_path: Path,
) -> None:
    block, data = make_block(50_000, 1)

    def fail(view: memoryview) -> None:
        raise MalformedPack("no pack", bytes=len(view))

    with opened(tmp_path) as (tier, _):
        tier.put(block, data, owned=True)
        with pytest.raises(MalformedPack):
            tier.use(block, fail)
        assert read(tier, block) == data


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "gone"])
def test_a_damaged_environment_is_a_miss_and_is_dropped(tmp_path: Path, damage: str) -> None:
    blocks = [make_block(50_000, seed) for seed in range(8)]
    with opened(tmp_path) as (tier, _):
        for block, data in blocks:
            tier.put(block, data, owned=True)
    (file,) = (tmp_path / OWNED).glob("g-*/data.mdb")
    size = file.stat().st_size
    match damage:
        case "empty":
            file.write_bytes(b"")
        case "cut":
            file.write_bytes(file.read_bytes()[: size // 2])
        case "noise":
            file.write_bytes(random.Random(1).randbytes(size))
        case _:
            file.unlink()
    moved = Moved()
    with opened(tmp_path) as (tier, _):
        assert read(tier, blocks[0][0]) is None
        assert moved("shardgit_tier_reads_total") == {"miss": 1}
        drops = {} if damage == "gone" else {"damaged": 1}  # what is gone another process dropped
        assert moved("shardgit_tier_drops_total") == drops
        for block, data in blocks:
            assert tier.put(block, data, owned=True)
            assert read(tier, block) == data


def test_the_disk_may_go_under_an_open_tier(tmp_path: Path) -> None:
    blocks = [make_block(50_000, seed) for seed in range(4)]
    clock = _Later()
    with opened(tmp_path / "disk") as (tier, _), replaced(clock):
        for block, data in blocks[:2]:
            tier.put(block, data, owned=True)
        while not (tmp_path / "disk").is_file():  # a thread of the tier may make it again
            take_away(tmp_path / "disk")
            with suppress(IsADirectoryError):
                (tmp_path / "disk").write_text("not a folder")
        for block, data in blocks:
            tier.use(block, bytes)
            tier.put(block, data, owned=True)
        (tmp_path / "disk").unlink()
        clock.now += AWAY_S + 1
        for block, data in blocks:
            assert tier.put(block, data, owned=True)
            assert read(tier, block) == data


class _Later:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def now_ms(self) -> int:
        return int(self.now * 1_000)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_full_disk_costs_the_oldest_and_then_the_block(tmp_path: Path) -> None:
    blocks = [make_block(200_000, seed) for seed in range(30)]
    with opened(tmp_path, owned=8 * MIB) as (tier, _):
        for block, data in blocks:
            tier.put(block, data, owned=True)
        before = len(list((tmp_path / OWNED).glob("g-*")))
        fresh, more = make_block(200_000, 100), make_block(200_000, 101)
        left = [1, 1_000]
        moved = Moved()

        def full(point: str) -> None:
            if point == "shard.before_put" and left[0]:
                left[0] -= 1
                raise OSError(28, "No space left on device")

        with faultpoints.listening(full):
            assert tier.put(*fresh, owned=True)
            assert len(list((tmp_path / OWNED).glob("g-*"))) == before - 1
            left[0] = left[1]
            assert not tier.put(*more, owned=True)
        assert moved("shardgit_tier_drops_total") == {"no_space": 2}
        assert moved("shardgit_tier_writes_total") == {"owned done": 1, "owned failed": 1}
        assert read(tier, blocks[0][0]) is None


def test_only_what_is_durable_outlives_a_crash_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_folder, "QUIET_S", -1.0)
    blocks = [make_block(300_000, seed) for seed in range(10)]
    with opened(tmp_path, owned=8 * MIB) as (tier, workers):
        for block, data in blocks:
            tier.put(block, data, owned=True)
        tier.look_around()
        settle(workers)
        assert read(tier, blocks[-1][0]) == blocks[-1][1]
    sealed = {path.parent.name for path in (tmp_path / OWNED).glob(f"g-*/{SEALED}")}
    every = {path.name for path in (tmp_path / OWNED).glob("g-*")}
    assert every - sealed == {max(every)}
    with opened(tmp_path) as (tier, _):  # the same boot: nothing is lost
        assert tier.has_many([blocks[-1][0]]) == [True]
    (tmp_path / OWNED / BOOT).write_text("another")
    with opened(tmp_path, owned=8 * MIB) as (tier, _):
        assert {path.name for path in (tmp_path / OWNED).glob("g-*")} == sealed
        assert read(tier, blocks[0][0]) == blocks[0][1]
        tier.delete_many([blocks[0][0]])
    left = {path.parent.name for path in (tmp_path / OWNED).glob(f"g-*/{SEALED}")}
    assert sealed - left == {min(sealed)}


def test_often_asked_foreign_blocks_outlive_a_scan_of_others(tmp_path: Path) -> None:
    with opened(tmp_path, foreign=8 * MIB) as (tier, workers):
        hot = [make_block(50_000, seed) for seed in range(20)]
        cold = [make_block(50_000, 1_000 + seed) for seed in range(400)]
        moved = Moved()

        def ask(block: BlockId, data: bytes) -> bool:
            if tier.use(block, len) is not None:
                return True
            tier.put(block, data, owned=False)
            return False

        for _ in range(4):
            for one in hot:
                ask(*one)
        for at, one in enumerate(cold):
            ask(*one)
            ask(*hot[at % len(hot)])
            settle(workers)
        assert tier.bytes_used()[FOREIGN] <= 8 * MIB
        assert sum(ask(*one) for one in hot) == len(hot)
        assert sum(tier.has_many([block for block, _ in cold])) < 150
        writes, reads = moved("shardgit_tier_writes_total"), moved("shardgit_tier_reads_total")
        assert writes["foreign refused"] > 250
        assert writes["foreign refused"] + writes["foreign done"] == reads["miss"]


def test_a_second_process_finds_what_the_first_has_put_and_begun(tmp_path: Path) -> None:
    blocks = [make_block(200_000, seed) for seed in range(40)]
    child = textwrap.dedent("""
        import sys
        from pathlib import Path
        from shardgit.blocks.generations import Generations
        from shardgit.workers import Workers

        part = Generations(Path(sys.argv[1]), Workers(1), bytes_max=8 << 20)
        for line in sys.stdin:
            found = part.use(bytes.fromhex(line), bytes)
            print("none" if found is None else len(found.result), flush=True)
        part.close()
    """)
    workers = Workers(1)
    part = Generations(tmp_path, workers, bytes_max=8 * MIB)
    with subprocess.Popen(
        [sys.executable, "-c", child, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for block, data in blocks:
            assert part.put([(block, data)]) == 1
            process.stdin.write(block.hex() + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "200000\n"
        process.stdin.close()
        assert process.wait(30) == 0
    assert len(list(tmp_path.glob("g-*"))) == GENERATIONS
    workers.close()
    part.close()


BEGINNER = """
import sys
from pathlib import Path
from shardgit.blocks.generations import Generations
from shardgit.workers import Workers

data, workers = sys.stdin.buffer.read(), Workers(1)
part = Generations(Path(sys.argv[1]), workers, bytes_max=8 << 20)
assert part.put([(bytes.fromhex(sys.argv[2]), data)]) == 1
workers.close()
part.close()
"""


def test_who_misses_in_a_generation_that_another_thread_has_just_taken_over_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, data = make_block(5_000, 1)
    workers = Workers(1)
    part = Generations(tmp_path, workers, bytes_max=8 * MIB)
    words = [sys.executable, "-c", BEGINNER, str(tmp_path), block.hex()]
    subprocess.run(words, input=data, check=True, timeout=WAIT_S)
    take_over = Generations._refresh

    def second(part: Generations) -> None:
        take_over(part)  # of a thread that was faster
        take_over(part)

    monkeypatch.setattr(Generations, "_refresh", second)
    assert part.use(block, bytes) == Found(data, ages=False)
    workers.close()
    part.close()


def test_a_generation_is_dropped_once_and_not_the_next_of_its_number(tmp_path: Path) -> None:
    workers = Workers(1)
    part = Generations(tmp_path, workers, bytes_max=8 * MIB)
    part.put([make_block(5_000, 1)])
    (first,) = part._open
    part._drop_damaged(first)
    block, data = make_block(5_000, 2)
    part.put([(block, data)])
    assert [one.number for one in part._open] == [first.number]
    part._drop_damaged(first)  # of a thread that met the same damage
    assert part.use(block, bytes) == Found(data, ages=False)
    workers.close()
    part.close()


WRITER = """
import random, sys
from pathlib import Path
from shardgit.blocks.block import HEADER_SIZE, BlockKind, block_id, new_header
from shardgit.blocks.generations import Generations
from shardgit.oid import HashKind, PoolId
from shardgit.workers import Workers

chance, workers = random.Random(int(sys.argv[2])), Workers(1)
part = Generations(Path(sys.argv[1]), workers, bytes_max=8 << 20)
hits = 0
for _ in range(150):
    size = chance.randrange(100, 150_000)
    head = new_header(BlockKind.SEGMENT, HashKind.SHA1, PoolId(b"p" * 16), size)
    data = head + chance.randbytes(size - HEADER_SIZE)
    part.put([(block_id(data), data)])
    found = part.use(block_id(data), bytes)
    if found is not None:  # unless the others have written 7 MiB meanwhile
        assert found.result == data
        hits += 1
assert hits
workers.close()
part.close()
"""


def test_processes_that_write_at_once_and_die_leave_what_others_can_use(tmp_path: Path) -> None:
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(seed)],
            env={**os.environ, "SHARDGIT_FAULT": fault} if fault else None,
        )
        for seed, fault in enumerate(["", "", "shard.before_put:40", "shard.after_put:70"])
    ]
    codes = [process.wait(120) for process in begun]
    assert codes == [0, 0, -signal.SIGKILL, -signal.SIGKILL]
    used = sum(file.stat().st_size for file in tmp_path.glob("g-*/*"))
    assert used <= 8 * MIB + len(begun) * 150_000 + GENERATIONS * MIB // 8
    workers = Workers(1)
    part = Generations(tmp_path, workers, bytes_max=8 * MIB)
    there = dict(part.scan())
    assert there
    for block, size in there.items():
        found = part.use(block, bytes)
        assert isinstance(found, Found)
        assert len(found.result) == size
    workers.close()
    part.close()


def test_the_sketch_counts_up_to_its_most_and_forgets_by_halves(tmp_path: Path) -> None:
    sketch = Sketch(tmp_path / "sketch", blocks=100)
    ids = [block_id(bytes([n])) for n in range(50)]
    for _ in range(30):
        sketch.count(ids[0])
    for block in ids[1:]:
        sketch.count(block)
    assert sketch.estimate(ids[0]) == COUNT_MAX
    assert sum(sketch.estimate(block) == 1 for block in ids[1:]) > 40
    shared = Sketch(tmp_path / "sketch", blocks=100)
    assert shared.estimate(ids[0]) == COUNT_MAX
    for _ in range(sketch.sample):
        sketch.count(ids[1])
    assert shared.estimate(ids[0]) == COUNT_MAX // 2
    sketch.close()
    shared.close()


def test_a_generation_that_was_just_written_to_is_not_sealed(tmp_path: Path) -> None:
    blocks = [make_block(300_000, seed) for seed in range(10)]
    with opened(tmp_path, owned=8 * MIB) as (tier, workers):
        for block, data in blocks:
            tier.put(block, data, owned=True)
        tier.look_around()
        settle(workers)
    assert not list((tmp_path / OWNED).glob(f"g-*/{SEALED}"))
