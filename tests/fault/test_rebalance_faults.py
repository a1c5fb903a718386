"""Rebalances, and changes of the shards, that die at every named point; writers of other processes meanwhile."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from moving import check_whole, full_store, opened, parts, placed
from served import clean_environment, shardgit

import shardgit as package
from shardgit.oid import BlockId
from shardgit.operate.operation import silent_control
from shardgit.operate.rebalance import status
from shardgit.operate.receipt import check_receipt, receipt_of
from shardgit.ring.ring import Phase

if TYPE_CHECKING:
    from moving import Blocks

CALM = silent_control()
SOURCE = Path(package.__file__).parent
# With --keep 0 and small groups, each of these is reached; blocks are put and deleted at their targets and sources.
MOVING = [
    "rebalance.before_begin",
    "rebalance.after_begin",
    "shard.before_put",
    "shard.after_put",
    "rebalance.before_checkpoint",
    "rebalance.after_checkpoint",
    "rebalance.before_move",
    "rebalance.after_move",
    "rebalance.before_settle",
    "rebalance.after_settle",
    "shard.before_delete",
    "shard.after_delete",
    "rebalance.before_end",
    "rebalance.after_end",
]
ABORTING = [
    "rebalance.before_abort",
    "rebalance.after_abort",
    "shard.before_delete",
    "rebalance.before_end",
]
GOING_BACK = [
    "rebalance.before_back",
    "rebalance.after_back",
    "shard.before_put",
    "rebalance.after_checkpoint",
    "rebalance.after_move",
    "rebalance.after_settle",
]

CHANGES = [
    (("shard", "add"), "shards.before_add"),
    (("shard", "add"), "shards.after_add"),
    (("shard", "add"), "ring.before_add"),
    (("shard", "add"), "ring.after_add"),
    (("shard", "remove", "3"), "ring.before_remove"),
    (("shard", "remove", "3"), "ring.after_remove"),
    (("shard", "remove", "3"), "shards.before_drop"),
    (("shard", "remove", "3"), "shards.after_drop"),
    (("shard", "weight", "1", "2"), "ring.before_weight"),
    (("shard", "weight", "1", "2"), "ring.after_weight"),
]


HOLDING = ["holding.before_commit", "holding.after_commit"]


@pytest.fixture(scope="module")
def blocks() -> Blocks:
    return parts(120, most=4_000)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, blocks: Blocks) -> Path:
    """A store of four shards, the last of them new."""
    folder = full_store(tmp_path_factory.mktemp("made") / "data", blocks)
    run(folder, "shard", "add")
    return folder


@pytest.fixture
def data(tmp_path: Path, made: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def run(folder: Path, *words: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command on a store; it must go well, or be killed at the fault."""
    more = {"SHARDGIT_FAULT": fault} if fault else {}
    done = shardgit(*words, "--data", str(folder), cwd=folder.parent, environment=more)
    wanted = -signal.SIGKILL if fault else 0
    assert done.returncode == wanted, (words, fault, done)
    return done


def rebalance(folder: Path, *words: str, fault: str = "") -> Any:
    done = run(
        folder, "shard", "rebalance", "--keep", "0", "--eager", "--json", *words, fault=fault
    )
    return None if fault else json.loads(done.stdout)


def test_every_point_is_killed_here() -> None:
    source = "".join(file.read_text() for file in sorted(SOURCE.rglob("*.py")))
    found = set(re.findall(r'reach\("((?:holding|rebalance|ring|shards)\.[a-z_]+)"\)', source))
    killed = {*MOVING, *ABORTING, *GOING_BACK, *HOLDING, *(point for _, point in CHANGES)}
    assert found == {name for name in killed if not name.startswith("shard.")}


@pytest.mark.parametrize("point", MOVING)
def test_a_rebalance_that_is_killed_goes_on(data: Path, blocks: Blocks, point: str) -> None:
    rebalance(data, fault=point)
    extra = parts(8, seed=9, most=2_000)
    with opened(data) as store:
        left = status(store)
        assert store.blocks.get_many_sync(list(blocks)) == list(blocks.values())
        store.blocks.put_many_sync(list(extra.items()))
    receipt = rebalance(data)
    with opened(data) as store:
        now = status(store)
        assert now is not None
        assert (now.state, store.routed.ring.phase) == ("done", Phase.SETTLED)
        if left is not None and point != "rebalance.after_end":
            assert now.id == left.id == receipt["operation"]
        check_whole(store, blocks | extra)
        assert check_receipt(store, receipt_of(store), control=CALM).ok


