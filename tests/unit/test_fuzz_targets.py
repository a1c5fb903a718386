"""What the fuzzer runs is right for its own seeds, and for some hundred inputs near them."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.corpora import of_file
from fuzz.run import mutate
from fuzz.targets import TARGETS
from served import git, small_repository

from shardgit.errors import ShardgitError

ROOT = Path(__file__).parents[2]
KERNELS = sorted(set(TARGETS) - {"http"})  # that one starts a server


@pytest.mark.parametrize("name", KERNELS)
def test_inputs_give_a_value_or_one_typed_error(name: str) -> None:
    seeds, job, mend = TARGETS[name]()
    for seed in seeds:
        job(seed)
    rand = random.Random(3)
    for _ in range(40):
        with contextlib.suppress(ShardgitError):
            job(mend(mutate(rand, seeds)))


def test_make_runs_all_of_them() -> None:
    made = (ROOT / "tests" / "fuzz" / "Makefile").read_text()
    (row,) = [line for line in made.splitlines() if line.startswith("TARGETS :=")]
    assert row.split()[2:] == sorted(TARGETS)


def test_other_projects_files_become_seeds(tmp_path: Path) -> None:
    source = small_repository(tmp_path / "source")
    git(source, "repack", "-adq")
    (source / "a.request").write_bytes(b"0000")
    (source / ".gitmodules").write_bytes(b"[submodule]")
    command = [
        sys.executable,
        str(ROOT / "tests/fuzz/corpora.py"),
        "--out",
        str(tmp_path / "seeds"),
    ]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=True)
    assert {"pack", "idx", "object", "fsck", "request"} <= set(done.stdout.split())
    for name in ("pack", "idx", "object", "request"):
        assert list((tmp_path / "seeds" / name).iterdir())
    empty = tmp_path / "empty"
    empty.mkdir()
    assert subprocess.run([*command, str(empty)], capture_output=True, check=False).returncode == 1


def test_loose_objects_are_taken_apart() -> None:
    import zlib

    path = "x/.gitted/objects/" + "ab/" + "c" * 38
    found = list(of_file(path, zlib.compress(b"commit 3\0abc")))
    assert found == [("object", b"\1abc"), ("fsck", b"\1abc")]
    assert list(of_file(path, b"no zlib")) == []
