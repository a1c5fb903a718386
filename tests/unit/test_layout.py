"""The folder of a store: made whole or not at all, and opened only when it is what it says."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shardgit.blocks.layout import StoreLayout, create_layout, initial_ring, open_layout
from shardgit.errors import (
    AlreadyExists,
    InvalidArgument,
    NotAStore,
    Refused,
    ShardgitError,
    StorageFull,
    StoreBusy,
    StoreFormatUnknown,
)
from shardgit.lmdbenv import Environment


def fill(layout: StoreLayout) -> None:
    for path in (layout.journal, *(place.path for place in layout.shards)):
        Environment(path, create=True).close()


def make(folder: Path, shards: int = 2, paths: list[Path] | None = None) -> StoreLayout:
    return create_layout(folder, shards=shards, shard_paths=paths, fill=fill)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_store_is_opened_as_it_was_made(tmp_path: Path) -> None:
    made = make(tmp_path / "s", 3)
    assert open_layout(tmp_path / "s") == made
    assert [place.number for place in made.shards] == [0, 1, 2]
    assert made.shards[2].path == tmp_path / "s" / "shards" / "002"
    assert sorted(os.listdir(tmp_path / "s")) == ["format", "journal", "shards", "tmp"]
    assert (tmp_path / "s" / "format").read_text().startswith("shardgit store 1\n{")


def test_a_store_can_be_moved_with_the_shards_inside_it(tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk" / "a"
    made = make(tmp_path / "s", paths=[tmp_path / "s" / "shards" / "000", elsewhere])
    shutil.move(tmp_path / "s", tmp_path / "t")
    moved = open_layout(tmp_path / "t")
    assert moved.store_id == made.store_id
    assert moved.shards[0].path == tmp_path / "t" / "shards" / "000"
    assert moved.shards[1].path == elsewhere


def test_a_relative_path_is_meant_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("s"), paths=[Path("disk1"), Path("disk2")])
    monkeypatch.chdir("/")
    layout = open_layout(tmp_path / "s")
    assert [place.path for place in layout.shards] == [tmp_path / "disk1", tmp_path / "disk2"]


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NotAStore):
            open_layout(folder)
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotAStore):
        open_layout(tmp_path / "file")
    with pytest.raises(ShardgitError):
        make(tmp_path / "file")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe\x00",
        b"shardgit store\n{}",
        b"shardgit store x\n{}",
        "shardgit store ²\n{}".encode(),
        b"shardgit store " + b"9" * 10_000 + b"\n{}",
        b"borg store 1\n{}",
        b"shardgit store 1\n",
        b"shardgit store 1\n{}",
        b"shardgit store 1\n[]",
        b"shardgit store 1\nnull",
        b"shardgit store 1\n" + b"[" * 100_000,
        b'shardgit store 1\n{"store": 5, "shards": []}',
        b'shardgit store 1\n{"store": "00000000-0000-0000-0000-000000000000", "shards": []}',
        b'shardgit store 1\n{"store": "00000000-0000-0000-0000-000000000000", "shards": [{}]}',
        b'shardgit store 1\n{"store": "00000000-0000-0000-0000-000000000000",'
        b' "shards": [{"number": 0, "path": 7}]}',
    ],
)
def test_a_format_file_that_is_off_is_refused(tmp_path: Path, text: bytes) -> None:
    make(tmp_path / "s")
    (tmp_path / "s" / "format").write_bytes(text)
    with pytest.raises(NotAStore):
        open_layout(tmp_path / "s")


def test_a_store_of_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path / "s")
    (tmp_path / "s" / "format").write_text("shardgit store 2\nwho knows")
    with pytest.raises(StoreFormatUnknown):
        open_layout(tmp_path / "s")


def test_a_store_is_not_made_over_another_or_over_files(tmp_path: Path) -> None:
    make(tmp_path / "s")
    with pytest.raises(AlreadyExists):
        make(tmp_path / "s")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "mine").write_text("x")
    with pytest.raises(Refused):
        make(tmp_path / "t")
    assert names(tmp_path / "t") == ["mine"]


def test_an_empty_disk_with_lost_and_found_will_do(tmp_path: Path) -> None:
    for name in ("s", "disk"):
        (tmp_path / name / "lost+found").mkdir(parents=True)
    make(tmp_path / "s", paths=[tmp_path / "disk"])
    open_layout(tmp_path / "s")


def test_a_swapped_or_missing_shard_is_refused(tmp_path: Path) -> None:
    disks = [tmp_path / "a", tmp_path / "b"]
    make(tmp_path / "s", paths=disks)
    make(tmp_path / "t", paths=[tmp_path / "c", tmp_path / "d"])
    disks[0].rename(tmp_path / "x")
    with pytest.raises(Refused, match="mounted"):
        open_layout(tmp_path / "s")
    disks[0].mkdir()
    with pytest.raises(Refused, match="mounted"):
        open_layout(tmp_path / "s")
    disks[0].rmdir()
    disks[1].rename(disks[0])
    (tmp_path / "x").rename(disks[1])
    with pytest.raises(Refused, match="another"):
        open_layout(tmp_path / "s")
    disks[1].rename(tmp_path / "x")
    disks[0].rename(disks[1])
    (tmp_path / "c").rename(disks[0])
    with pytest.raises(Refused, match="another"):
        open_layout(tmp_path / "s")
    (disks[0] / "shard.json").write_bytes(b"\xff")
    with pytest.raises(Refused):
        open_layout(tmp_path / "s")


@pytest.mark.parametrize("paths", [["a", "a"], ["a", "a/b"], ["a/b", "a"], ["s"], ["s/journal"]])
def test_shards_that_share_a_folder_are_refused(tmp_path: Path, paths: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        make(tmp_path / "s", paths=[tmp_path / path for path in paths])
    assert names(tmp_path) == []


@pytest.mark.parametrize("shards", [0, -1, 257])
def test_a_store_has_1_to_256_shards(tmp_path: Path, shards: int) -> None:
    with pytest.raises(InvalidArgument):
        make(tmp_path / "s", shards)


def test_an_error_while_it_is_made_leaves_the_folders_as_they_were(tmp_path: Path) -> None:
    def fail(layout: StoreLayout) -> None:
        fill(layout)
        raise StorageFull("no space left")

    (tmp_path / "disk").mkdir()
    for folder in (tmp_path / "s", tmp_path / "disk"):
        with pytest.raises(StorageFull):
            create_layout(folder, shard_paths=[tmp_path / "e", tmp_path / "f"], fill=fail)
    for path in (tmp_path / "e", tmp_path / "f"):
        assert names(path) == []
    assert not (tmp_path / "s").exists()
    assert names(tmp_path / "disk") == []
    (tmp_path / "f" / "mine").write_text("x")
    with pytest.raises(Refused):
        make(tmp_path / "s", paths=[tmp_path / "e", tmp_path / "f"])
    assert names(tmp_path) == ["disk", "e", "f", "f/mine"]


CUT_SHORT = """
import os, sys
from pathlib import Path
from shardgit.blocks.layout import create_layout
from shardgit.lmdbenv import Environment
def fill(layout):
    for n, path in enumerate((layout.journal, *(p.path for p in layout.shards))):
        if n == int(sys.argv[2]):
            os.kill(os.getpid(), 9)
        Environment(path, create=True).close()
