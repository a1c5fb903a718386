"""Where suites are measured: a work folder, the repository and its store, sizes and rounds, the machine's limits."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    data: Path | None = None

    def size(self, full: int, smoke: int) -> int:
        """Return how large something is to be: the second where only running at all is looked at."""
        return smoke if self.smoke else full

    def fresh(self, name: str) -> Path:
        """Return an empty folder below the work folder; what was there is gone."""
        folder = self.work / self.dataset / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def clean(self) -> None:
        """Remove what suites made here, but the repository."""
        for path in (self.work / self.dataset).glob("*"):
            if path.is_dir() and path != self.repository:
                shutil.rmtree(path)
        self.__dict__.pop("store", None)

    @property
    def kept(self) -> Path:
        """Return the folder of what may serve a later run: generated repositories, each with a stamp of its own."""
        folder = self.data or self.work / "data"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @functools.cached_property
    def store(self) -> Path:
        """Return a store with the repository as "bench", imported once a run; read it, do not write it."""
        return new_store(self.fresh("store-of-bench") / "store", {"bench": self.repository})

    def alternate(
        self, sides: dict[str, Callable[[], T]], *, slow: Sequence[str] = ()
    ) -> dict[str, list[T]]:
        """Run each side in turn, ``rounds`` times; every second round in the other order. Slow ones run once."""
        out: dict[str, list[T]] = {name: [] for name in sides}
        for number in range(self.rounds):
            for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
                if not (number and name in slow):
                    out[name].append(sides[name]())
        return out

    @functools.cached_property
    def _entries(self) -> tuple[int, int, int, int]:
        git = ["git", "-C", str(self.repository), "cat-file", "--unordered"]
        words = ["--batch-all-objects", "--batch-check=%(objectsize) %(deltabase)"]
        listed = subprocess.run([*git, *words], capture_output=True, check=True).stdout.split()
        pack = pack_of(self.repository)
        from limits import inflated

        size = sum(map(int, listed[::2]))
        files = pack.stat().st_size + pack.with_suffix(".idx").stat().st_size
        return len(listed) // 2, size, inflated(self, pack), files

    @property
    def objects(self) -> int:
        """Return how many objects the repository has."""
        return self._entries[0]

    @property
    def object_bytes(self) -> int:
        """Return the bytes of all objects: what has to be hashed."""
        return self._entries[1]

    @property
    def inflated_bytes(self) -> int:
        """Return the bytes that the pack's entries inflate to: whole objects and deltas."""
        return self._entries[2]

    @property
    def about(self) -> str:
        """Return the repository in a line."""
        mib = self._entries[3] / (1 << 20)
        whole = self.object_bytes / (1 << 20)
        return f"{self.objects:,} objects of {whole:,.0f} MiB, {mib:,.1f} MiB of pack and idx"

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
    """Make a store and import repositories by name, in a process of its own; returns the folder."""
    words = [
        str(folder),
        str(shards),
        *(f"{name}={at}" for name, at in (repositories or {}).items()),
    ]
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("new_store.py")), *words], check=True
    )
    return folder


def pack_of(repository: Path) -> Path:
    """Return the one pack of a repository."""
    (pack,) = (repository / "objects" / "pack").glob("*.pack")
    return pack
