"""Notes of operations under way: who watches sees them with their progress, and none of a dead process."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from shardgit.errors import Refused
from shardgit.node import create_store, open_store
from shardgit.operate.notes import FOLDER, OperationNote, operations_under_way
from shardgit.operate.operation import running, silent_control
from shardgit.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path


def test_an_operation_is_noted_with_its_progress_while_it_runs(tmp_path: Path) -> None:
    create_store(tmp_path / "s")
    with open_store(tmp_path / "s") as store:
        control = silent_control()
        assert operations_under_way(store.scratch) == []
        with running(store, "gc"):
            (before,) = operations_under_way(store.scratch)
            assert (before.kind, before.stage, before.total) == ("gc", "", None)
            control.report(Progress("collecting pools", 3, 9, "objects"))
            (now,) = operations_under_way(store.scratch)
            assert (now.stage, now.done, now.total, now.unit) == (
                "collecting pools",
                3,
                9,
                "objects",
            )
            assert now.started_ms == before.started_ms
            with pytest.raises(Refused), running(store, "gc"):
                pass
            assert len(operations_under_way(store.scratch)) == 1
        assert operations_under_way(store.scratch) == []


def test_an_operation_inside_another_has_a_note_of_its_own(tmp_path: Path) -> None:
    create_store(tmp_path / "s")
    with open_store(tmp_path / "s") as store, running(store, "outer"):
        control = silent_control()
        control.report(Progress("one", 1, 4, "blocks"))
        with running(store, "inner"):
            control.report(Progress("two", 2, 4, "blocks"))
            stages = {note.kind: note.stage for note in operations_under_way(store.scratch)}
            assert stages == {"outer": "one", "inner": "two"}
        control.report(Progress("three", 3, 4, "blocks"))
        assert [note.stage for note in operations_under_way(store.scratch)] == ["three"]


def test_progress_outside_an_operation_is_no_note(tmp_path: Path) -> None:
    create_store(tmp_path / "s")
    with open_store(tmp_path / "s") as store:
        silent_control().report(Progress("alone", 1, 2, "blocks"))
        assert operations_under_way(store.scratch) == []


def test_notes_of_dead_processes_and_what_does_not_parse_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    note = OperationNote("gc", int(dead.stdout), 7, 1, 1)
    left = tmp_path / FOLDER / "gc.json"
    left.write_bytes(msgspec.json.encode(note))
    (tmp_path / FOLDER / "half.json").write_bytes(b'{"kind": "half"')
    assert operations_under_way(tmp_path) == []
    assert not left.exists()


def test_a_store_without_room_for_notes_runs_operations_all_the_same(tmp_path: Path) -> None:
    create_store(tmp_path / "s")
    with open_store(tmp_path / "s") as store:
        (store.scratch / FOLDER).write_bytes(b"no folder")
        with running(store, "gc"):
            silent_control().report(Progress("on", 1, 2, "blocks"))
        assert operations_under_way(store.scratch) == []
