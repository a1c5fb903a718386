"""A disk whose fsync stands still, in one process: a library of 40 lines of C, preloaded under the harness."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).parent / "stall.c"
VARIABLE = "SHARDGIT_STALL"  # where the library lies that is preloaded
LOOK_S = 0.003


def build(folder: Path) -> Path:
    """Compile the library."""
    library = folder / "stall.so"
    words = [os.environ.get("CC", "cc"), "-O2", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*words, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def run_under(library: Path, words: list[str]) -> int:
    """Run a Python program with the library preloaded; returns its code."""
    environment = {**os.environ, "LD_PRELOAD": str(library), VARIABLE: str(library)}
    return subprocess.run([sys.executable, *words], env=environment, check=False).returncode


class Stall:
    """The library in this process and those that it forks."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ[VARIABLE])
        os.environ.pop("LD_PRELOAD", None)  # git and cc need none of it

    @staticmethod
    def is_here() -> bool:
        """Say whether the library is preloaded."""
        return VARIABLE in os.environ

    def arm(self, count: int, *, behind: bool, tell: Callable[[], None]) -> None:
        """Let the ``count``th sync from now on stand still, before or ``behind`` the disk's; ``tell`` when it does."""
        self._library.stall_arm(ctypes.c_long(count), int(behind))

        def watch() -> None:
            while not self._library.stall_standing():
                time.sleep(LOOK_S)
            tell()

        threading.Thread(target=watch, daemon=True).start()

    def release(self) -> None:
        """Let it go on."""
        self._library.stall_release()
