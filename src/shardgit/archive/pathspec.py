"""Pathspecs: which paths of a tree are meant. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument
from shardgit.wildmatch import Wildmatch, glob

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXT_MAX_BYTES = 4_096  # no path is longer where git runs
_SHORT = {b"/": b"top", b"!": b"exclude", b"^": b"exclude"}
_WORDS = (b"top", b"exclude", b"glob", b"icase", b"literal")


@dataclass(frozen=True, slots=True)
class Item:
    """One pathspec: a path with all below it, or a glob."""

    text: bytes
    exclude: bool
    fold: bool
    glob: Wildmatch | None
    fixed: bytes  # what every match starts with

    def matches(self, path: bytes) -> bool:
        """Return whether a path, without end slash, is meant or lies below what is."""
        if self.fold:
            path = path.lower()
        text = self.text
        if not text or path == text or (path.startswith(text) and _below(path, text)):
            return True
        return self.glob is not None and self.glob.matches(path)

    def may_match_below(self, folder: bytes) -> bool:
        """Return whether a path below a folder may be meant; ``folder`` is without end slash."""
        if self.fold:
            folder = folder.lower()
        start = folder + b"/"
        return start.startswith(self.fixed) or self.fixed.startswith(start) or self.matches(folder)


def _below(path: bytes, folder: bytes) -> bool:
    return folder.endswith(b"/") or path[len(folder) : len(folder) + 1] == b"/"


class Pathspec:
    """What any of its items means, without what one that excludes means. Empty: everything."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        items = [_item(text) for text in texts]
        self.items = [item for item in items if not item.exclude]
        self._without = [item for item in items if item.exclude]

    def matches(self, path: bytes) -> bool:
        """Return whether a path is meant."""
        meant = not self.items or any(item.matches(path) for item in self.items)
        return meant and not any(item.matches(path) for item in self._without)

    def enters(self, folder: bytes) -> bool:
        """Return whether something below a folder may be meant."""
        if any(item.matches(folder) for item in self._without):
            return False
        return not self.items or any(item.may_match_below(folder) for item in self.items)


def _item(text: bytes) -> Item:
    if len(text) > TEXT_MAX_BYTES:
        raise InvalidArgument("pathspec is too long", bytes=len(text), limit=TEXT_MAX_BYTES)
    words: set[bytes] = set()
    rest = text
    if text.startswith(b":("):
        inside, closed, rest = text[2:].partition(b")")
        if not closed:
            raise InvalidArgument("Missing ')' at the end of pathspec magic", pathspec=_shown(text))
        words = {word for word in inside.split(b",") if word}
    elif text.startswith(b":") and len(text) > 1:
        rest = text[1:]
        while rest[:1] in _SHORT:
            words.add(_SHORT[rest[:1]])
            rest = rest[1:]
        rest = rest.removeprefix(b":")
    unknown = words.difference(_WORDS)
    if unknown:
        raise InvalidArgument("pathspec magic is not supported", pathspec=_shown(text))
    fold = b"icase" in words
    clean = _normal(rest)
    wild = b"literal" not in words and any(byte in clean for byte in b"*?[\\")
    plain = clean.lower() if fold else clean
    compiled = glob(clean, path=b"glob" in words, fold=fold) if wild else None
    fixed = plain[: compiled.fixed] if compiled else plain
    return Item(plain, b"exclude" in words, fold, compiled, fixed)


def _normal(path: bytes) -> bytes:
    """Return a path without ``.`` and doubled slashes; InvalidArgument for one that leads out."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if not parts:
                raise InvalidArgument("pathspec is outside the repository", pathspec=_shown(path))
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    if path.startswith(b"/"):
        raise InvalidArgument("pathspec is outside the repository", pathspec=_shown(path))
    return b"/".join(parts)


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "replace")[:200]
