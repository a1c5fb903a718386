"""Seeds of the simulated store, and stores that are wrong on purpose, which it must find out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "sim" / "run.py"


def run(*words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(RUN), *words],
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    return done.returncode, done.stdout + done.stderr


def test_nothing_is_lost_in_100_seeds() -> None:
    code, text = run("--seeds", "0:100")
    assert code == 0, text
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (\w+)", text.split(";")[0])}
    assert counts["crashes"] > 50
    assert counts["unknown"] > 50
    assert counts["acknowledged"] > 400


def test_a_seed_replays_exactly() -> None:
    first, second = run("--seed", "7", "--trace"), run("--seed", "7", "--trace")
    assert first[1].count("\n") > 50
    assert first[1].splitlines()[:-1] == second[1].splitlines()[:-1]
    assert (
        first[1].splitlines()[:-1]
        == run("--seeds", "6:8", "--trace")[1].splitlines()[-len(first[1].splitlines()) : -1]
    )


@pytest.mark.parametrize(
    "variant",
    [
        "blocks-behind-the-commit",
        "answered-too-soon",
        "settle-takes-too-much",
        "gc-knows-no-leases",
    ],
)
def test_a_store_that_is_wrong_is_found_out(variant: str) -> None:
    code, text = run("--seeds", "0:400", "--failures", "1", "--variant", variant)
    assert code == 1, text
    assert "again: python tests/fault/sim/run.py --seed" in text
