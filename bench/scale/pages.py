"""Markdown of what was computed."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; all columns but the first are to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def flow(text: str) -> str:
    """Return text with its paragraphs and items wrapped anew; tables and headings stay as they are."""
    out: list[str] = []
    block: list[str] = []

    def end() -> None:
        if block:
            item = block[0].startswith("- ") or block[0][:1].isdigit()
            indent = "  " if block[0].startswith("- ") else "   " if item else ""
            words = " ".join(" ".join(block).split())
            out.extend(textwrap.wrap(words, 120, subsequent_indent=indent, break_long_words=False))
            block.clear()

    for line in text.split("\n"):
        whole = line.startswith(("|", "#", "    ")) or not line
        if whole or line.startswith("- ") or re.match(r"\d+\. ", line):
            end()
        if whole:
            out.append(line)
        else:
            block.append(line)
    end()
    return "\n".join(out)


def count(value: float) -> str:
    """Return a number short: 3 digits and a word."""
    for size, word in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{word}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def size(value: float) -> str:
    """Return bytes with a decimal unit."""
    for unit, word in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= unit:
            return f"{value / unit:.3g} {word}"
    return f"{value:.0f} B"


def percent(value: float, digits: int = 1) -> str:
    """Return a part of 1 in percent."""
    return f"{100 * value:.{digits}f}%"


def span(seconds: float) -> str:
    """Return a time with a fitting unit."""
    for unit, word in ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.3g} {word}"
    return f"{seconds:.3g} s"


def dollars(value: float) -> str:
    """Return an amount."""
    if value >= 100:
        return f"${value:,.0f}"
    if value >= 0.01:
        return f"${value:.3g}"
    return f"${value * 1e6:,.3g} a million" if value < 1e-3 else f"${value:.3g}"
