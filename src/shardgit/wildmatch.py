"""Git's globs over paths, matched in time bounded by pattern times text, whatever the pattern."""

from __future__ import annotations

import functools
import string

_CLASSES = {
    b"alnum": frozenset(string.ascii_letters.encode() + string.digits.encode()),
    b"alpha": frozenset(string.ascii_letters.encode()),
    b"blank": frozenset(b" \t"),
    b"cntrl": frozenset([*range(32), 127]),
    b"digit": frozenset(string.digits.encode()),
    b"graph": frozenset(range(33, 127)),
    b"lower": frozenset(string.ascii_lowercase.encode()),
    b"print": frozenset(range(32, 127)),
    b"punct": frozenset(string.punctuation.encode()),
    b"space": frozenset(b" \t\n\v\f\r"),
    b"upper": frozenset(string.ascii_uppercase.encode()),
    b"xdigit": frozenset(string.hexdigits.encode()),
}
_SLASH = 0x2F
_ALL = frozenset(range(256))
_NOT_SLASH = _ALL - {_SLASH}
_NONE: frozenset[int] = frozenset()
_ONE = [frozenset([byte]) for byte in range(256)]  # shared: a pattern takes 8 bytes a byte, not 200


class _Bad(Exception):
    """A pattern that no text matches: an open bracket, a lone backslash at the end."""


class Wildmatch:
    """One glob: ``*``, ``?``, ``[set]``, ``\\x``; with ``path`` only ``**`` crosses a slash.

    A set of states, one bit for each place in the pattern, moves over the text.
    """

    def __init__(self, pattern: bytes, *, path: bool, fold: bool = False) -> None:
        self._fold = fold
        pattern = pattern.lower() if fold else pattern
        self.fixed = len(_special(pattern))  # bytes of the pattern before its first wildcard
        self._start = -1
        self._stars = self._steps = 0  # places that may stay; places that take a byte
        self._stay: list[tuple[int, frozenset[int]]] = []
        self._take: list[frozenset[int]] = []
        self._near = self._far = (
            0  # places from which the next, the third next is reached for nothing
        )
        self._moves: dict[int, tuple[int, int]] = {}
        try:
            self._compile(pattern, path=path)
        except _Bad:
            self._start = -1
            return
        self._end = 1 << len(self._take)
        self._start = self._closed(1)

    def _compile(self, pattern: bytes, *, path: bool) -> None:
        at = 0
        while at < len(pattern):
            byte = pattern[at]
            if byte == 0x2A:
                stop = at
                while stop < len(pattern) and pattern[stop] == 0x2A:
                    stop += 1
                deep = not path
                if path and stop - at >= 2 and (at == 0 or pattern[at - 1] == _SLASH):
                    if stop == len(pattern):
                        deep = True
                    elif pattern[stop] == _SLASH:  # any number of whole folders
                        here = len(self._take)
                        self._take.append(_NONE)
                        self._near |= 1 << here
                        self._far |= 1 << here
                        self._star(_ALL)
                        self._take.append(_ONE[_SLASH])
                        at = stop + 1
                        continue
                self._star(_ALL if deep else _NOT_SLASH)
                at = stop
            elif byte == 0x3F:
                self._take.append(_NOT_SLASH if path else _ALL)
                at += 1
            elif byte == 0x5B:
                found, at = _bracket(pattern, at + 1, fold=self._fold)
                self._take.append(found - {_SLASH} if path else found)
            else:
                if byte == 0x5C:
                    at += 1
                    if at == len(pattern):
                        raise _Bad
                self._take.append(_ONE[pattern[at]])
                at += 1

    def _star(self, over: frozenset[int]) -> None:
        here = len(self._take)
        self._stay.append((here, over))
        self._take.append(_NONE)
        self._near |= 1 << here

    def _closed(self, states: int) -> int:
        while True:  # one round for each leap behind another: few, but for a row of "**/"
            more = states | (states & self._near) << 1 | (states & self._far) << 3
            if more == states:
                return states
            states = more

    def _move(self, byte: int) -> tuple[int, int]:
        """Return masks: places that a byte lets stay, places that it moves on."""
        found = self._moves.get(byte)
        if found is None:
            stay = sum(1 << place for place, over in self._stay if byte in over)
            take = sum(1 << place for place, over in enumerate(self._take) if byte in over)
            found = self._moves[byte] = (stay, take)
        return found

    def matches(self, text: bytes) -> bool:
        """Return whether the whole text matches."""
        states = self._start
        if states < 0:
            return False
        for byte in text.lower() if self._fold else text:
            stay, take = self._move(byte)
            states = self._closed(states & stay | (states & take) << 1)
            if not states:
                return False
        return bool(states & self._end)


def _special(pattern: bytes) -> bytes:
    """Return the start of a pattern that holds no wildcard."""
    for at, byte in enumerate(pattern):
        if byte in b"*?[\\":
            return pattern[:at]
    return pattern


def _bracket(pattern: bytes, at: int, *, fold: bool) -> tuple[frozenset[int], int]:
    """Return the bytes that a bracket expression takes, and where it ends."""
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    found: set[int] = set()
    first, before = True, -1
    while True:
        if at >= len(pattern):
            raise _Bad
        byte = pattern[at]
        if byte == 0x5D and not first:
            break
        first = False
        if byte == 0x5B and pattern[at + 1 : at + 2] == b":":
            end = pattern.find(b"]", at + 2)
            if end < 0:
                raise _Bad
            if pattern[end - 1] == 0x3A and end - 1 > at + 1:
                name = pattern[at + 2 : end - 1]
                if name not in _CLASSES:
                    raise _Bad
                found |= _CLASSES[b"alpha" if fold and name in (b"upper", b"lower") else name]
                at, before = end + 1, -1
                continue
        if byte == 0x2D and before >= 0 and pattern[at + 1 : at + 2] not in (b"", b"]"):
            at += 1
            last = pattern[at]
            if last == 0x5C:
                at += 1
                if at == len(pattern):
                    raise _Bad
                last = pattern[at]
            found |= set(range(before, last + 1))
            at, before = at + 1, -1
            continue
        if byte == 0x5C:
            at += 1
            if at == len(pattern):
                raise _Bad
            byte = pattern[at]
        found.add(byte)
        at, before = at + 1, byte
    return (_ALL - found if negated else frozenset(found)), at + 1


@functools.lru_cache(maxsize=1_024)
def glob(pattern: bytes, *, path: bool, fold: bool = False) -> Wildmatch:
    """Return a compiled glob; they are kept."""
    return Wildmatch(pattern, path=path, fold=fold)
