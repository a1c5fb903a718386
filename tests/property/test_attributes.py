"""Attributes and globs as git check-attr gives them, over random patterns and paths."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

import pytest
from reference.gits import git

from shardgit.attributes import Attributes, parse_attributes
from shardgit.wildmatch import Wildmatch

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.attributes import Value

pytestmark = pytest.mark.interop
PIECES = [
    *["a", "b", "ab", ".", "-", "*", "*", "**", "?", "/", "/", "**/", "/**", "/**/", "[ab]"],
    *["[!a]", "[^b/]", "[a-c]", "[]a]", "[]-a]", "[[:alpha:]]", "[[:digit:]b]", "[[:nope:]]"],
    *["\\a", "\\*", "\\", "[", "[a", "[\\]]", "[a-", "[!]a]", "***", "*.c", "[[:]", "[b-a]"],
]
WORDS = ["a", "b", "ab", "ba", "abc", "a.c", "-", "]", "*", ".x", "aa"]


def patterns(rand: random.Random, count: int) -> list[str]:
    made = ["".join(rand.choice(PIECES) for _ in range(rand.randint(1, 6))) for _ in range(count)]
    # "x**/" is "x*/", but gits before 2.53 or so took it for "x" and any number of folders
    return [
        text
        for text in made
        if not text.startswith("!") and text.strip("/") and not re.search(r"[^/*]\*\*", text)
    ]


def paths(rand: random.Random, count: int) -> list[str]:
    made = {"/".join(rand.choice(WORDS) for _ in range(rand.randint(1, 4))) for _ in range(count)}
    return sorted(made | {path + "/" for path in list(made)[:40]})


def told(folder: Path, some: list[str]) -> dict[str, dict[bytes, Value]]:
    """Return what git says of paths."""
    out = git(
        folder,
        "check-attr",
        "--all",
        "--stdin",
        "-z",
        stdin="".join(p + "\0" for p in some).encode(),
    )
    found: dict[str, dict[bytes, Value]] = {path: {} for path in some}
    words = out.split(b"\0")[:-1]
    values: dict[bytes, Value] = {b"set": True, b"unset": False}
    for path, name, value in zip(words[::3], words[1::3], words[2::3], strict=True):
        found[path.decode()][name] = values.get(value, value)
    return found


def ours(path: str, files: dict[str, str]) -> dict[bytes, Value]:
    attributes = Attributes(parse_attributes(files.get("", "").encode()))
    parts = path.rstrip("/").split("/")
    for depth in range(1, len(parts)):
        folder = "/".join(parts[:depth]) + "/"
        if folder in files:
            file = parse_attributes(files[folder].encode())
            attributes = attributes.inside(folder.encode(), file)
    found = attributes.of(path.rstrip("/").encode(), folder=path.endswith("/"))
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("seed", range(12))
def test_patterns_match_what_git_matches(tmp_path: Path, seed: int) -> None:
    rand = random.Random(seed)
    some = patterns(rand, 200)
    text = "".join(f"{pattern} a{number}\n" for number, pattern in enumerate(some))
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitattributes").write_text(text)
    asked = paths(rand, 120)
    for path, want in told(tmp_path, asked).items():
        got = ours(path, {"": text})
        wrong = {some[int(name[1:])] for name in set(want) ^ set(got) if name != b"binary"}
        assert not wrong, path


@pytest.mark.parametrize("seed", range(12))
def test_files_macros_and_values_weigh_as_in_git(tmp_path: Path, seed: int) -> None:
    rand = random.Random(seed)
    git(tmp_path, "init", "-q")
    words = ["x", "-x", "!x", "x=1", "y", "-y", "y=2", "m", "-m", "binary", "text", "k", "-1bad"]
    words += ["-text", "text=auto", "export-ignore", "!binary", "k=a=b"]

    def file(*, top: bool) -> str:
        lines = ["# a comment", "", "   "]
        if top:
            lines += ["[attr]m x -y", "[attr]k m y=3 -text"]
        for _ in range(rand.randint(1, 8)):
            pattern = rand.choice(["*", "a", "/a", "a/b", "a/", "*.c", '"a b"', '"\\141"', "ab*"])
            lines.append(f"{pattern} {' '.join(rand.sample(words, rand.randint(0, 4)))}")
        return "\n".join(lines) + ("\r\n" if rand.random() < 0.5 else "\n")

    files = {"": file(top=True), "a/": file(top=False), "a/b/": file(top=False)}
    for folder, text in files.items():
        (tmp_path / folder).mkdir(exist_ok=True, parents=True)
        (tmp_path / folder / ".gitattributes").write_bytes(text.encode())
    asked = [*paths(rand, 60), "a b", "a/b/a b", "a/b/a/a.c", "ab/a"]
    for path, want in told(tmp_path, asked).items():
        assert ours(path, files) == want, (path, files)


def test_a_pattern_of_many_stars_ends() -> None:
    """A matcher that tries all ways to share the text among the stars would not."""
    glob = Wildmatch(b"*a" * 500 + b"b", path=False)
    assert not glob.matches(b"a" * 4_000)
    assert glob.matches(b"a" * 4_000 + b"b")


def test_a_row_of_any_number_of_folders_matches_any_number() -> None:
    glob = Wildmatch(b"**/" * 1_000 + b"x", path=True)
    assert glob.matches(b"x")
    assert glob.matches(b"a/" * 400 + b"x")
    assert not glob.matches(b"a/" * 400 + b"y")
