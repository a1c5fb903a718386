"""Real git: repositories to import, and a judge of what comes out."""

from __future__ import annotations

import os
import random
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    **{
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in (("NAME", "A"), ("EMAIL", "a@b.c"))
    },
}


def git(
    folder: Path, *words: str, stdin: bytes = b"", date: int = 1_700_000_000, check: bool = True
) -> bytes:
    """Run git in a folder and return its output."""
    when = {f"GIT_{role}_DATE": f"{date} +0000" for role in ("AUTHOR", "COMMITTER")}
    done = subprocess.run(
        ["git", *words],
        cwd=folder,
        input=stdin,
        capture_output=True,
        check=False,
        env={**os.environ, **ENVIRONMENT, **when},
    )
    if check and done.returncode:
        raise AssertionError(f"git {' '.join(words)}: {done.stderr.decode('utf-8', 'replace')}")
    return done.stdout + (b"" if check else done.stderr)


def make_history(
    folder: Path, *, commits: int = 40, algorithm: str = "sha1", seed: int = 1
) -> Path:
    """Make a work tree with branches, merges, annotated and nested tags, an octopus, a symlink and odd names."""
    rand = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q", "-b", "main", f"--object-format={algorithm}")
    extend_history(folder, commits=commits, rand=rand, first=0)
    (folder / "link").symlink_to("f0")
    (folder / "na\u00efve name").write_text("odd")
    (folder / "empty").write_bytes(b"")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "odd things", date=1_700_900_000)
    git(folder, "branch", "side", "HEAD~5")
    git(folder, "branch", "other", "HEAD~9")
    for name in ("side", "other"):
        git(folder, "checkout", "-q", name)
        (folder / f"on-{name}").write_text(name)
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", f"on {name}", date=1_700_900_100)
    git(folder, "checkout", "-q", "main")
    git(folder, "merge", "-q", "-m", "octopus", "side", "other", date=1_700_900_200)
    git(folder, "tag", "light")
    git(folder, "tag", "-am", "annotated", "v1.0", "HEAD~3")
    git(folder, "tag", "-am", "nested", "nested", "v1.0")
    git(folder, "tag", "-am", "a tree", "treetag", "HEAD^{tree}")
    git(folder, "update-ref", "refs/notes/commits", "HEAD~2")
    return folder


def extend_history(folder: Path, *, commits: int, rand: random.Random, first: int) -> None:
    """Add commits that edit a few files each."""
    for number in range(first, first + commits):
        for _ in range(rand.randint(1, 3)):
            path = folder / rand.choice(("", "sub", "sub/deep", "other")) / f"f{rand.randint(0, 9)}"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = (
                path.read_text().splitlines() if path.exists() else [f"line {i}" for i in range(80)]
            )
            lines[rand.randrange(len(lines))] = f"changed {rand.random()}"
            path.write_text("\n".join(lines) + "\n")
        git(folder, "add", "-A")
        git(
            folder,
            "commit",
            "-qm",
            f"commit {number}",
            "--allow-empty",
            date=1_700_000_000 + number * 60,
        )


def shallow_copy(origin: Path, folder: Path, rand: random.Random, *, ends: int = 4) -> Path:
    """Make a bare repository with the refs of another whose history ends at up to ``ends`` random commits."""
    git(origin.parent, "clone", "-q", "--mirror", "--no-local", str(origin), str(folder))
    rows = git(folder, "rev-list", "--all", "--min-parents=1").split()
    chosen = rand.sample(sorted(rows), min(len(rows), rand.randint(1, ends)))
    cut_history(folder, chosen)
    return folder


def cut_history(folder: Path, ends: Iterable[bytes]) -> None:
    """Make a bare repository shallow at commits, of which those stay that its refs still reach."""
    path = folder / "shallow"
    path.write_bytes(b"".join(b"%s\n" % each for each in sorted(ends)))
    kept = set(git(folder, "rev-list", "--all").split())
    path.write_bytes(b"".join(b"%s\n" % each for each in sorted(ends) if each in kept))
    git(folder, "repack", "-adq")
    git(folder, "prune", "--expire=now")
    git(folder, "fsck", "--connectivity-only")


def shallow_ends(folder: Path) -> set[bytes]:
    """Return the commits (hex) at which the history of a bare repository ends."""
    path = folder / "shallow"
    return set(path.read_bytes().split()) if path.exists() else set()


def reachable(folder: Path) -> set[bytes]:
    """Return the ids (hex) of all objects that refs reach."""
    return {
        line.split(b" ")[0] for line in git(folder, "rev-list", "--objects", "--all").splitlines()
    }


def refs(folder: Path) -> list[bytes]:
    """Return all refs as for-each-ref prints them."""
    return git(folder, "for-each-ref", "--format=%(objectname) %(refname)").splitlines()
