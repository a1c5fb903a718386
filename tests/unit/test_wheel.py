"""What goes into a wheel: every kernel is tried, no compiler flag ties it to the machine that built it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "shardgit"


def test_the_check_of_a_wheel_loads_every_kernel() -> None:
    text = (ROOT / "tools" / "wheel_check.py").read_text()
    listed = re.search(r"^KERNELS = \((.*?)^\)", text, re.M | re.S)
    assert listed is not None
    assert re.findall(r'"(\w+)"', listed[1]) == sorted(p.stem for p in SOURCES.glob("_*.pyx"))


def test_nothing_is_compiled_for_the_processor_at_hand() -> None:
    setup = (ROOT / "setup.py").read_text()
    assert not re.search(r"-m(arch|cpu|tune|avx|sse|sha)", setup)
    for path in SOURCES.glob("_*.h"):
        text = path.read_text()
        # Wider instructions stand in functions that say so, for x86-64 only, and are asked for at run time.
        if "__attribute__((target" in text:
            assert "#if defined(__x86_64__)" in text
            assert "__builtin_cpu_supports" in text


def test_a_build_that_must_have_libdeflate_fails_without_it() -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, "SHARDGIT_ZLIB": "0", "CC": "/bin/false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "libdeflate and its headers are missing" in done.stderr


def test_wheels_are_made_for_every_python_that_is_supported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    least = project["project"]["requires-python"].removeprefix(">=3.")
    built = project["tool"]["cibuildwheel"]["build"].split()
    assert built == [f"cp3{minor}-*" for minor in range(int(least), int(least) + len(built))]
    for script in re.findall(r"\{project\}/([\w./-]+)", str(project["tool"]["cibuildwheel"])):
        assert (ROOT / script).is_file(), script
