"""Sizes as people write them (4096, 500m, 10Gi, 2 TiB), and as they read them."""

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


def human_bytes(count: float) -> str:
    """Return a size as people read it."""
    if abs(count) < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if abs(count) < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"
