"""What workers tell of themselves: reports, heat, health."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

from shardgit.errors import JournalCorrupt
from shardgit.node import create_store, open_store
from shardgit.report import Hot, Report, hottest, read_reports, write_report
from shardgit.service import health as healths
from shardgit.service.health import Health
from shardgit.service.heat import HALF_LIFE_S, Heat

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_reports_are_read_back_and_others_passed_over(tmp_path: Path) -> None:
    assert read_reports(tmp_path) == []
    reports = [Report(n, 7, 9, {"disk": "gone"}, {}, [Hot(f"r{n}", 1.0, 2.0)]) for n in range(3)]
    for report in reports:
        write_report(tmp_path, Report(report.number, 1, 1))
        write_report(tmp_path, report)
    (tmp_path / "report-9.json").write_bytes(b"{")
    assert read_reports(tmp_path) == reports


def test_the_hottest_of_all_workers() -> None:
    reports = [
        Report(0, 1, 1, hot=[Hot("a", 1, 0.5), Hot("b", 9, 0.4)]),
        Report(1, 2, 1, hot=[Hot("b", 1, 0.2), Hot("c", 1, 0.1)]),
    ]
    found = hottest(reports, 2)
    assert [(one.repository, one.requests) for one in found] == [("b", 10), ("a", 1)]


def test_heat_fades_and_keeps_the_hot(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    heat = Heat(names_max=10)
    for _ in range(5):
        heat.add("hot", 1.0)
    for number in range(100):
        heat.add(f"cold{number}", 0.001)
    assert heat.hottest(1) == [Hot("hot", 5.0, 5.0)]
    assert len(heat.hottest(100)) == 10
    now += HALF_LIFE_S
    assert heat.hottest(1) == [Hot("hot", 2.5, 2.5)]
    now += 20 * HALF_LIFE_S
    assert heat.hottest(10) == []


def test_a_store_that_is_well_has_neither_problems_nor_warnings(tmp_path: Path) -> None:
    create_store(tmp_path / "s", shards=2)
    with open_store(tmp_path / "s") as store:
        health = Health(store)
        health.look()
        assert (health.problems, health.warnings) == ({}, {})
        assert not list(store.scratch.glob("health-*"))


def test_what_is_not_there_is_a_problem_and_what_is_full_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store(tmp_path / "s", shards=2)
    with open_store(tmp_path / "s") as store:
        health = Health(store)
        folder = store.routed.shards[1].folder
        shutil.move(folder, tmp_path / "away")
        health.look()
        assert health.problems == {"shard 1": "its folder is not there"}
        shutil.move(tmp_path / "away", folder)
        monkeypatch.setattr(healths, "LEAST_FREE_BYTES", 1 << 62)
        health.look()
        assert health.problems == {}
        assert set(health.warnings) == {"disk", "shard 0", "shard 1"}
        monkeypatch.setattr(healths, "PROBE_EVERY_S", 0.0)
        monkeypatch.setattr(os, "fsync", _broken)
        health.look()
        assert health.problems == {"disk": "Input/output error"}
        monkeypatch.setattr(store.journal, "snapshot", _corrupt)
        health.look()
        assert "journal" in health.problems


def test_a_disk_that_gives_errors_is_told_and_the_look_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store(tmp_path / "s", shards=2)
    with open_store(tmp_path / "s") as store:
        health = Health(store)
        statvfs = os.statvfs
        bad = store.routed.shards[0].folder

        def failing(path: Path) -> os.statvfs_result:
            if path == bad:
                raise OSError(5, "Input/output error")
            return statvfs(path)

        monkeypatch.setattr(os, "statvfs", failing)
        health.look()
        assert health.problems == {"shard 0": "Input/output error"}
        monkeypatch.setattr(os, "statvfs", lambda _: failing(bad))
        health.look()
        assert set(health.problems) == {"disk", "shard 0", "shard 1"}


def _broken(_: int) -> None:
    raise OSError(5, "Input/output error")


def _corrupt() -> None:
    raise JournalCorrupt("row does not match its checksum")
