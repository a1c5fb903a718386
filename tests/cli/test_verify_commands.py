"""shard verify, shard repair and repo verify: on a folder, through a server, and on a store that does not open."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from served import clean_environment, git, serving, shardgit

from shardgit.blocks.block import BlockKind, parse_header
from shardgit.node import open_store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in ./data with one repository of some blocks."""
    folder = tmp_path_factory.mktemp("verified")
    source = folder / "source"
    source.mkdir()
    git(source, "init", "--quiet", "--initial-branch=main")
    chance = random.Random(4)
    for number in range(8):
        (source / f"{number}.bin").write_bytes(chance.randbytes(200_000))
        git(source, "add", ".")
        git(source, "commit", "--quiet", "-m", f"commit {number}")
    assert shardgit("init", "data", "--shards", "2", cwd=folder).returncode == 0
    assert shardgit("repo", "import", "demo", "source", cwd=folder).returncode == 0
    return folder


def run(folder: Path, *words: str) -> tuple[int, Any]:
    done = shardgit(*words, "--json", cwd=folder)
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def lose(data: Path, kind: BlockKind) -> list[str]:
    """Delete all blocks of a kind; returns their ids."""
    with open_store(data) as store:
        gone = []
        for block, _ in list(store.blocks.scan_sync()):
            (block_data,) = store.blocks.get_many_sync([block])
            if block_data is not None and parse_header(block_data).kind is kind:
                gone.append(block)
        store.blocks.delete_many_sync(gone)
    assert gone
    return [block.hex() for block in gone]


@pytest.mark.parametrize("served", [pytest.param(False, marks=pytest.mark.heavy), True])
def test_lost_blocks_are_found_and_made_anew(made: Path, tmp_path: Path, *, served: bool) -> None:
    data = tmp_path / "data"
    shutil.copytree(made / "data", data)
    gone = lose(data, BlockKind.INDEX) + lose(data, BlockKind.GRAPH)

    def go(*target: str) -> None:
        code, found = run(tmp_path, "shard", "verify", *target)
        assert code == 1
        assert found["counts"] == {"missing_block": len(gone)}
        assert {one["block"] for one in found["findings"]} == set(gone)
        assert {tuple(one["repositories"]) for one in found["findings"]} == {("demo",)}
        words = shardgit("shard", "verify", *target, cwd=tmp_path)
        assert words.returncode == 1
        assert "run: shardgit shard repair\n" in words.stderr
        code, done = run(tmp_path, "shard", "repair", "--dry-run", *target)
        assert (code, done["action_count"], done["dry_run"]) == (0, 1, True)
        code, done = run(tmp_path, "shard", "repair", *target)
        assert (code, done["left"]) == (0, [])
        code, found = run(tmp_path, "shard", "verify", "--objects", *target)
        assert (code, found["findings"]) == (0, [])
        objects = git(made / "source", "count-objects", "-v").split("count: ")[1].split()[0]
        assert found["objects"] == int(objects)
        code, report = run(tmp_path, "repo", "verify", "demo", *target)
        assert (code, report["findings"]) == (0, [])

    if not served:
        go("--data", str(data))
        assert shardgit("repo", "export", "demo", "out.git", cwd=tmp_path).returncode == 0
    else:
        with serving(data, "--workers", "1") as server:
            go("--server", server.grpc)
            git(tmp_path, "clone", "--quiet", "--mirror", server.url("demo"), "out.git")
    fsck = ["git", "-C", str(tmp_path / "out.git"), "fsck", "--strict"]
    judged = subprocess.run(fsck, env=clean_environment(), capture_output=True, check=False)
    assert (judged.returncode, judged.stdout) == (0, b"")


def test_what_cannot_be_mended_is_listed_and_comes_back_from_another_store(
    made: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(made / "data", data)
    gone = lose(data, BlockKind.SEGMENT)
    target = ["--data", str(data)]
    code, done = run(tmp_path, "shard", "repair", *target)
    assert code == 1
    assert {one["block"] for one in done["damage"]} == set(gone)
    assert {ref for one in done["damage"] for ref in one["refs"]} == {"demo refs/heads/main"}
    code, found = run(tmp_path, "shard", "verify", *target)
    assert (code, found["counts"]["missing_block"]) == (1, len(gone))
    code, done = run(tmp_path, "shard", "repair", "--from", str(made / "data"), *target)
    assert (code, done["left"], done["action_count"]) == (0, [], len(gone))
    assert run(tmp_path, "shard", "verify", "--objects", *target)[0] == 0


def test_a_store_that_does_not_open_is_verified_all_the_same(made: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(made / "data", data)
    # The fullest: the few blocks go where chance says, and one shard may have none.
    file = max(data.glob("shards/*/data.mdb"), key=lambda one: one.stat().st_size)
    file.write_bytes(file.read_bytes()[: 6 * 4_096])
    assert run(tmp_path, "repo", "list", "--data", str(data))[0] == 1
    code, found = run(tmp_path, "shard", "verify", "--data", str(data))
    assert code == 1
    assert found["counts"]["damaged_page"] > 0
    assert {one["shard"] for one in found["findings"]} == {int(file.parent.name)}


def test_one_shard_alone_and_words_that_do_not_fit(made: Path) -> None:
    code, found = run(made, "shard", "verify", "--shard", "1")
    assert (code, found["findings"]) == (0, [])
    code, error = run(made, "shard", "verify", "--shard", "7")
    assert code == 1
    assert json.loads(error)["error"]["reason"] == "SHARD_MISSING"
    code, error = run(made, "shard", "repair", "--from", "nowhere")
    assert code == 1
    assert json.loads(error)["error"]["reason"] == "NOT_FOUND"
