"""Nodes of a journal on etcd under faults: everybody sees one order of all commits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cluster.history.etcd_runs import run_nodes, run_processes

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.history.embedded import Ran

pytestmark = pytest.mark.cluster
SECONDS = 12.0


def judge(ran: Ran) -> None:
    assert not ran.verdict.violations, str(ran.verdict.violations[0])
    assert ran.verdict.good
    assert ran.recorder.counts["done"]


def test_commits_and_reads_of_three_nodes_are_linearizable(tmp_path: Path) -> None:
    judge(run_nodes(tmp_path, 1, seconds=SECONDS))


def test_commits_of_processes_that_die_are_there_once_or_not_at_all(tmp_path: Path) -> None:
    judge(run_processes(tmp_path, 1, seconds=SECONDS))