replace = Path.replace
def cut(self, target):
    if Path(target).name == "format":
        os.kill(os.getpid(), 9)
    return replace(self, target)
Path.replace = cut
root = Path(sys.argv[1])
create_layout(root / "s", shard_paths=[root / "e", root / "s" / "shards" / "001"], fill=fill)
"""


@pytest.mark.parametrize("at", [0, 1, 2, 9])
def test_a_store_whose_making_was_killed_is_made_again(tmp_path: Path, at: int) -> None:
    command = [sys.executable, "-c", CUT_SHORT, str(tmp_path), str(at)]
    assert subprocess.run(command, check=False).returncode == -9
    with pytest.raises(NotAStore, match="not made to its end"):
        open_layout(tmp_path / "s")
    (tmp_path / "s" / "shards").mkdir(exist_ok=True)
    made = make(tmp_path / "s", paths=[tmp_path / "e", tmp_path / "g"])
    assert open_layout(tmp_path / "s") == made
    assert "creating" not in os.listdir(tmp_path / "s")
    assert json.loads((tmp_path / "e" / "shard.json").read_text())["store"] == made.store_id


def test_two_do_not_make_one_store_at_once(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with (tmp_path / "s" / "creating").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreBusy):
            make(tmp_path / "s")
    make(tmp_path / "s")


def test_a_file_named_creating_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s" / "journal").mkdir(parents=True)
    (tmp_path / "s" / "creating").write_text("my notes")
    with pytest.raises(Refused):
        make(tmp_path / "s")
    assert names(tmp_path / "s") == ["creating", "journal"]


def test_the_first_ring_is_over_all_shards_with_a_zone_for_each_disk(tmp_path: Path) -> None:
    layout = make(tmp_path / "s", 3)
    ring = initial_ring(layout)
    assert ring.replicas == 1
    assert [(s.number, s.zone, s.weight) for s in ring.shards] == [(n, 0, 1.0) for n in range(3)]
    assert initial_ring(layout, replicas=3).replicas == 3
    with pytest.raises(InvalidArgument):
        initial_ring(layout, replicas=4)
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is only one disk")
    disk = other / f"shardgit-test-{os.getpid()}"
    try:
        layout = make(tmp_path / "t", paths=[tmp_path / "a", disk, tmp_path / "b"])
        assert [shard.zone for shard in initial_ring(layout).shards] == [0, 1, 0]
    finally:
        shutil.rmtree(disk, ignore_errors=True)
