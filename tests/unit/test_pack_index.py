"""Where an .idx says that entries of its pack begin."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.gits import git, make_history

from shardgit._packstream import index_offsets
from shardgit.oid import HashKind

if TYPE_CHECKING:
    from pathlib import Path

FAR = 1 << 31  # from which on an offset stands in the table of large ones


def index_of(offsets: list[int], kind: HashKind) -> bytes:
    """Return an .idx of objects whose ids do not matter."""
    large = [each for each in offsets if each >= FAR]
    words = [FAR | large.index(each) if each >= FAR else each for each in offsets]
    return b"".join(
        (
            b"\xfftOc",
            struct.pack(">I", 2),
            bytes(4 * 255) + struct.pack(">I", len(offsets)),
            bytes(len(offsets) * (kind.size + 4)),
            struct.pack(f">{len(words)}I", *words),
            struct.pack(f">{len(large)}Q", *large),
            bytes(2 * kind.size),
        )
    )


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_offsets_are_those_that_git_shows(tmp_path: Path, algorithm: str) -> None:
    origin = make_history(tmp_path / "origin", commits=20, algorithm=algorithm)
    git(origin, "repack", "-adq")
    (index,) = (origin / ".git" / "objects" / "pack").glob("*.idx")
    shown = git(origin, "show-index", f"--object-format={algorithm}", stdin=index.read_bytes())
    wanted = sorted(int(line.split(b" ")[0]) for line in shown.splitlines())
    kind = HashKind.SHA1 if algorithm == "sha1" else HashKind.SHA256
    found = index_offsets(index.read_bytes(), kind)
    assert found is not None
    assert list(found) == wanted


@given(st.lists(st.integers(0, (1 << 63) - 1), unique=True), st.sampled_from(HashKind))
def test_large_offsets_stand_in_their_own_table(offsets: list[int], kind: HashKind) -> None:
    found = index_offsets(index_of(offsets, kind), kind)
    assert found is not None
    assert list(found) == sorted(offsets)


@given(st.integers(0, 1 << 32), st.sampled_from(HashKind))
def test_damaged_ones_are_a_hint_or_none(seed: int, kind: HashKind) -> None:
    rand = random.Random(seed)
    data = bytearray(index_of([rand.randrange(1 << 40) for _ in range(rand.randrange(9))], kind))
    for _ in range(rand.randint(1, 4)):
        data[rand.randrange(len(data))] = rand.randrange(256)
    del data[rand.randrange(len(data) + 1) :]
    found = index_offsets(bytes(data), kind)
    assert found is None or list(found) == sorted(found)


def test_what_is_cut_short_or_points_nowhere_is_none() -> None:
    whole = index_of([12, 99, FAR + 5], HashKind.SHA1)
    for end in range(len(whole) - 8):
        assert index_offsets(whole[:end], HashKind.SHA1) is None
    assert index_offsets(b"", HashKind.SHA1) is None
    assert index_offsets(b"\0" * 2000, HashKind.SHA1) is None


@pytest.mark.parametrize("kind", list(HashKind))
def test_an_index_of_nothing_has_no_places(kind: HashKind) -> None:
    """The sanitizers saw an array of none sorted."""
    found = index_offsets(index_of([], kind), kind)
    assert found is not None
    assert list(found) == []
