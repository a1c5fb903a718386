"""How commands print: JSON, tables, sizes, progress."""

from __future__ import annotations

import json as json_module
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from shardgit.service import sizes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shardgit.operate.nodes import NodeLoad
    from shardgit.operate.rebalance import ShardLoad
    from shardgit.progress import Progress, Report

BAR_AFTER_S = 0.7  # what is quicker shows no bar
LOAD_BAR_CELLS = 24
human_bytes = sizes.human_bytes  # beside what else commands print with


def plain(value: Any) -> Any:
    """Return a value as JSON can show it: ids as hex, dataclasses as objects."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: plain(one) for key, one in asdict(value).items()}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def print_json(value: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(json_module.dumps(plain(value), indent=2) + "\n")
    sys.stdout.flush()


def print_json_rows(key: str, rows: Iterable[Any]) -> None:
    """Print ``{key: [...]}`` with a row a line, as the rows come."""
    sys.stdout.write(f"{{{json_module.dumps(key)}: [")
    gap = "\n"
    for row in rows:
        sys.stdout.write(gap + json_module.dumps(plain(row)))
        gap = ",\n"
    sys.stdout.write("\n]}\n" if gap != "\n" else "]}\n")


def print_line(text: str) -> None:
    """Print a line; bytes that are no text come out as they came in, but on a terminal: see ``harmless``."""
    shown = harmless(text) if sys.stdout.isatty() else text
    sys.stdout.buffer.write(shown.encode("utf-8", "surrogateescape") + b"\n")


def harmless(text: str) -> str:
    """Return text with what a terminal would obey as escapes: names and authors are what clients said."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def print_table(columns: list[str], rows: list[list[object]]) -> None:
    """Print rows in aligned columns, numbers to the right."""
    text = [columns, *[[harmless(str(cell)) for cell in row] for row in rows]]
    widths = [max(len(row[n]) for row in text) for n in range(len(columns))]
    numeric = [
        bool(rows) and all(isinstance(row[n], int | float) for row in rows)
        for n in range(len(columns))
    ]
    for row in text:
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=True)
        ]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def plural(count: int, noun: str) -> str:
    """Return a count of things in words."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


LOAD_COLUMNS = ("WEIGHT", "PARTITIONS", "BEFORE", "AFTER", "")


def load_cells(one: ShardLoad | NodeLoad, most: int) -> list[object]:
    """Return the cells of LOAD_COLUMNS; ``most`` are the bytes of a whole bar."""
    return [
        f"{one.weight:g}",
        f"{one.partitions_before} -> {one.partitions_after}",
        human_bytes(one.bytes_before),
        human_bytes(one.bytes_after),
        load_bar(one.bytes_before, one.bytes_after, most),
    ]


def most_loaded(loads: Iterable[ShardLoad] | Iterable[NodeLoad]) -> int:
    """Return the most bytes that any has or had."""
    return max((max(one.bytes_before, one.bytes_after) for one in loads), default=0)


def load_bar(before: int, after: int, most: int) -> str:
    """Return a bar of what stays (#), what leaves (-) and what comes (+)."""
    if not most:
        return ""
    old, new = (round(LOAD_BAR_CELLS * size / most) for size in (before, after))
    return "#" * min(old, new) + "-" * max(old - new, 0) + "+" * max(new - old, 0)


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Report]:
    """Show progress on a terminal's standard error: a bar a stage, its rate, the time that is left."""
    from shardgit.progress import silent

    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description:>18}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[said]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
    )
    tasks: dict[str, tuple[TaskID, float, int]] = {}
    begun = time.monotonic()

    def report(step: Progress) -> None:
        now = time.monotonic()
        if not bars.live.is_started and now - begun > BAR_AFTER_S:
            bars.start()
        if step.stage not in tasks:
            task = bars.add_task(step.stage, total=step.total, said="", rate="")
            tasks[step.stage] = (task, now, step.done)
        task, since, first = tasks[step.stage]
        rate = rate_text(step, step.done - first, now - since)
        bars.update(
            task, completed=step.done, total=step.total, said=progress_text(step), rate=rate
        )

    try:
        yield report
    finally:
        if bars.live.is_started:
            bars.stop()


def rate_text(step: Progress, done: int, seconds: float) -> str:
    """Return how fast a stage goes, in words; nothing before half a second, and for waiting."""
    if seconds < 0.5 or step.unit == "seconds":
        return ""
    if step.unit == "bytes":
        return f"{human_bytes(done / seconds)}/s"
    return f"{done / seconds:,.0f} {step.unit}/s"


def progress_text(step: Progress) -> str:
    """Return how far a stage is, in words."""
    if step.unit == "bytes":
        done, total = human_bytes(step.done), human_bytes(step.total or 0)
        return f"{done} of {total}" if step.total else done
    return (
        f"{step.done:,} of {step.total:,} {step.unit}"
        if step.total
        else f"{step.done:,} {step.unit}"
    )
