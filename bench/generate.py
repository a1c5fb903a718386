"""Make repositories to measure on: seeded, so that two runs compare the same bytes.

    python bench/generate.py deep|wide|blobs|many_refs FOLDER [--commits 20000] [--files 800] [--seed 1] ...

deep: files of 20 to 400 lines in nested folders; each commit edits, adds or removes a few; every 50th is a merge; tags
every 500. wide: 500,000 files, and a few hundred commits. blobs: large files, in versions. many_refs: a million refs.
Histories are written by `git fast-import` and packed by `git repack`, so the deltas are git's own.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

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


def _made(folder: Path, stamp: str, make: Callable[[Path], None]) -> Path:
    """Make a repository unless it is there already, by this stamp; what was begun and not ended is thrown away."""
    done = folder / "generated"
    if done.is_file() and done.read_text() == stamp:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "init", "--quiet", "--bare", "-b", "main", str(folder)], check=True)
    make(folder)
    done.write_text(stamp)
    return folder


def _import(folder: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Feed one fast-import."""
    words = ["git", "--git-dir", str(folder), "fast-import", "--quiet", "--force"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as importer:
        assert importer.stdin is not None
        write(importer.stdin)
        importer.stdin.close()
    if importer.returncode:
        raise SystemExit("git fast-import failed")


def _repack(folder: Path, *words: str) -> None:
    # One thread: deltas found by several threads differ from run to run.
    git = ["git", "--git-dir", str(folder), "-c", "pack.threads=1"]
    subprocess.run([*git, "repack", "-adq", *words], check=True)


def deep(folder: Path, *, commits: int = 20_000, files: int = 800, seed: int = 1) -> Path:
    """Make a deep history, with the deltas that git finds."""

    def make(folder: Path) -> None:
        _import(folder, lambda out: Writer(out, files=files, seed=seed).history(commits))
        _repack(folder, "-f", "--depth=50", "--window=10")

    return _made(folder, f"deep {commits} {files} {seed}\n", make)


def several(folder: Path, *, histories: int, commits: int, files: int = 200) -> Path:
    """Make a repository of histories that share nothing, a branch each: ten of them are ten times the data of one.

    Packed with fast-import's own deltas, so that an object is stored alike whatever else is there.
    """

    def make(folder: Path) -> None:
        for number in range(histories):
            part = folder / "part.git"
            subprocess.run(
                ["git", "init", "--quiet", "--bare", "-b", "main", str(part)], check=True
            )
            _import(
                part, lambda out, n=number: Writer(out, files=files, seed=n + 1).history(commits)
            )
            ref = f"+refs/heads/main:refs/heads/{'main' if number == 0 else f'main{number}'}"
            fetch = ["fetch", "--quiet", "--no-tags", f"file://{part.resolve()}", ref]
            subprocess.run(["git", "--git-dir", str(folder), *fetch], check=True)
            shutil.rmtree(part)
        _repack(folder)

    return _made(folder, f"several {histories} {commits} {files}\n", make)


def wide(
    folder: Path, *, files: int = 500_000, commits: int = 300, touched: int = 20, seed: int = 1
) -> Path:
    """Make a monorepo: very many small files in folders of 100, and commits that touch a few of them."""
    some = random.Random(seed)
    paths = [
        f"{WORDS[n % 20]}{n // 100_000}/{WORDS[n // 20 % 20]}/part{n // 100}/{WORDS[n % 13]}_{n}.txt"
        for n in range(files)
    ]

    def text(number: int) -> bytes:
        lines = (" ".join(some.choices(WORDS, k=6)) for _ in range(some.randint(2, 8)))
        return f"file {number}\n{chr(10).join(lines)}\n".encode()

    def write(out: IO[bytes]) -> None:
        clock = 1_600_000_000
        for number in range(commits + 1):
            which = range(files) if number == 0 else sorted(some.sample(range(files), touched))
            out.write(
                b"commit refs/heads/main\nmark :%d\ncommitter A <a@example.org> %d +0000\ndata 7\nchange\n"
                % (number + 1, clock + number * 600)
            )
            if number:
                out.write(b"from :%d\n" % number)
            for at in which:
                data = text(at)
                out.write(
                    b"M 100644 inline %s\ndata %d\n%s\n" % (paths[at].encode(), len(data), data)
                )

    def make(folder: Path) -> None:
        _import(folder, write)
        _repack(folder)

    return _made(folder, f"wide {files} {commits} {touched} {seed}\n", make)


def blobs(folder: Path, *, count: int = 12, mib: int = 8, versions: int = 3, seed: int = 1) -> Path:
    """Make large blobs: half of them of noise, half of text; each in versions that differ in a few places."""
    some = random.Random(seed)

    def data_of(number: int) -> bytearray:
        size = mib << 20
        if number % 2 == 0:
            return bytearray(some.randbytes(size))
        line = [(" ".join(some.choices(WORDS, k=9)) + "\n").encode() for _ in range(5_000)]
        return bytearray(b"".join(some.choices(line, k=size // 60)))

    def write(out: IO[bytes]) -> None:
        mark = 0
        for number in range(count):
            data = data_of(number)
            for version in range(versions):
                for _ in range(20 if version else 0):
                    at = some.randrange(len(data) - 100)
                    data[at : at + 50] = some.randbytes(60)
                mark += 1
                out.write(
                    b"commit refs/heads/main\nmark :%d\ncommitter A <a@example.org> %d +0000\ndata 5\nblob\n"
                    % (mark, 1_600_000_000 + mark)
                )
                if mark > 1:
                    out.write(b"from :%d\n" % (mark - 1))
                out.write(b"M 100644 inline media/big%d.bin\ndata %d\n" % (number, len(data)))
                out.write(data)
                out.write(b"\n")

    def make(folder: Path) -> None:
        _import(folder, write)
        _repack(folder)

    return _made(folder, f"blobs {count} {mib} {versions} {seed}\n", make)


def many_refs(folder: Path, *, refs: int = 1_000_000) -> Path:
    """Make a repository of one commit that very many refs name, packed as `git pack-refs` writes them."""

    def make(folder: Path) -> None:
        _import(folder, lambda out: Writer(out, files=20, seed=1).history(1))
        git = ["git", "--git-dir", str(folder)]
        done = subprocess.run([*git, "rev-parse", "main"], capture_output=True, check=True)
        oid = done.stdout.strip()
        names = sorted(b"refs/pull/%d/head" % number for number in range(refs))
        head = b"# pack-refs with: peeled fully-peeled sorted \n"
        rows = b"".join(oid + b" " + name + b"\n" for name in [b"refs/heads/main", *names])
        (folder / "packed-refs").write_bytes(head + rows)
        (folder / "refs" / "heads" / "main").unlink(missing_ok=True)

    return _made(folder, f"many refs {refs}\n", make)


KINDS = {"deep": deep, "wide": wide, "blobs": blobs, "many_refs": many_refs}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    for name in ("commits", "files", "seed", "refs", "count", "mib", "versions", "touched"):
        parser.add_argument(f"--{name}", type=int)
    words = vars(parser.parse_args())
    make, folder = KINDS[words.pop("kind")], words.pop("folder")
    print(make(folder, **{name: value for name, value in words.items() if value is not None}))
