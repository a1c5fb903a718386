"""Processes killed at every fault point there is, and at random moments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "run.py"


@pytest.mark.interop
def test_nothing_is_lost_by_kills_at_every_fault_point() -> None:
    # In a process of its own: it forks, and must not have opened LMDB nor hold threads.
    done = subprocess.run(
        [sys.executable, str(RUN), "--only", "kills", "--kills", "20", "--seed", "1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " kills (" in done.stdout
