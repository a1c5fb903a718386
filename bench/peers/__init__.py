"""Other implementations that index a pack, where they are there."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from measure import run

from peers import build
from peers.index_pack import libgit2_library

if TYPE_CHECKING:
    from collections.abc import Callable

    from result import Cost

SCRIPT = Path(__file__).with_name("index_pack.py")
BIG_BYTES = 64 << 20


@dataclass
class Indexers:
    """Ways to index a pack: those that are there, those that are not, those that run one round only."""

    present: dict[str, Callable[[], Cost]] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """Return what a reader has to know of the rounds."""
        return f" One round only of {', '.join(self.slow)}." if self.slow else ""


def indexers(pack: Path, folder: Path) -> Indexers:
    """Return what can index a pack here. What takes minutes runs once, or not at all where it takes many."""
    found = Indexers()
    big = pack.stat().st_size > BIG_BYTES

    def add(name: str, command: list[str], *, slow: bool = False) -> None:
        def once() -> Cost:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            return run(command)

        found.present[name] = once
        if slow:
            found.slow += (name,)

    add("git index-pack", ["git", "index-pack", "-o", str(folder / "pack.idx"), str(pack)])
    script = [sys.executable, str(SCRIPT)]
    if libgit2_library() is None:
        found.absent += ("libgit2 (pygit2)",)
    else:
        add("libgit2 (pygit2)", [*script, "libgit2", str(pack), str(folder)], slow=big)
    try:
        import dulwich  # noqa: F401
    except ImportError:
        found.absent += ("dulwich",)
    else:
        if big:
            found.absent += ("dulwich (takes many minutes)",)
        else:
            add("dulwich", [*script, "dulwich", str(pack), str(folder)], slow=True)
    for name, said in build.NAMES.items():
        if (words := build.command(name)) is None:
            found.absent += (said,)
        else:
            # A program of ours on the library; one round where it takes as long as git and longer.
            add(said, [*words, "index", str(pack), str(folder)], slow=big)
    return found
