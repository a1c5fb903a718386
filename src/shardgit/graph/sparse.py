"""Sparse specifications: gitignore patterns of what is let pass, and the blobs of trees that they match.

Source: gitignore(5). A path that no pattern matches is as its folder; the root is not matched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import LimitExceeded
from shardgit.graph.closure import bits_of
from shardgit.objects import DIRECTORY, GITLINK
from shardgit.oid import ObjectId

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardgit.pool.view import PoolView

READ_EACH = 512  # trees held at a time
PATTERNS_MAX = 10_000
_CLASSES = {
    b"alnum": b"0-9A-Za-z",
    b"alpha": b"A-Za-z",
    b"blank": b" \\t",
    b"cntrl": b"\\x00-\\x1f\\x7f",
    b"digit": b"0-9",
    b"graph": b"\\x21-\\x7e",
    b"lower": b"a-z",
    b"print": b"\\x20-\\x7e",
    b"punct": b"\\x21-/:-@\\[-`{-~",
    b"space": b" \\t\\n\\v\\f\\r",
    b"upper": b"A-Z",
    b"xdigit": b"0-9A-Fa-f",
}


@dataclass(frozen=True, slots=True)
class _Pattern:
    """One line: ``parts`` match the components of a path, None any number of them."""

    parts: tuple[re.Pattern[bytes] | None, ...]
    negative: bool
    folders_only: bool
    anywhere: bool  # looks at the last component alone


class Patterns:
    """The patterns of a specification; the last that matches decides."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        if len(lines) > PATTERNS_MAX:
            raise LimitExceeded("sparse specification has too many lines", limit=PATTERNS_MAX)
        found = [made for line in lines if (made := _pattern(line)) is not None]
        self._patterns = tuple(reversed(found))

    def match(self, path: bytes, *, folder: bool) -> bool | None:
        """Return whether a path is let pass, None when no pattern says so."""
        parts = path.split(b"/")
        for pattern in self._patterns:
            if pattern.folders_only and not folder:
                continue
            if pattern.anywhere:
                (only,) = pattern.parts
                if only is None or only.fullmatch(parts[-1]):
                    return not pattern.negative
            elif path and _matches(pattern.parts, parts):
                return not pattern.negative
        return None


def _pattern(line: bytes) -> _Pattern | None:
    line = line.removesuffix(b"\r")
    if not line or line.startswith(b"#"):
        return None
    negative = line.startswith(b"!")
    text = _trimmed(line[1:] if negative else line)
    folders_only = text.endswith(b"/")
    text = text[:-1] if folders_only else text
    anywhere = b"/" not in text
    names = [text] if anywhere else text.removeprefix(b"/").split(b"/")
    parts: list[re.Pattern[bytes] | None] = []
    for at, name in enumerate(names):
        if name != b"**" or anywhere:
            parts.append(re.compile(_component(name), re.DOTALL))
        elif at == len(names) - 1:  # all below, not the folder itself
            parts += [re.compile(b".+", re.DOTALL), None]
        elif not parts or parts[-1] is not None:
            parts.append(None)
    return _Pattern(tuple(parts), negative, folders_only, anywhere)


def _trimmed(text: bytes) -> bytes:
    """Return a line without trailing blanks; one behind a backslash stays."""
    kept = len(text.rstrip(b" "))
    slashes = kept - len(text[:kept].rstrip(b"\\"))
    return text[: kept + 1] if slashes % 2 and kept < len(text) else text[:kept]


def _component(glob: bytes) -> bytes:
    """Return a regular expression for one component. Each run of stars gives way once only: no backtracking
    over more than one of them, so that matching takes time by length times length at most.
    """
    pieces: list[bytes] = [b""]
    at = 0
    while at < len(glob):
        char = glob[at : at + 1]
        at += 1
        if char == b"*":
            if pieces[-1] or len(pieces) == 1:
                pieces.append(b"")
        elif char == b"?":
            pieces[-1] += b"."
        elif char == b"[":
            body, at = _bracket(glob, at)
            pieces[-1] += body
        elif char == b"\\" and at < len(glob):
            pieces[-1] += re.escape(glob[at : at + 1])
            at += 1
        else:
            pieces[-1] += re.escape(char)
    if len(pieces) == 1:
        return pieces[0]
    middle = b"".join(b"(?>.*?" + piece + b")" for piece in pieces[1:-1])
    return pieces[0] + middle + b".*" + pieces[-1]


