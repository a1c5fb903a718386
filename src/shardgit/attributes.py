"""Attributes of paths, as .gitattributes files give them. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.wildmatch import glob

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_MAX_BYTES = 100 << 20  # git passes over a larger one, and over longer lines
LINE_MAX_BYTES = 2_048
_NAME = re.compile(rb"[A-Za-z0-9._][A-Za-z0-9._-]*")
_WILD = re.compile(rb"[*?\[\\]")
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2}|.)", re.DOTALL)
_LETTERS = {b"a": 7, b"b": 8, b"t": 9, b"n": 10, b"v": 11, b"f": 12, b"r": 13}

Value = bytes | bool | None
"""True for set, False for unset, None for unspecified, else the text."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A line: which paths, and what it says of them in its order."""

    pattern: bytes
    names_folder: bool
    says: tuple[tuple[bytes, Value], ...]

    def matches(self, path: bytes, *, folder: bool) -> bool:
        """Return whether it is about a path, relative to the rule's file and without end slash."""
        if self.names_folder and not folder:
            return False
        pattern = self.pattern
        if b"/" not in pattern:
            path = path[path.rfind(b"/") + 1 :]
            if pattern[:1] == b"*" and not _WILD.search(pattern, 1):
                return path.endswith(pattern[1:])
            return glob(pattern, path=False).matches(path)
        pattern = pattern.removeprefix(b"/")
        if not _WILD.search(pattern):
            return path == pattern
        return glob(pattern, path=True).matches(path)


@dataclass(frozen=True, slots=True)
class AttributesFile:
    """One .gitattributes: its rules, the last one first, and the macros that it defines."""

    rules: tuple[Rule, ...]
    macros: tuple[tuple[bytes, tuple[tuple[bytes, Value], ...]], ...]


_BINARY: dict[bytes, tuple[tuple[bytes, Value], ...]] = {
    b"binary": ((b"diff", False), (b"merge", False), (b"text", False))
}


def parse_attributes(data: bytes) -> AttributesFile:
    """Return what a file says. What does not parse is passed over, as git does."""
    rules: list[Rule] = []
    macros = []
    if len(data) <= FILE_MAX_BYTES:
        for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
            text = line.strip(b" \t\r\n")
            if not text or text.startswith(b"#") or len(line) >= LINE_MAX_BYTES:
                continue
            if text.startswith(b"[attr]"):
                words = text[6:].split()
                if words and _NAME.fullmatch(words[0]):
                    macros.append((words[0], _says(words[1:])))
                continue
            pattern, rest = _pattern(text)
            if pattern and not pattern.startswith(b"!"):
                folder = pattern.endswith(b"/") and len(pattern) > 1
                rules.append(Rule(pattern.removesuffix(b"/") if folder else pattern, folder, rest))
    return AttributesFile(tuple(reversed(rules)), tuple(macros))


def _pattern(text: bytes) -> tuple[bytes, tuple[tuple[bytes, Value], ...]]:
    quoted = _QUOTED.match(text)
    if quoted:
        pattern = _ESCAPE.sub(lambda found: _unescaped(found[1]), quoted[1])
        return pattern, _says(text[quoted.end() :].split())
    first, *words = text.split()
    return first, _says(words)


def _unescaped(text: bytes) -> bytes:
    if len(text) == 3:
        return bytes([int(text, 8)])
    return bytes([_LETTERS[text]]) if text in _LETTERS else text


def _says(words: list[bytes]) -> tuple[tuple[bytes, Value], ...]:
    """Return the attributes of a line; a line with a bad name says nothing, as in git."""
    out: list[tuple[bytes, Value]] = []
    for word in words:
        name, equals, text = word.partition(b"=")
        value: Value = text if equals else True
        if not equals and name[:1] in (b"-", b"!"):
            value = False if name[:1] == b"-" else None
            name = name[1:]
        if not _NAME.fullmatch(name):
            return ()
        out.append((name, value))
    return tuple(out)


class Attributes:
    """What the files from the root down to a folder say of the paths in it.

    ``inside`` returns the same for a folder below, with that folder's own file. Macros count in
    the root's file only.
    """

    def __init__(self, root: AttributesFile | None = None) -> None:
        self._files: tuple[tuple[bytes, AttributesFile], ...] = ()
        self._macros = dict(_BINARY)
        if root is not None:
            self._macros |= dict(root.macros)
            if root.rules:
                self._files = ((b"", root),)

    def inside(self, folder: bytes, file: AttributesFile | None) -> Attributes:
        """Return what counts in ``folder``, a path that ends in a slash."""
        if file is None or not file.rules:
            return self
        made = Attributes()
        made._macros = self._macros
        made._files = ((folder, file), *self._files)
        return made

    def of(self, path: bytes, *, folder: bool = False) -> Mapping[bytes, Value]:
        """Return the attributes of a path; what is not said is not in it."""
        found: dict[bytes, Value] = {}
        for base, file in self._files:
            below = path[len(base) :]
            for rule in file.rules:
                if rule.matches(below, folder=folder):
                    self._add(found, rule.says)
        return found

    def _add(self, found: dict[bytes, Value], says: tuple[tuple[bytes, Value], ...]) -> None:
        waiting = [
            list(says)
        ]  # the last word counts first, and a macro before what stands left of it
        while waiting:
            if not waiting[-1]:
                waiting.pop()
                continue
            name, value = waiting[-1].pop()
            if name not in found:
                found[name] = value
                if value is True and name in self._macros:
                    waiting.append(list(self._macros[name]))
