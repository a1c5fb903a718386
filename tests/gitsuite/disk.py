"""A Git repository on disk as git's server programs see it: found by a path, configured by files."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SUFFIXES = ("/.git", "", ".git/.git", ".git")
# What git's own servers take out of the environment before they open the repository.
LOCAL_VARIABLES = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
)


class NoRepository(Exception):
    """The path leads to no repository."""


@dataclass(slots=True)
class DiskRepository:
    """One repository on disk; ``git`` is the real program, ``environment`` that of the caller."""

    folder: Path
    git: str
    environment: dict[str, str]
    config: dict[str, list[str]] = field(default_factory=dict)
    push_variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = {k: v for k, v in self.environment.items() if k not in LOCAL_VARIABLES}
        self.environment = {**kept, "GIT_DIR": str(self.folder)}
        for item in self.run("config", "--list", "-z", check=False).split(b"\0"):
            key, _, value = item.decode("utf-8", "surrogateescape").partition("\n")
            if key:
                self.config.setdefault(key, []).append(value if _ else "true")

    @property
    def namespace(self) -> bytes:
        """Return what stands before the refs of the caller's namespace, b"" without one."""
        parts = self.environment.get("GIT_NAMESPACE", "").split("/")
        return b"".join(b"refs/namespaces/" + os.fsencode(part) + b"/" for part in parts if part)

    def run(
        self,
        *words: str,
        data: bytes = b"",
        check: bool = True,
        more: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> bytes:
        """Run the real git in the repository; return what it prints."""
        done = subprocess.run(
            [self.git, *words],
            input=data,
            env={**self.environment, **(more or {})},
            cwd=cwd or self.folder,
            capture_output=True,
            check=False,
        )
        if check and done.returncode:
            raise DiskRefused(done.stderr.decode("utf-8", "replace").strip())
        return done.stdout

    def hook(self, name: str, *words: str, data: bytes = b"") -> tuple[int, bytes]:
        """Run a hook of the disk's, as receive-pack does; returns its exit code and output."""
        folder = self.value("core.hookspath")
        path = (self.folder / folder if folder else self.folder / "hooks") / name
        if not (path.is_file() and os.access(path, os.X_OK)):
            return 0, b""
        try:
            done = subprocess.run(
                [str(path), *words],
                input=data,
                cwd=self.folder,
                env={**self.environment, "GIT_DIR": ".", **self.push_variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
        except OSError as error:
            return 1, f"error: cannot exec '{path}': {error.strerror}\n".encode()
        return done.returncode, done.stdout

    def checked_out(self, name: bytes, new: bytes | None) -> tuple[str | None, str]:
        """Return why a branch may not be pushed to since a work tree has it, and a warning.

        Work trees are not updated here: updateInstead refuses.
        """
        ref = os.fsdecode(self.namespace + name)
        if ref not in self.branches_in_use():
            return None, ""
        if new is None:
            return None, ""
        rule = self.value("receive.denycurrentbranch", "unset").lower()
        if rule in ("ignore", "false", "no", "off"):
            return None, ""
        if rule == "warn":
            return None, "warning: updating the current branch"
        return (
            "branch is currently checked out",
            f"error: refusing to update checked out branch: {ref}",
        )

    def branches_in_use(self) -> set[str]:
        """Return the branches that stand in work trees."""
        found, bare = set(), False
        for line in self.run("worktree", "list", "--porcelain", check=False).decode().splitlines():
            key, _, value = line.partition(" ")
            if key == "worktree":
                bare = False
            bare = bare or key == "bare"
            if key == "branch" and not bare:
                found.add(value)
        return found

    def value(self, key: str, default: str = "") -> str:
        """Return the last value of a key."""
        return self.config.get(key.lower(), [default])[-1]

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return a key as a boolean."""
        text = self.value(key, "true" if default else "false").lower()
        return text in ("true", "yes", "on") or (text.lstrip("-").isdigit() and int(text) != 0)

    def values(self, *keys: str) -> list[str]:
        """Return all values of keys."""
        return [each for key in keys for each in self.config.get(key.lower(), [])]


class DiskRefused(Exception):
    """The real git refused to write to the repository."""


def is_git_folder(path: Path) -> bool:
    """Return whether a folder looks like a Git directory."""
    has_objects = (path / "objects").is_dir() or (path / "commondir").is_file()
    return has_objects and ((path / "HEAD").is_file() or (path / "HEAD").is_symlink())


def enter(text: str, cwd: str, *, strict: bool = False) -> Path:
    """Return the Git folder that a server program opens for a path; NoRepository without."""
    base = os.path.expanduser(text) if text.startswith("~") else text
    path = os.path.normpath(os.path.join(cwd, base.rstrip("/") or "/"))
    for suffix in ("",) if strict else SUFFIXES:
        candidate = Path(path + suffix)
        if candidate.is_file():
            word = candidate.read_text("utf-8", "surrogateescape").strip()
            if not word.startswith("gitdir:"):
                continue
            candidate = (candidate.parent / word[7:].strip()).resolve()
        if is_git_folder(candidate):
            return candidate
    raise NoRepository(text)


def option_values(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split a server program's words into options and the rest."""
    options: dict[str, str] = {}
    rest: list[str] = []
    for word in words:
        if word.startswith("--") and not rest:
            key, equals, value = word[2:].partition("=")
            options[key] = value if equals else "true"
        elif word.startswith("-") and len(word) > 1 and not rest:
            options[word[1:]] = "true"
        else:
            rest.append(word)
    return options, rest
