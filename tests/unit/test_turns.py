"""Turns: one holder at a time, whoever asks; what it noted is read meanwhile."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from threading import Timer
from typing import TYPE_CHECKING

import pytest

from shardgit.turns import FileTurns, holding

if TYPE_CHECKING:
    from pathlib import Path

TAKE_AND_DIE = """
import os, sys
from pathlib import Path
from shardgit.turns import FileTurns
assert FileTurns(Path(sys.argv[1])).try_take("job", note=b"mine") is not None
os._exit(9)
"""


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    turns, others = FileTurns(tmp_path), FileTurns(tmp_path)
    assert turns.note_of("job") is None
    turn = turns.try_take("job")
    assert turn is not None
    assert others.try_take("job") is None
    assert turns.try_take("job") is None  # nor another thread of the same process
    assert others.note_of("job") == b""
    with holding(others, "other") as held:
        assert held
    held_before = turn.held
    turn.release()
    turn.release()
    assert (held_before, turn.held) == (True, False)
    with holding(others, "job") as held, holding(turns, "job") as again:
        assert (held, again) == (True, False)
    assert list(tmp_path.iterdir()) == []


def test_who_asks_disturbs_no_other_who_asks(tmp_path: Path) -> None:
    turns = FileTurns(tmp_path)
    (tmp_path / "job.lock").touch()
    with (tmp_path / "job.lock").open() as other:  # that asks just now
        fcntl.flock(other, fcntl.LOCK_SH)
        assert turns.note_of("job") is None
        asking = Timer(0.01, other.close)
        asking.start()
        with holding(turns, "job", tries=6_000) as held:
            assert held
        asking.join()


def test_a_note_is_read_while_its_turn_lasts(tmp_path: Path) -> None:
    turns = FileTurns(tmp_path)
    turn = turns.try_take("group/job", note=b"[1, 2]")
    assert turn is not None
    assert FileTurns(tmp_path).note_of("group/job") == b"[1, 2]"
    assert turns.note_of("group/none") is None
    assert turns.note_of("no-group/none") is None
    turn.release()
    assert turns.note_of("group/job") is None
    assert list((tmp_path / "group").iterdir()) == []


def test_the_turn_of_a_dead_process_is_free(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TAKE_AND_DIE, tmp_path], check=False)
    assert done.returncode == 9
    turns = FileTurns(tmp_path)
    assert turns.note_of("job") is None  # though its note lies there still
    turn = turns.try_take("job")
    assert turn is not None
    assert turns.note_of("job") == b""  # the other's is not believed
    turn.release()


def test_a_turn_whose_note_cannot_be_written_is_given_back(tmp_path: Path) -> None:
    (tmp_path / "job.note").mkdir()
    turns = FileTurns(tmp_path)
    with pytest.raises(OSError, match="Is a directory"):
        turns.try_take("job", note=b"x")
    (tmp_path / "job.note").rmdir()
    assert turns.try_take("job") is not None
