"""Make seeds for the fuzzer of other projects' test data: git's, libgit2's, dulwich's, gitoxide's, go-git's, any.

    python tests/fuzz/corpora.py [--out build/fuzz/seeds] FOLDER...

A folder is a checked-out repository, a bare one (its newest commit is looked at), or a folder with any files. Taken are
packs, indices, loose objects, requests and responses, corpora of fuzzers, and some objects and a pack of the
repository itself. Nothing of it belongs into this repository.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SIZE_MAX = 64 << 10
EACH_MAX = 400  # of one project for one target
TYPES = {b"commit": 1, b"tree": 2, b"blob": 3, b"tag": 4}
LOOSE = re.compile(r"(^|/)[0-9a-f]{2}/[0-9a-f]{38}$")
# What a path says of a file: the targets that it is for.
KINDS = (
    (re.compile(r"\.pack$|/packfile/|/data_file/"), ("pack", "packstream")),
    (re.compile(r"\.idx$|pack/fuzz/[a-z]+/index_file/"), ("idx",)),
    (re.compile(r"\.(response|request)$|download_refs|pkt-?line"), ("pktline", "request", "push")),
    (re.compile(r"\.gz$"), ("gzip",)),
)
OBJECTS = re.compile(r"corpora/objects/|/(commits|trees|tags|object)/[^/]+$")


def main() -> int:
    """Write the seeds; returns 1 when nothing was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz/seeds"))
    words = parser.parse_args()
    made: Counter[str] = Counter()
    for folder in words.folders:
        of_this: Counter[str] = Counter()
        for target, data in seeds(folder):
            if len(data) > SIZE_MAX or of_this[target] >= EACH_MAX:
                continue
            of_this[target] += 1
            place = words.out / target
            place.mkdir(parents=True, exist_ok=True)
            (place / hashlib.sha1(data).hexdigest()).write_bytes(data)
        made += of_this
    sys.stdout.write("".join(f"{target:12} {made[target]:6}\n" for target in sorted(made)))
    return 0 if made else 1


def seeds(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Return targets and inputs that a folder has."""
    repository = _repository(folder)
    bare = repository is not None and not (folder / ".git").exists()
    for path, data in _in_commit(folder) if bare else _on_disk(folder):
        yield from of_file(path, data)
    if repository is not None:
        with contextlib.suppress(subprocess.CalledProcessError):  # of a partial copy
            yield from _of_history(folder)


def of_file(path: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Return what a file is a seed for, by its path."""
    for pattern, targets in KINDS:
        if pattern.search(path):
            yield from ((target, data) for target in targets)
    if LOOSE.search(path):
        yield from _loose(data)
    elif OBJECTS.search(path):
        for kind in TYPES.values():
            yield from _object(kind, data)
    elif path.endswith((".gitmodules", "gitmodules")):
        yield "fsck", b"\3" + data


def _object(kind: int, data: bytes) -> Iterator[tuple[str, bytes]]:
    for target in ("object", "fsck"):
        yield target, bytes([kind]) + data


def _loose(data: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        plain = zlib.decompressobj().decompress(data, SIZE_MAX)
    except zlib.error:
        return
    head, nul, body = plain.partition(b"\0")
    kind = TYPES.get(head.partition(b" ")[0])
    if nul and kind is not None:
        yield from _object(kind, body)


def _repository(folder: Path) -> str | None:
    done = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "--verify", "-q", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def _git(folder: Path, *words: str, given: bytes = b"") -> bytes:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout


def _wanted(path: str) -> bool:
    return bool(LOOSE.search(path) or OBJECTS.search(path) or path.endswith("gitmodules")) or any(
        pattern.search(path) for pattern, _ in KINDS
    )


def _on_disk(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(folder.rglob("*")):
        path = str(file.relative_to(folder))
        if _wanted(path) and file.is_file() and file.stat().st_size <= SIZE_MAX:
            yield path, file.read_bytes()


def _in_commit(folder: Path) -> Iterator[tuple[str, bytes]]:
    rows = _git(folder, "ls-tree", "-r", "-l", "-z", "HEAD").decode("utf-8", "replace").split("\0")
    for row in filter(None, rows):
        facts, path = row.split("\t", 1)
        _, kind, oid, size = facts.split()
        if size.isdigit() and int(size) <= SIZE_MAX and kind == "blob" and _wanted(path):
            yield path, _git(folder, "cat-file", "blob", oid)


def _of_history(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Return commits, tags and trees of the last commits, and a pack of the last two."""
    ids = _git(folder, "rev-list", "--objects", "--max-count=20", "HEAD").split(b"\n")
    tags = _git(folder, "for-each-ref", "--count=20", "--format=%(objectname)", "refs/tags")
    for oid in dict.fromkeys(row.partition(b" ")[0].decode() for row in [*ids[:200], *_rows(tags)]):
        kind = _git(folder, "cat-file", "-t", oid).strip() if oid else b""
        if kind in TYPES and kind != b"blob":
            yield from _object(TYPES[kind], _git(folder, "cat-file", kind.decode(), oid))
    for count in ("1", "3"):
        listed = _git(folder, "rev-list", "--objects", f"--max-count={count}", "HEAD").split(b"\n")
        given = b"\n".join(row.partition(b" ")[0] for row in listed[:40])
        for options in (("--delta-base-offset",), ("--depth=0",)):
            pack = _git(folder, "pack-objects", "--stdout", "-q", *options, given=given)
            yield "pack", pack
            yield "packstream", pack


def _rows(text: bytes) -> Iterable[bytes]:
    return (row for row in text.split(b"\n") if row)


if __name__ == "__main__":
    sys.exit(main())
