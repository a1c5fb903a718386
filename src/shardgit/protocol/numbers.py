"""Numbers in requests, read as git's C reads them: base by prefix, leading blanks, a sign."""

from __future__ import annotations

import re

_NUMBER = re.compile(
    rb"[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|0([0-7]*)|([1-9][0-9]*))", re.DOTALL
)
_UNITS = {b"": 1, b"k": 1 << 10, b"m": 1 << 20, b"g": 1 << 30}
_MOST = (1 << 64) - 1
_LONG = (1 << 63) - 1
_DIGITS_MAX = 64  # what is longer is over every bound


def _leading(text: bytes) -> tuple[int, bytes] | None:
    """Return the number at the start of a text and what follows it; None without one."""
    found = _NUMBER.match(text)
    if found is None:
        return None
    sign, hexadecimal, octal, decimal = found.groups()
    digits = (hexadecimal or octal or decimal or b"0").lstrip(b"0") or b"0"
    base = 16 if hexadecimal else 8 if octal else 10
    value = int(digits, base) if len(digits) <= _DIGITS_MAX else _MOST + 1
    return -value if sign == b"-" else value, text[found.end() :]


def parse_int(text: bytes) -> int | None:
    """Return a C ``int`` as ``(int)strtol(text, &end, 0)`` gives it; None when something follows it."""
    found = _leading(text)
    if found is None or found[1]:
        return None
    value = max(-_LONG - 1, min(found[0], _LONG)) & 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def parse_time(text: bytes) -> int | None:
    """Return seconds since 1970, as git's parse_timestamp; None when something follows them."""
    found = _leading(text)
    if found is None or found[1]:
        return None
    return min(found[0], _MOST) if found[0] >= 0 else found[0] & _MOST


def parse_size(text: bytes) -> int | None:
    """Return a number with k, m or g behind it, as git's git_parse_ulong; None for anything else."""
    found = _leading(text)
    if found is None or b"-" in text:
        return None
    value, unit = found
    factor = _UNITS.get(unit.lower())
    if factor is None or value * factor > _MOST:
        return None
    return value * factor
