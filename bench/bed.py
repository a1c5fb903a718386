"""Where suites are measured: a work folder, the repository and its store, sizes and rounds, the machine's limits."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")

SHARDGIT = [sys.executable, "-m", "shardgit"]


@dataclass
class Bed:
    """What a suite gets. A suite makes its own folders with ``fresh``, and may keep what it generated in ``kept``."""

    work: Path
    dataset: str
    repository: Path  # bare, one pack with bitmap and commit-graph: as a careful host keeps it
    rounds: int = 5
    smoke: bool = False
    known_limits: dict[str, float] = field(default_factory=dict)

    def size(self, full: int, smoke: int) -> int:
        """Return how large something is to be: the second where only running at all is looked at."""
        return smoke if self.smoke else full

    def fresh(self, name: str) -> Path:
        """Return an empty folder below the work folder; what was there is gone."""
        folder = self.work / self.dataset / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    @property
    def kept(self) -> Path:
        """Return the folder of what may serve a later run: generated repositories, each with a stamp of its own."""
        folder = self.work / "generated"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @functools.cached_property
    def store(self) -> Path:
        """Return a store with the repository as "bench", imported once a run; read it, do not write it."""
        return new_store(self.fresh("store-of-bench") / "store", {"bench": self.repository})

    def alternate(self, sides: dict[str, Callable[[], T]]) -> dict[str, list[T]]:
        """Run each side in turn, ``rounds`` times; every second round in the other order."""
        out: dict[str, list[T]] = {name: [] for name in sides}
        for number in range(self.rounds):
            for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
                out[name].append(sides[name]())
        return out

    def limit(self, name: str) -> float:
        """Return a limit of this machine (bytes, operations a second), measured once a run when first asked for."""
        if name not in self.known_limits:
            from limits import measure

            self.known_limits[name] = measure(name, self)
        return self.known_limits[name]

    def share(self, name: str, amount: float, seconds: float) -> float:
        """Return which part of a limit ``amount`` in ``seconds`` is."""
        return amount / seconds / self.limit(name) if seconds else 0.0


def new_store(
    folder: Path, repositories: dict[str, Path] | None = None, *, shards: int = 1
) -> Path:
    """Make a store by the command line, and import repositories by name; returns the folder."""

    def shardgit(*words: str) -> None:
        subprocess.run([*SHARDGIT, *words], check=True, stdout=subprocess.DEVNULL)

    shardgit("init", str(folder), f"--shards={shards}")
    for name, source in (repositories or {}).items():
        shardgit("repo", "import", name, str(source), "--data", str(folder))
    return folder
