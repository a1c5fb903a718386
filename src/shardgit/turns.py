"""Turns: what only one may do at a time, in all processes of a store."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Protocol

from shardgit import clock
from shardgit.filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

TRY_AGAIN_S = 0.02
MAINTENANCE = "maintenance"  # the turn of whose rounds go over the store


class Turn(Protocol):
    """A turn that is ours until it is given back or the process dies."""

    @property
    def held(self) -> bool:
        """Whether it is ours still."""
        ...

    def fence(self) -> AbstractContextManager[None]:
        """Let what this thread commits in the block fail once the turn is another's."""
        ...

    def release(self) -> None:
        """Give it back; again does nothing."""
        ...


class Turns(Protocol):
    """The turns of a store, by names of letters, digits, dots and dashes; a slash parts a group from the rest."""

    def try_take(self, name: str, *, note: bytes = b"") -> Turn | None:
        """Take a turn, None while another has it, be it in this process. ``note`` is for those who ask meanwhile."""
        ...

    def note_of(self, name: str) -> bytes | None:
        """Return what the holder of a turn noted, None when nobody has it."""
        ...


@contextmanager
def holding(turns: Turns, name: str, *, tries: int = 1) -> Iterator[bool]:
    """Hold a turn, or give False when another has it. What this thread commits meanwhile is fenced."""
    turn = turns.try_take(name)
    for _ in range(tries - 1):
        if turn is None:
            clock.sleep(TRY_AGAIN_S)
            turn = turns.try_take(name)
    if turn is None:
        yield False
        return
    try:
        with turn.fence():
            yield True
    finally:
        turn.release()


class FileTurns:
    """The turns of a store on one machine: locks of files, which the kernel frees when their holder dies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def try_take(self, name: str, *, note: bytes = b"") -> Turn | None:
        """See Turns."""
        lock = self._lock(name)
        lock.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not lock.try_take():
            return None
        path = self._note(name)
        turn = _FileTurn(lock, path if note else None)
        try:
            if note:
                path.write_bytes(note)
            else:
                path.unlink(missing_ok=True)  # of a holder that died
        except BaseException:
            turn.release()
            raise
        return turn

    def note_of(self, name: str) -> bytes | None:
        """See Turns. One that is half written is b""."""
        if not self._lock(name).is_taken():
            return None
        with suppress(FileNotFoundError):
            return self._note(name).read_bytes()
        return b""

    def _lock(self, name: str) -> FileLock:
        return FileLock(self._folder / f"{name}.lock")

    def _note(self, name: str) -> Path:
        return self._folder / f"{name}.note"


class _FileTurn:
    def __init__(self, lock: FileLock, note: Path | None) -> None:
        self._lock = lock
        self._note = note

    @property
    def held(self) -> bool:
        return self._lock.held

    def fence(self) -> AbstractContextManager[None]:
        return nullcontext()  # the kernel lets nobody else have it before this process has died

    def release(self) -> None:
        if self._note is not None:
            with suppress(OSError):
                self._note.unlink()
            self._note = None
        self._lock.release()
