"""Sizes as people write them: 4096, 500m, 10Gi, 2 TiB."""

from __future__ import annotations

import re

SIZE_MAX = 1 << 62
_SIZE = re.compile(r"(\d{1,18})\s*(?:([kmgt])i?)?b?", re.IGNORECASE)
_SCALE = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def size_in(text: str) -> int | None:
    """Return the bytes, or the number, that a text says; None when it is no size, or larger than any bound can be."""
    found = _SIZE.fullmatch(text.strip())
    size = int(found[1]) * _SCALE[(found[2] or "").lower()] if found else SIZE_MAX + 1
    return size if size <= SIZE_MAX else None
