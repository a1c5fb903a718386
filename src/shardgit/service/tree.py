"""A folder with Git repositories below it: which there are, what they would be called, which build on which."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import LimitExceeded, NotFound, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDERS_MAX = 10_000_000
DEPTH_MAX = 64
ALTERNATES_MAX_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Found:
    """A repository of a tree: its name by its path, where it is, its Git folder and what it borrows objects from."""

    name: str
    path: Path
    git: Path
    alternates: tuple[Path, ...] = ()  # objects folders


def repositories_below(root: Path) -> Iterator[Found]:
    """Return the repositories below a folder, bare and with work trees, by rising path; lazy.

    Links are not followed. Nothing is looked for inside of a repository, so submodules and what lies in a work tree are
    not found; nor are work trees whose Git folder is elsewhere, as that of a submodule or of ``git worktree`` is.
    Errors: NotFound, Refused for a folder that is a repository itself, LimitExceeded.
    """
    if not root.is_dir():
        raise NotFound("no such folder", path=str(root))
    if _git_folder(root) is not None:
        raise Refused("that is a repository itself; import it by: repo import", path=str(root))
    seen = 0
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        seen += 1
        if seen > FOLDERS_MAX or len(folder.relative_to(root).parts) > DEPTH_MAX:
            raise LimitExceeded(
                "tree has too many folders or is too deep", folders=FOLDERS_MAX, depth=DEPTH_MAX
            )
        git = _git_folder(folder) if folder != root else None
        if git is not None:
            yield Found(_name(folder.relative_to(root)), folder, git, _alternates(git))
        elif not (folder / ".git").exists():
            waiting += reversed(_folders(folder))


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [one.name for one in entries if one.is_dir(follow_symlinks=False)]
    except PermissionError:
        return []
    return [folder / name for name in sorted(names)]


def _git_folder(folder: Path) -> Path | None:
    """Return the Git folder of what is a repository of its own."""
    for candidate in (folder, folder / ".git"):
        if (
            not candidate.is_symlink()
            and (candidate / "HEAD").is_file()
            and (candidate / "objects").is_dir()
            and (candidate / "refs").is_dir()
            and not (candidate / "commondir").exists()
        ):
            return candidate
    return None


def _name(path: Path) -> str:
    return path.as_posix().removesuffix(".git").rstrip("/")


def _alternates(git: Path) -> tuple[Path, ...]:
    file = git / "objects" / "info" / "alternates"
    try:
        with file.open("rb") as opened:
            text = os.fsdecode(opened.read(ALTERNATES_MAX_BYTES))
    except OSError:
        return ()
    lines = (line.strip() for line in text.splitlines())
    return tuple(
        (git / "objects" / line).resolve() for line in lines if line and not line.startswith("#")
    )


def in_order(found: list[Found]) -> list[tuple[Found, Found | None]]:
    """Return repositories with the one that each builds on, if that is among them; bases stand first."""
    by_objects = {(one.git / "objects").resolve(): one for one in found}
    placed: dict[Path, tuple[Found, Found | None]] = {}

    def base_of(one: Found) -> Found | None:
        return next((by_objects[each] for each in one.alternates if each in by_objects), None)

    for one in found:
        chain = [one]
        while (base := base_of(chain[-1])) is not None and base not in chain:
            if base.git in placed:
                break
            chain.append(base)
        for each in reversed(chain):
            if each.git not in placed:
                under = base_of(each)
                known = under is not None and under.git in placed  # else they borrow in a circle
                placed[each.git] = (each, under if known else None)
    return list(placed.values())
