"""Notes of operations under way: a small file each in the store's scratch, for who watches.

Nothing relies on them: they are not fsynced, and one whose process is gone is passed over and removed.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

import msgspec

from shardgit import clock
from shardgit.processes import born

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.progress import Progress

FOLDER = "operations"
EVERY_S = 0.5  # between two writes of one stage
NOTES_MAX = 256  # that are read: one of a kind may run, and one compaction of a pool
NOTE_MAX_BYTES = 4_096


class OperationNote(msgspec.Struct, frozen=True):
    """An operation under way; ``stage`` is "" before it has told anything, ``total`` None while nobody knows."""

    kind: str
    pid: int
    born: int
    started_ms: int
    told_ms: int
    stage: str = ""
    done: int = 0
    total: int | None = None
    unit: str = ""


class Noting:
    """The note of one operation, written by the thread that runs it."""

    def __init__(self, folder: Path, kind: str) -> None:
        now = clock.now_ms()
        self._path = folder / f"{kind}.json"
        self._note = OperationNote(kind, os.getpid(), born(os.getpid()), now, now)
        self._written_s = float("-inf")
        self._write()

    def tell(self, progress: Progress) -> None:
        """Note how far the operation is; of one stage a few times a second at most."""
        late = time.monotonic() - self._written_s >= EVERY_S
        if not late and progress.stage == self._note.stage:
            return
        self._note = msgspec.structs.replace(
            self._note,
            told_ms=clock.now_ms(),
            stage=progress.stage,
            done=progress.done,
            total=progress.total,
            unit=progress.unit,
        )
        self._write()

    def end(self) -> None:
        """Take the note away."""
        with suppress(OSError):
            self._path.unlink()

    def _write(self) -> None:
        self._written_s = time.monotonic()
        fresh = self._path.with_suffix(".new")
        with suppress(OSError):  # a full disk, or no scratch: the operation is not noted
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            fresh.write_bytes(msgspec.json.encode(self._note))
            fresh.replace(self._path)


_noting: ContextVar[Noting | None] = ContextVar("noting", default=None)


@contextmanager
def noted(scratch: Path, kind: str) -> Iterator[None]:
    """Note an operation while the block runs, which is in one thread."""
    noting = Noting(scratch / FOLDER, kind)
    token = _noting.set(noting)
    try:
        yield
    finally:
        _noting.reset(token)
        noting.end()


def tell(progress: Progress) -> None:
    """Add progress to the note of this thread's operation, if it runs one."""
    noting = _noting.get()
    if noting is not None:
        noting.tell(progress)


def operations_under_way(scratch: Path) -> list[OperationNote]:
    """Return the notes of operations whose processes live, the oldest first."""
    found: list[OperationNote] = []
    with suppress(OSError):
        for path in sorted((scratch / FOLDER).glob("*.json"))[:NOTES_MAX]:
            note = _read(path)
            if note is None:
                continue
            if note.born and born(note.pid) == note.born:
                found.append(note)
            else:
                path.unlink(missing_ok=True)
    return sorted(found, key=lambda note: (note.started_ms, note.kind))


def _read(path: Path) -> OperationNote | None:
    try:
        with path.open("rb") as opened:
            return msgspec.json.decode(opened.read(NOTE_MAX_BYTES), type=OperationNote)
    except (OSError, msgspec.MsgspecError):  # it has just ended
        return None