@pytest.mark.parametrize(
    ("reached", "point"),
    [("rebalance.after_begin", point) for point in ABORTING]
    + [("rebalance.after_move", point) for point in GOING_BACK],
)
def test_an_abort_that_is_killed_goes_on(
    data: Path, blocks: Blocks, reached: str, point: str
) -> None:
    with opened(data) as store:
        table = store.routed.ring.table
    if reached == "rebalance.after_begin":  # with some copies made
        rebalance(data, fault="rebalance.before_checkpoint")
    else:
        rebalance(data, fault=reached)
    rebalance(data, "--abort", fault=point)
    extra = parts(8, seed=9, most=2_000)
    with opened(data) as store:
        assert store.blocks.get_many_sync(list(blocks)) == list(blocks.values())
        store.blocks.put_many_sync(list(extra.items()))
    undone = point == "rebalance.before_abort" or point == "rebalance.before_back"
    words = ["--abort"] if undone else []
    assert rebalance(data, *words)["state"] == "aborted"
    with opened(data) as store:
        assert store.routed.ring.table == table
        check_whole(store, blocks | extra)
        assert placed(store)[3] == set()


@pytest.mark.parametrize(("words", "point"), CHANGES)
def test_a_change_of_shards_that_is_killed_is_whole_or_is_repeated(
    data: Path, blocks: Blocks, words: tuple[str, ...], point: str
) -> None:
    if words[1] == "remove":
        run(data, "shard", "drain", "3")
    run(data, *words, fault=point)
    happened = point in ("ring.after_add", "shards.after_drop", "ring.after_weight")
    if not (happened and words[1] != "weight"):
        run(data, *words)
    with opened(data) as store:
        known = {"add": [0, 1, 2, 3, 4], "remove": [0, 1, 2], "weight": [0, 1, 2, 3]}[words[1]]
        assert [shard.number for shard in store.routed.ring.shards] == known
        check_whole(store, blocks)
    assert rebalance(data)["state"] == "done"
    with opened(data) as store:
        check_whole(store, blocks)


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
        assert store.blocks.has_many_sync(gone) == [False, False]
        os.write(1, b"".join(b"%s\\n" % block.hex().encode() for block in fresh if block not in gone))
"""


def test_writers_of_other_processes_lose_nothing_while_a_rebalance_dies_again_and_again(
    data: Path, blocks: Blocks, tmp_path: Path
) -> None:
    told = [tmp_path / "told-0", tmp_path / "told-1"]
    tests = str(Path(__file__).parent.parent)
    # The second writes other blocks: its turns are those of another seed.
    sources = [WRITER, WRITER.replace("1_000 + turn", "500_000 + turn")]
    writers = []
    for source, file in zip(sources, told, strict=True):
        with file.open("wb") as out:
            writers.append(
                subprocess.Popen(
                    [sys.executable, "-c", source, str(data), tests],
                    stdout=out,
                    stderr=subprocess.PIPE,
                    env=clean_environment(),
                )
            )
    try:
        while not all(file.exists() and file.stat().st_size > 5_000 for file in told):  # 20 turns
            time.sleep(0.05)
            assert all(writer.poll() is None for writer in writers)
        for point in ("shard.after_put", "rebalance.before_move", "rebalance.before_settle"):
            rebalance(data, fault=point)
        assert rebalance(data)["state"] == "done"
        run(data, "shard", "drain", "0")
        assert rebalance(data)["state"] == "done"
        # Sweeps what writers put under rings of before, and levels what they have put since.
        assert rebalance(data)["state"] == "done"
    finally:
        for writer in writers:
            writer.kill()
        errors = [writer.communicate()[1] for writer in writers]
    assert errors == [b"", b""]
    seeds: list[Blocks] = []
    for base, file in zip((1_000, 500_000), told, strict=True):
        turns = len(file.read_bytes().split()) // 4
        for turn in range(turns):
            seeds.append(parts(6, seed=base + turn, most=3_000))
    written = {block: data_ for made_ in seeds for block, data_ in made_.items()}
    lines = [line for file in told for line in file.read_text().split() if len(line) == 64]
    acknowledged = {BlockId(bytes.fromhex(line)) for line in lines}
    with opened(data) as store:
        found = store.blocks.get_many_sync(sorted(acknowledged))
        assert found == [written[block] for block in sorted(acknowledged)]
        assert store.blocks.get_many_sync(list(blocks)) == list(blocks.values())
        assert placed(store)[0] == set()


def test_a_store_that_lost_a_shards_folder_says_so(data: Path) -> None:
    shutil.rmtree(data / "shards" / "002")
    done = shardgit("shard", "list", "--data", str(data), cwd=data)
    assert done.returncode == 1
    assert "is its disk mounted" in done.stderr


@pytest.mark.parametrize("point", HOLDING)
@pytest.mark.parametrize("word", ["on", "off"])
def test_a_shard_is_made_read_only_by_the_same_command_again(
    data: Path, blocks: Blocks, word: str, point: str
) -> None:
    hold = ("shard", "read-only", "1")
    if word == "off":
        run(data, *hold, "on")
    run(data, *hold, word, fault=point)
    with opened(data) as store:
        assert store.blocks.get_many_sync(list(blocks)) == list(blocks.values())
    run(data, *hold, word)
    with opened(data) as store:
        assert set(store.routed.held.closed) == ({1} if word == "on" else set())
    run(data, *hold, "off")
    rebalance(data)
    with opened(data) as store:
        check_whole(store, blocks)
