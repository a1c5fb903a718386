"""Many ids looked up at once, in runs of which several may have one."""

from __future__ import annotations

import random
import struct
from array import array
from typing import TYPE_CHECKING

import pytest
from reference.gits import git

from shardgit import _segment
from shardgit.errors import Internal
from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.pool.finding import find_many
from shardgit.service.importing import import_repository
from shardgit.service.reading import Reading

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
# Blobs of these numbers and a line feed: the first 31 bits of their ids are the same, and the ids ascend.
ALIKE = (b"328209\n", b"1114952\n", b"1450414\n")


def test_what_several_rows_may_have_is_left_to_those_that_look_closer() -> None:
    """A run's index: found, not there, and two ids with one beginning."""
    ids = [bytes([1] * 8) + bytes(12), bytes([5] * 8) + bytes(12), bytes([5] * 8) + b"x" * 12]
    ids += [bytes([9] * 8) + bytes(12)]
    rows = struct.pack("<4I", 4, 5, 6, 7)
    piece = bytes(64) + _segment.index_payload(b"".join(ids), rows, 20)
    assert _segment.check_index(piece) == 4
    asked = [ids[3], b"\xee" * 20, ids[1], ids[0], bytes(20)]
    which, found = array("q", [4, 2, 1, 0]), array("q", [0] * 4)
    out = array("q", [-1] * 5)
    flat = b"".join(asked)
    assert _segment.index_find_all([piece], ids[0][:8], flat, 20, 100, which, found, out) == (2, 1)
    assert which[:2].tolist() == [4, 1]
    assert found[:1].tolist() == [0]
    assert out.tolist() == [107, -1, -2, -1, -1]  # number 3 was not asked for
    for wrong in (-1, 5):
        with pytest.raises(IndexError):
            _segment.index_find_all(
                [piece], ids[0][:8], flat, 20, 0, array("q", [wrong]), found, out
            )
    with pytest.raises(Internal):
        _segment.index_find_all([piece], ids[0][:8], flat, 20, 0, which, array("q"), out)


def test_an_id_that_a_newer_run_may_have_is_not_taken_from_an_older_one(tmp_path: Path) -> None:
    origin = tmp_path / "work"
    origin.mkdir()
    git(origin, "init", "-q", "-b", "main")
    # So much that what comes later is not made one run with it.
    (origin / "much").write_bytes(random.Random(1).randbytes(3 * MIB))
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        for content in ((ALIKE[2],), (ALIKE[0], ALIKE[1])):
            for data in content:
                (origin / data.decode().strip()).write_bytes(data)
            git(origin, "add", "-A")
            git(origin, "commit", "-qm", "more")
            import_repository(store, "demo", str(origin))
        view = Reading(store, "demo").view
        assert view is not None
        names = [f"HEAD:{one.decode().strip()}" for one in ALIKE]
        ids = [
            ObjectId(bytes.fromhex(one))
            for one in git(origin, "rev-parse", *names).decode().split()
        ]
        assert len({int.from_bytes(one[:4]) >> 1 for one in ids}) == 1
        assert ids == sorted(ids)
        runs = view._indexed
        assert len(runs) == 2
        out = array("q", [-1] * 3)
        assert find_many(view, runs, b"".join(ids), out) == [0, 1, 2]
        assert out.tolist() == [-1, -1, -1]
        places = view.positions(ids)
        assert [bytes(one.id) for one in view.read_positions(places)] == ids
        assert places[2] < runs[1].start <= min(places[:2])
        # Without the newer run there is one row that may have it, and it is this.
        assert find_many(view, runs[:1], ids[2], array("q", [-1])) == []
