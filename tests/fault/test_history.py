"""Clients of a server whose workers and links fail see one order of all changes of refs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cluster.history.embedded import run
from cluster.history.recorder import load, save

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.interop
def test_what_clients_see_under_kills_and_cuts_is_linearizable(tmp_path: Path) -> None:
    ran = run(tmp_path / "run", 1, seconds=3, clients=4)
    assert not ran.verdict.violations, str(ran.verdict.violations[0])
    assert ran.verdict.good
    assert ran.recorder.counts["read"] >= ran.verdict.objects  # the last reads, at the least
    save(tmp_path / "history", ran.recorder.history)
    assert load(tmp_path / "history") == ran.recorder.history
