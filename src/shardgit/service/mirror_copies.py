"""Copies of what mirrors follow, kept in the store's scratch so that the next look fetches only what is new.

Each may be gone at any time: then git copies the source whole. What was imported of one is noted in it, by the names
of its packs; a fetch adds one pack.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.errors import Stopped
from shardgit.processes import drop_left, own_prefix
from shardgit.turns import holding

if TYPE_CHECKING:
    from collections.abc import Collection

    from shardgit.limits import Limits
    from shardgit.oid import RepositoryId
    from shardgit.service.remote_clone import Errand
    from shardgit.turns import Turns

FOLDER = "mirrors"
NOTE = "shardgit-imported"
FAILED = "shardgit-failed"  # there when the last fetch went wrong
PACKS_MAX = 32  # a copy with more is made anew: git looks for each object in all of them


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy that is in step with its source, and the packs of it whose objects the pool was given before."""

    path: Path
    imported: frozenset[str]


class MirrorCopies:
    """The copies of one machine. Of one repository's only one thread at a time."""

    def __init__(self, scratch: Path, limits: Limits) -> None:
        self._scratch = scratch
        self._folder = scratch / FOLDER
        self._limits = limits

    def _path(self, repository: RepositoryId) -> Path:
        return self._folder / f"{repository}.git"

    def refreshed(
        self,
        repository: RepositoryId,
        errand: Errand,
        head: bytes,
    ) -> Copy:
        """Return a copy as the source is now; ``head`` is what HEAD leads to there, b"" for none.

        Errors: as of Errand. A copy outlives one fetch that goes wrong, not two in a row; what was stopped does
        not count.
        """
        path = self._path(repository)
        if not (path / "HEAD").is_file():
            self._cloned(path, errand)
            return Copy(path, frozenset())
        _clear(path)
        try:
            errand.fetch(path)
        except Stopped:
            _clear(path)
            raise
        except BaseException:
            if (path / FAILED).exists():
                self.drop(repository)
            else:
                _clear(path)
                (path / FAILED).touch()
            raise
        (path / FAILED).unlink(missing_ok=True)
        if head:
            (path / "HEAD").write_bytes(b"ref: " + head + b"\n")
        return Copy(path, _imported(path))

    def _cloned(self, path: Path, errand: Errand) -> None:
        drop_left(self._scratch, "mirror")
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = own_prefix("mirror")
        with tempfile.TemporaryDirectory(dir=self._scratch, prefix=prefix) as folder:
            made = Path(folder) / "mirror.git"
            errand.clone(made)
            made.rename(path)

    def keep(self, repository: RepositoryId) -> None:
        """Note that all of a copy was imported."""
        path = self._path(repository)
        names = sorted(pack.name for pack in (path / "objects" / "pack").glob("*.pack"))
        if len(names) > PACKS_MAX:
            self.drop(repository)
            return
        made = path / f"{NOTE}.new"
        made.write_text(json.dumps(names), encoding="utf-8")
        made.replace(path / NOTE)
        os.utime(path)

    def drop(self, repository: RepositoryId) -> None:
        """Remove a copy."""
        shutil.rmtree(self._path(repository), ignore_errors=True)

    def sweep(self, wanted: Collection[RepositoryId], turns: Turns) -> None:
        """Remove the copies of what is no mirror any more, and the oldest ones while all take too much.

        One that somebody is at stays.
        """
        names = {f"{each}.git" for each in wanted}
        with suppress(FileNotFoundError):
            there = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
            sizes = {path: _size(path) for path in there}
            total = sum(sizes.values())
            for path in there:
                if path.name in names and total <= self._limits.mirror_copies_max_bytes:
                    continue
                with holding(turns, turn_of(path.stem)) as ours:
                    if ours:
                        shutil.rmtree(path, ignore_errors=True)
                        total -= sizes[path]


def turn_of(repository: RepositoryId | str) -> str:
    """Return the name of the turn of who brings a mirror in step."""
    return f"mirror/{repository}"


def _clear(path: Path) -> None:
    """Remove what a git that was ended has left in a copy: locks, and files that it was writing."""
    locks = [*path.glob("*.lock"), *(path / "refs").rglob("*.lock")]
    for each in [*locks, *(path / "objects").rglob("tmp_*")]:
        if each.is_dir():
            shutil.rmtree(each, ignore_errors=True)
        else:
            each.unlink(missing_ok=True)


def _imported(path: Path) -> frozenset[str]:
    try:
        return frozenset(json.loads((path / NOTE).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return frozenset()


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in (folder / "objects" / "pack").glob("*"))
