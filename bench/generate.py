"""Make a repository with realistic deltas: seeded, so that two runs compare the same bytes.

    python bench/generate.py FOLDER [--commits 20000] [--files 800] [--seed 1]

Files of 20 to 400 lines in nested folders; each commit edits, adds or removes a few; every 50th is a merge; tags every
500. The history is written by `git fast-import` and packed by `git repack`, so the deltas are git's own.
"""

from __future__ import annotations

import argparse
import random
import subprocess
from pathlib import Path
from typing import IO

WORDS = [
    "alpha",
    "branch",
    "commit",
    "delta",
    "entry",
    "fetch",
    "graph",
    "hash",
    "index",
    "journal",
    "key",
    "link",
    "merge",
    "node",
    "object",
    "pack",
    "query",
    "ref",
    "shard",
    "tree",
]


class Writer:
    """Feeds one `git fast-import`."""

    def __init__(self, out: IO[bytes], *, files: int, seed: int) -> None:
        self.out = out
        self.random = random.Random(seed)
        self.files = {self.path(): self.text(self.random.randint(20, 400)) for _ in range(files)}
        self.mark = 0
        self.clock = 1_600_000_000

    def path(self) -> str:
        """Return a new path, one to four folders deep."""
        r = self.random
        folders = [f"{r.choice(WORDS)}{r.randint(0, 5)}" for _ in range(r.randint(1, 4))]
        return "/".join([*folders, f"{r.choice(WORDS)}_{r.randint(0, 10**9)}.txt"])

    def line(self) -> str:
        """Return a line of words."""
        return (
            " ".join(self.random.choices(WORDS, k=self.random.randint(3, 9)))
            + f" {self.random.randint(0, 10**6)}"
        )

    def text(self, lines: int) -> list[str]:
        """Return a file's lines."""
        return [self.line() for _ in range(lines)]

    def edit(self) -> list[str]:
        """Change some files; return their paths."""
        r = self.random
        touched = r.sample(sorted(self.files), k=min(len(self.files), r.choice((1, 1, 1, 2, 3, 5))))
        for path in touched:
            lines = self.files[path]
            for _ in range(r.randint(1, 6)):
                at = r.randrange(len(lines) + 1)
                action = r.random()
                if action < 0.5 and at < len(lines):
                    lines[at] = self.line()
                elif action < 0.85 or len(lines) < 5:
                    lines.insert(at, self.line())
                else:
                    del lines[at - 1]
        if r.random() < 0.08:
            path = self.path()
            self.files[path] = self.text(r.randint(20, 200))
            touched.append(path)
        if r.random() < 0.04 and len(self.files) > 50:
            path = r.choice(sorted(self.files))
            del self.files[path]
            touched.append(path)
        return touched

    def commit(self, ref: str, paths: list[str], parents: list[int]) -> int:
        """Write one commit; return its mark."""
        self.mark += 1
        self.clock += self.random.randint(30, 4000)
        message = f"{self.line()}\n\n{self.line()}\n".encode()
        out = [f"commit {ref}\nmark :{self.mark}\n".encode()]
        out.append(
            f"committer Author {self.mark % 40} <a{self.mark % 40}@example.org> {self.clock} +0000\n".encode()
        )
        out.append(b"data %d\n%s\n" % (len(message), message))
        for word, parent in zip(("from", "merge"), parents, strict=False):
            out.append(f"{word} :{parent}\n".encode())
        for path in paths:
            if path in self.files:
                data = ("\n".join(self.files[path]) + "\n").encode()
                out.append(f"M 100644 inline {path}\ndata {len(data)}\n".encode() + data + b"\n")
            else:
                out.append(f"D {path}\n".encode())
        self.out.write(b"".join(out))
        return self.mark

    def history(self, commits: int) -> None:
        """Write the whole history."""
        tip = self.commit("refs/heads/main", sorted(self.files), [])
        side: int | None = None
        for number in range(1, commits):
            if number % 50 == 25:
                side = self.commit("refs/heads/side", self.edit(), [tip])
            elif number % 50 == 0 and side is not None:
                tip = self.commit("refs/heads/main", sorted({*self.edit()}), [tip, side])
            else:
                tip = self.commit("refs/heads/main", self.edit(), [tip])
            if number % 500 == 0:
                tag = f"tag v{number}\nfrom :{tip}\ntagger T <t@example.org> {self.clock} +0000\ndata 8\nrelease\n\n"
                self.out.write(tag.encode())


def generate(folder: Path, *, commits: int = 20_000, files: int = 800, seed: int = 1) -> Path:
    """Make the repository in ``folder`` unless it is there already; return the folder."""
    done = folder / "generated"
    stamp = f"{commits} {files} {seed}\n"
    if done.is_file() and done.read_text() == stamp:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    git = ["git", "--git-dir", str(folder)]
    subprocess.run(["git", "init", "--quiet", "--bare", "-b", "main", str(folder)], check=True)
    with subprocess.Popen(
        [*git, "fast-import", "--quiet", "--force"], stdin=subprocess.PIPE
    ) as importer:
        assert importer.stdin is not None
        Writer(importer.stdin, files=files, seed=seed).history(commits)
        importer.stdin.close()
    if importer.returncode:
        raise SystemExit("git fast-import failed")
    # One thread: deltas found by several threads differ from run to run.
    subprocess.run(
        [*git, "-c", "pack.threads=1", "repack", "-adfq", "--depth=50", "--window=10"], check=True
    )
    done.write_text(stamp)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--commits", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=800)
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args()
    print(generate(words.folder, commits=words.commits, files=words.files, seed=words.seed))