def _bracket(glob: bytes, at: int) -> tuple[bytes, int]:
    """Return the expression of a set that starts behind its bracket, and where it ends."""
    negative = glob[at : at + 1] in (b"!", b"^")
    start = at = at + negative
    body = b""
    while at < len(glob) and (glob[at : at + 1] != b"]" or at == start):
        if glob[at : at + 2] == b"[:" and (end := glob.find(b":]", at)) > 0:
            if glob[at + 2 : end] not in _CLASSES:
                return _NEVER, len(glob)
            body += _CLASSES[glob[at + 2 : end]]
            at = end + 2
            continue
        low, at = _char(glob, at)
        if glob[at : at + 1] == b"-" and glob[at + 1 : at + 2] not in (b"]", b""):
            high, at = _char(glob, at + 1)
            body += b"\\x%02x-\\x%02x" % (low, high) if low <= high else b""
        else:
            body += b"\\x%02x" % low
    if at >= len(glob):
        return _NEVER, at
    if not body:
        return (b"." if negative else _NEVER), at + 1
    return b"[" + (b"^" if negative else b"") + body + b"]", at + 1


_NEVER = b"(?!)"


def _char(glob: bytes, at: int) -> tuple[int, int]:
    if glob[at : at + 1] == b"\\" and at + 1 < len(glob):
        at += 1
    return glob[at], at + 1


def _matches(parts: tuple[re.Pattern[bytes] | None, ...], path: list[bytes]) -> bool:
    """Return whether the parts match the whole path; a row of a table for each part."""
    reached = [True] + [False] * len(path)
    for part in parts:
        if part is None:
            first = reached.index(True)
            reached = [at >= first for at in range(len(reached))]
            continue
        reached = [False] + [
            came and part.fullmatch(name) is not None
            for came, name in zip(reached, path, strict=False)
        ]
        if True not in reached:
            return False
    return reached[-1]


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder under way: its path, and whether what no pattern matches in it is let pass."""

    path: bytes
    passes: bool


def sparse_blobs(
    view: PoolView, patterns: Patterns, trees: Iterable[int], alone: Iterable[int] = ()
) -> bytes:
    """Return the bitset of blobs that stand at a matching path below any of ``trees``, root trees of commits.

    ``alone`` are trees that were asked for themselves. Every tree is read, once for each path it stands at.
    """
    root = patterns.match(b"", folder=True)
    waiting = [(tree, _Folder(b"", bool(root))) for tree in set(trees)]
    waiting += [(tree, _Folder(b"", False)) for tree in set(alone)]
    seen: set[tuple[int, _Folder]] = set(waiting)
    verdicts: dict[tuple[bytes, bool], bool | None] = {}
    rows: dict[_Folder, set[tuple[bytes, ...]]] = {}  # entries that were looked at already
    entry = re.compile(rb"([0-7]+) ([^\0]+)\0(.{%d})" % view.hash_kind.size, re.DOTALL)
    found: set[ObjectId] = set()

    def passes(folder: _Folder, name: bytes, *, is_folder: bool) -> bool:
        key = (folder.path + b"/" + name if folder.path else name, is_folder)
        if key not in verdicts:
            verdicts[key] = patterns.match(key[0], folder=is_folder)
        verdict = verdicts[key]
        return folder.passes if verdict is None else verdict

    while waiting:
        some, waiting = waiting[-READ_EACH:], waiting[:-READ_EACH]
        below: list[tuple[ObjectId, _Folder]] = []
        for tree, (_, folder) in zip(
            view.read_positions([tree for tree, _ in some]), some, strict=True
        ):
            known = rows.setdefault(folder, set())
            # A history's trees differ by little: the rest is told apart by set operations.
            fresh = {*entry.findall(tree.data)}.difference(known)
            known |= fresh
            for mode_text, name, oid in fresh:
                mode = int(mode_text, 8) & 0o170000
                if mode == GITLINK:
                    continue
                passing = passes(folder, name, is_folder=mode == DIRECTORY)
                if mode == DIRECTORY:
                    path = folder.path + b"/" + name if folder.path else name
                    below.append((ObjectId(oid), _Folder(path, passing)))
                elif passing:
                    found.add(ObjectId(oid))
        places = view.positions([oid for oid, _ in below])
        for place, (_, folder) in zip(places, below, strict=True):
            if place >= 0 and (place, folder) not in seen:
                seen.add((place, folder))
                waiting.append((place, folder))
    return bits_of((at for at in view.positions(sorted(found)) if at >= 0), view.objects)
