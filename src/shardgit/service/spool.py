"""Finished files that can be made again: bounded in bytes, shared by all processes of a store."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import time
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import faultpoints
from shardgit.errors import LimitExceeded, StorageFull
from shardgit.filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from pathlib import Path

    from shardgit.workers import Workers

READ_BYTES = 1 << 20
TOUCH_S = 60.0  # a file in use is marked so at most that often
WAIT_S = (0.02, 0.5)  # between looks whether another maker has ended: first, and longest
ABANDONED_S = 3_600.0  # a temporary file that nobody wrote to for that long has no maker any more
_KEY = re.compile(r"[0-9a-z.-]{1,120}")


@dataclass(slots=True)
class SpoolFile:
    """An open finished file. It stays readable when it is dropped from the spool meanwhile.

    Nobody may be left to close it where a request is cancelled while a thread opens it.
    """

    key: str
    size: int
    descriptor: int

    def read(self, start: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``start`` on."""
        return os.pread(self.descriptor, length, start)

    def close(self) -> None:
        """Close the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        """Close a file that was lost."""
        self.close()


class Spool:
    """Files by key in one folder; the least used go when all together pass ``most_bytes``.

    A file gets its name when it is whole and on the disk. One maker at a time works on a key, in
    any process; the others wait for it, and go on themselves when it fails. Equal keys mean equal
    bytes, so that whichever maker wins is right.
    """

    def __init__(self, folder: Path, workers: Workers, *, most_bytes: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self._workers = workers

    def open(self, key: str) -> SpoolFile | None:
        """Return a file, None when it is not there. Runs in the calling thread."""
        assert _KEY.fullmatch(key)
        try:
            descriptor = os.open(self.folder / key, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with suppress(OSError):  # a file that looks older than it is goes sooner, no more
            status = os.fstat(descriptor)
            if time.time() - status.st_mtime > TOUCH_S:
                os.utime(descriptor)
        return SpoolFile(key, os.fstat(descriptor).st_size, descriptor)

    async def take(self, key: str, make: Callable[[], AsyncGenerator[bytes, None]]) -> SpoolFile:
        """Return a file, which ``make`` yields in pieces when it is not there.

        Errors: those of ``make``; LimitExceeded when the file alone is over the spool's bound;
        StorageFull. A failed or cancelled attempt leaves nothing.
        """
        run = self._workers.run
        wait = WAIT_S[0]
        while True:
            found = await run(self.open, key)
            if found is not None:
                return found
            async with self._lock(key) as mine:
                if mine:
                    found = await run(self.open, key)  # its maker may have ended in between
                    return found or await self._make(key, make)
            await asyncio.sleep(wait)
            wait = min(2 * wait, WAIT_S[1])

    @asynccontextmanager
    async def _lock(self, key: str) -> AsyncIterator[bool]:
        """Hold the key's lock; False when another maker does. A dead process holds none."""
        lock = FileLock(self.folder / f"{key}.lock")
        try:
            # A cancelled caller waits for its job, so what that took is given back here.
            yield await self._workers.run(self._take, lock)
        finally:
            lock.release()

    async def _descriptor(self, job: Callable[[], int]) -> int:
        """Run what opens a file in a thread. A cancelled caller has no use for it: it is closed."""
        made: list[int] = []
        try:
            await self._workers.run(lambda: made.append(job()))
        except asyncio.CancelledError:
            for each in made:
                if each >= 0:
                    os.close(each)
            raise
        return made[0]

    def _take(self, lock: FileLock) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        return lock.try_take()

    async def _make(self, key: str, make: Callable[[], AsyncGenerator[bytes, None]]) -> SpoolFile:
        path = self.folder / f"{key}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        run = self._workers.run
        try:
            descriptor = await self._descriptor(lambda: os.open(path, flags, 0o600))
            try:
                size = 0
                async with aclosing(make()) as pieces:
                    async for piece in pieces:
                        size += len(piece)
                        if size > self.most_bytes:
                            raise LimitExceeded(
                                "file is over the bound of the spool", limit_bytes=self.most_bytes
                            )
                        await run(_write, descriptor, piece)
                await run(os.fsync, descriptor)
            finally:
                os.close(descriptor)
            # commit point: before it the file is not there, after it it is there whole.
            faultpoints.reach("spool.before_rename")
            await run(path.rename, self.folder / key)
            faultpoints.reach("spool.after_rename")
        except OSError as cause:
            if cause.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull("no room for a file in the spool") from cause
            raise
        finally:
            path.unlink(missing_ok=True)
        await run(self._evict, key)
        found = await run(self.open, key)
        if found is None:
            raise StorageFull("spool dropped a file that was just made")
        return found

    def note(self, key: str, text: bytes) -> None:
        """Write a small file at once, in place of any before it. Runs in the calling thread."""
        assert _KEY.fullmatch(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{key}.{os.getpid()}.{time.monotonic_ns()}.tmp"
        try:
            path.write_bytes(text)
            path.rename(self.folder / key)
        finally:
            path.unlink(missing_ok=True)

    def noted(self, key: str) -> bytes:
        """Return a small file's bytes, b"" when it is not there. Runs in the calling thread."""
        try:
            return (self.folder / key).read_bytes()
        except FileNotFoundError:
            return b""

    def drop(self, key: str) -> None:
        """Remove a file, that of a damaged disk for one. Runs in the calling thread."""
        assert _KEY.fullmatch(key)
        (self.folder / key).unlink(missing_ok=True)

    def _evict(self, keep: str) -> None:
        """Drop the least used files until the bound holds, and what dead makers left."""
        now = time.time()
        files: list[tuple[float, int, str]] = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    old = now - status.st_mtime > ABANDONED_S
                    if not entry.name.endswith((".tmp", ".lock")):
                        files.append((status.st_mtime, status.st_size, entry.name))
                    elif old and entry.name.endswith(".tmp"):
                        (self.folder / entry.name).unlink()
        total = sum(size for _, size, _ in files)
        for _, size, name in sorted(files):
            if total <= self.most_bytes:
                return
            if name != keep:
                (self.folder / name).unlink(missing_ok=True)
                total -= size


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
