"""Locks between processes: files that are there only while a lock is held."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROUNDS = 16  # against holders that release at the same moment


class FileLock:
    """A lock that one holder has, of all processes and all threads.

    The kernel frees it when its process dies; the file that stays then is the next holder's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def try_take(self) -> bool:
        """Take the lock, unless another holder has it; True while it is ours."""
        for _ in range(ROUNDS):
            if self._descriptor >= 0:
                return True
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            # Opened anew each time: flock keeps holders of one process apart only by different files.
            descriptor = os.open(self.path, flags, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_there(descriptor):
                    self._descriptor, descriptor = descriptor, -1
            except BlockingIOError:
                return False
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        return self._descriptor >= 0

    def _is_there(self, descriptor: int) -> bool:
        """Say whether the path still leads to what was opened: its last holder may have removed it."""
        ours = os.fstat(descriptor)
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def is_taken(self) -> bool:
        """Say whether somebody holds the lock. Many may ask at once; who would take it meanwhile may fail for once."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    @property
    def held(self) -> bool:
        """Whether the lock is ours."""
        return self._descriptor >= 0

    def release(self) -> None:
        """Give the lock back, if it is ours, and remove its file."""
        if self._descriptor >= 0:
            with suppress(OSError):
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1


@contextmanager
def holding(path: Path) -> Iterator[bool]:
    """Hold a lock, or give False when another holder has it."""
    lock = FileLock(path)
    held = lock.try_take()
    try:
        yield held
    finally:
        lock.release()


def sweep(*folders: Path) -> None:
    """Remove the lock files that processes left when they died."""
    for folder in folders:
        for path in folder.glob("*.lock"):
            lock = FileLock(path)
            lock.try_take()
            lock.release()
