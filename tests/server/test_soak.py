"""The soak, very short: what `make soak` runs for minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from served import clean_environment

SOAK = Path(__file__).parents[2] / "bench" / "soak" / "run.py"


@pytest.mark.heavy
def test_a_short_soak_ends_without_an_error_beside_a_hostile_client(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    words = ["--minutes", "0.1", "--commits", "30", "--workers", "1", "--hostile", "20"]
    done = subprocess.run(
        [sys.executable, str(SOAK), *words, "--out", str(out), "--folder", str(tmp_path / "soak")],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.exists(), done.stderr
    found = json.loads(out.read_text())
    # What takes time and memory is judged by the long one alone.
    wrong = {key: found["wrong"][key] for key in ("clients", "store", "server")}
    assert wrong == {"clients": [], "store": [], "server": []}
    assert found["reloads"] == 1
    assert all(row["idle"]["count"] >= 4 for row in found["kinds"] if row["kind"] != "push large")
    assert sum(row["load"]["count"] for row in found["kinds"]) > 5
    assert found["hostile"]
    assert found["acknowledged_refs"] > 4
    assert found["samples"]
    assert done.returncode == (0 if found["stood"] else 1)
