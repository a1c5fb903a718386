"""Sparse patterns: git check-ignore is the judge."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from reference.gits import git

from shardgit.errors import LimitExceeded
from shardgit.graph.sparse import PATTERNS_MAX, Patterns

if TYPE_CHECKING:
    from pathlib import Path

PATHS = [
    *("a", "b.c", "#x", "!x", "x ", "sub/a", "sub/b.c", "sub/deep/a", "sub/deep/b.c", "other/a"),
    *("foo/bar", "foo/x/bar", "foo/x/y/bar", "a-b", "a]b", "abc", "a*b", "a\\b", "sub/[x]"),
]
SPECS = [
    ["a"],
    ["/a"],
    ["*.c"],
    ["sub/"],
    ["/sub/*", "!/sub/deep/"],
    ["sub/**"],
    ["**/deep"],
    ["**/a"],
    ["foo/**/bar"],
    ["foo/*/bar"],
    ["*", "!*.c"],
    ["\\#x", "\\!x"],
    ["x\\ "],
    ["x "],
    ["# a", "", "a"],
    ["a[-]b", "a[]]b"],
    ["a[!b]c", "a[^z]c"],
    ["[[:alpha:]]*", "![[:upper:]]"],
    ["a[b-d]*"],
    ["a\\*b"],
    ["a?b"],
    ["a**b"],
    ["sub/\\[x\\]"],
    ["[z"],
    ["/**/a"],
    ["sub/deep/../a"],
    ["a[b"],
]


@pytest.mark.parametrize("lines", SPECS, ids=" ".join)
def test_patterns_match_as_gits_do(tmp_path: Path, lines: list[str]) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / ".git/info/exclude").write_text("\n".join(lines) + "\n")
    patterns = Patterns("\n".join(lines).encode())
    for path in PATHS:
        shown = git(
            tmp_path,
            "check-ignore",
            "--no-index",
            "-v",
            "-z",
            "--stdin",
            stdin=path.encode(),
            check=False,
        )
        verdict = patterns.match(path.encode(), folder=False)
        parents = [path[:at] for at, char in enumerate(path) if char == "/"]
        if any(patterns.match(each.encode(), folder=True) for each in parents):
            continue  # git looks no further below an ignored folder
        decided = shown.split(b"\0")[2] if shown else b""
        want = None if not decided else not decided.startswith(b"!")
        assert verdict == want, path


def test_matching_takes_bounded_time() -> None:
    patterns = Patterns(b"\n".join([b"*a" * 60 + b"b", b"**/a/" * 30 + b"b", b"?*" * 50 + b"b"]))
    begun = time.process_time()
    assert patterns.match(b"a" * 4_000, folder=False) is None
    assert patterns.match(b"a/" * 400 + b"a", folder=False) is None
    assert time.process_time() - begun < 20  # not exponential


def test_lines_are_bounded() -> None:
    with pytest.raises(LimitExceeded):
        Patterns(b"a\n" * (PATTERNS_MAX + 1))
