"""An import that is killed or runs out of room leaves the repository as it was, and is simply repeated."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from reference.gits import extend_history, git, make_history, reachable, refs

from shardgit.errors import RepositoryMissing, StorageFull
from shardgit.node import create_store, open_store
from shardgit.operate.verify import verify_repository
from shardgit.processes import born
from shardgit.service.exporting import export_repository
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_history(tmp_path_factory.mktemp("origin") / "work", commits=60)
    (folder / "noise").write_bytes(random.Random(1).randbytes(12 << 20))
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "noise")
    return folder


def test_a_killed_import_leaves_nothing_half_there(origin: Path, tmp_path: Path) -> None:
    store = tmp_path / "data"
    create_store(store, shards=2)
    with open_store(store) as opened:
        import_repository(opened, "demo", str(origin))
    before = refs(origin)
    whole = len(reachable(origin))
    extend_history(origin, commits=15, rand=random.Random(9), first=500)
    (origin / "noise").write_bytes(random.Random(2).randbytes(12 << 20))
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "more noise")
    command = [
        sys.executable,
        "-m",
        "shardgit",
        "repo",
        "import",
        "demo",
        str(origin),
        "--data",
        str(store),
    ]
    killed = 0
    for number in range(14):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.15 + 0.05 * number)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        out = tmp_path / f"out{number}.git"
        with open_store(store) as opened:
            export_repository(opened, "demo", out)
            assert verify_repository(opened, "demo").bad == ()
        git(out, "fsck", "--strict")
        # All of the new state or all of the old one.
        assert (refs(out), len(reachable(out))) in (
            (before, whole),
            (refs(origin), len(reachable(origin))),
        )
    assert killed >= 3
    left = [file.name for file in (store / "tmp").iterdir() if file.suffix != ".lock"]
    assert sorted(left) == ["leases", "trailers"]  # no pack of loose objects
    with open_store(store) as opened:
        import_repository(opened, "demo", str(origin))
        export_repository(opened, "demo", tmp_path / "last.git")
    assert refs(tmp_path / "last.git") == refs(origin)
    assert reachable(tmp_path / "last.git") == reachable(origin)


def test_a_full_shard_refuses_the_import_and_loses_nothing(origin: Path, tmp_path: Path) -> None:
    small = make_history(tmp_path / "small", commits=12)
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as opened:
        import_repository(opened, "small", str(small))
        for shard in opened.routed.shards.values():
            shard.bytes_max = 4 << 20
        with pytest.raises(StorageFull):
            import_repository(opened, "large", str(origin))
        export_repository(opened, "small", tmp_path / "out.git")
        git(tmp_path / "out.git", "fsck", "--strict")
        with opened.journal.snapshot() as snapshot, pytest.raises(RepositoryMissing):
            opened.repository(snapshot, "large")
        for shard in opened.routed.shards.values():
            shard.bytes_max = None
        assert import_repository(opened, "large", str(origin)).objects == len(reachable(origin))


@pytest.mark.parametrize("damage", ["truncate", "flip", "no pack", "no object"])
def test_a_damaged_source_is_refused_and_makes_no_repository(tmp_path: Path, damage: str) -> None:
    from shardgit.errors import MalformedInput

    folder = make_history(tmp_path / "origin", commits=12)
    git(folder, "repack", "-adfq")
    (pack,) = (folder / ".git/objects/pack").glob("*.pack")
    pack.chmod(0o644)
    data = bytearray(pack.read_bytes())
    if damage == "truncate":
        pack.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 4
        pack.write_bytes(data)
    elif damage == "no pack":
        pack.write_bytes(b"")
    else:
        pack.unlink()
        pack.with_suffix(".idx").unlink()
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as opened:
        with pytest.raises(MalformedInput):
            import_repository(opened, "demo", str(folder))
        with opened.journal.snapshot() as snapshot, pytest.raises(RepositoryMissing):
            opened.repository(snapshot, "demo")


def test_the_mirror_of_an_import_that_was_killed_is_removed_by_the_next(
    origin: Path, tmp_path: Path
) -> None:
    create_store(tmp_path / "data", shards=1)
    with open_store(tmp_path / "data") as store:
        mine = store.scratch / f"mirror-{os.getpid()}-{born(os.getpid())}-x"
        dead = store.scratch / f"mirror-{os.getpid()}-7-y"  # of one that had our number before
        for folder in (mine, dead):
            (folder / "mirror.git").mkdir(parents=True)
        import_repository(store, "demo", origin.as_uri())
        assert [file.name for file in store.scratch.glob("mirror-*")] == [mine.name]
