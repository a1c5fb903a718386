"""What kernels are measured on: a generated history, its pack, a store with it.

Each benchmark is one side of a group; ``amount`` notes how many objects or bytes it is for. The kernels suite
(bench/suites/kernels.py) runs all of this several times and makes rows of it; by itself:

    pytest bench/kernels -o addopts= --benchmark-group-by=group
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from bed import new_store, pack_of
from generate import deep

from shardgit._layout import Ingest
from shardgit.node import open_store
from shardgit.service.look import Look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMMITS = int(os.environ.get("BENCH_KERNEL_COMMITS", "2000"))


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the history, of where the suite keeps it or made here."""
    kept = os.environ.get("BENCH_KERNEL_DATA")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("kernels")
    return deep(folder / f"kernels-{COMMITS}.git", commits=COMMITS, files=300)


@pytest.fixture(scope="session")
def pack(repository: Path) -> bytes:
    """Return the history's pack."""
    return pack_of(repository).read_bytes()


@pytest.fixture(scope="session")
def look(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Look]:
    """Return a look at the history in a store."""
    folder = new_store(tmp_path_factory.mktemp("store") / "store", {"bench": repository})
    with open_store(folder) as store:
        yield Look(store, "bench")


def new_ingest() -> Ingest:
    """Return an ingest with room for everything here."""
    return Ingest(
        1,
        size_max=1 << 32,
        memory_max=1 << 28,
        cache_max=1 << 28,
        objects_max=1 << 24,
        depth_max=4095,
    )


@pytest.fixture(scope="session")
def objects(pack: bytes) -> tuple[list[int], list[bytes]]:
    """Return types and data of all objects."""
    got = new_ingest()
    got.scan(pack)
    got.link()
    got.resolve()
    got.finish()
    count = got.objects_resolved
    return [got.type_at(at) for at in range(count)], [got.read(at) for at in range(count)]


@pytest.fixture(scope="session")
def pairs() -> list[tuple[bytes, bytes]]:
    """Return texts and what a few edits made of them."""
    some = random.Random(1)
    words = [f"word{number} " * some.randint(1, 3) for number in range(500)]
    found = []
    for _ in range(300):
        lines = ["".join(some.choices(words, k=6)) for _ in range(some.randint(20, 400))]
        old = "\n".join(lines).encode()
        for _ in range(some.randint(1, 6)):
            lines[some.randrange(len(lines))] = "".join(some.choices(words, k=6))
        found.append((old, "\n".join(lines).encode()))
    return found


@pytest.fixture
def measure(benchmark: Callable[..., object]) -> Callable[..., object]:
    """Return what runs one side of a group: ``measure(work, amount, unit)``."""

    def run(work: Callable[[], object], amount: int, unit: str) -> object:
        benchmark.extra_info.update(amount=amount, unit=unit)  # type: ignore[attr-defined]
        return benchmark(work)

    return run
