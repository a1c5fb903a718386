"""Objects as files of a folder."""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.buckets.bucket import Listed
from shardgit.errors import PermissionRefused, StorageFull, Unavailable
from shardgit.faultpoints import reach
from shardgit.lmdbenv import NO_SPACE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TEMPORARY = "tmp"
_OF_A_DISK = {"lost+found"}
_UNFINISHED = re.compile("[0-9]+-[0-9a-f]{16}")


class FolderBucket:
    """Objects as files: written beside, fsynced, renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = str(folder)

    @contextmanager
    def _typed(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as cause:
            facts = {"target": self.where, "object": name}
            if cause.errno in NO_SPACE:
                raise StorageFull("no space left in the folder of objects", **facts) from cause
            if cause.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise PermissionRefused("folder of objects may not be used", **facts) from cause
            text = cause.strerror or str(cause)
            raise Unavailable("folder of objects failed", **facts, cause=text) from cause

    def put(self, name: str, data: bytes) -> None:
        """See Bucket."""
        with self._typed(name):
            fresh = self._write(data)
            target = self._place(name)
            # commit point: before it the object is not there, after it it is whole.
            reach("bucket.before_put")
            fresh.replace(target)
            reach("bucket.after_put")
            sync_folder(target.parent)

    def create(self, name: str, data: bytes) -> bool:
        """See Bucket."""
        with self._typed(name):
            fresh = self._write(data)
            target = self._place(name)
            try:
                # commit point: before it the object is not there, after it it is whole. A link,
                # not a rename: one that is there must stay.
                reach("bucket.before_create")
                target.hardlink_to(fresh)
                reach("bucket.after_create")
            except FileExistsError:
                return False
            finally:
                fresh.unlink()
            sync_folder(target.parent)
            return True

    def _write(self, data: bytes) -> Path:
        folder = self.folder / TEMPORARY
        folder.mkdir(exist_ok=True)
        fresh = folder / f"{os.getpid()}-{os.urandom(8).hex()}"
        try:
            with fresh.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                fresh.unlink()
            raise
        return fresh

    def _place(self, name: str) -> Path:
        target = self.folder / name
        for folder in reversed(target.parents[: len(Path(name).parts) - 1]):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                sync_folder(folder.parent)
        return target

    def get(self, name: str) -> bytes | None:
        """See Bucket."""
        with self._typed(name):
            try:
                return (self.folder / name).read_bytes()
            except FileNotFoundError:
                return None

    def get_range(self, name: str, start: int, end: int) -> bytes | None:
        """See Bucket."""
        with self._typed(name):
            try:
                with (self.folder / name).open("rb") as file:
                    return os.pread(file.fileno(), end - start, start)
            except FileNotFoundError:
                return None

    def size(self, name: str) -> int | None:
        """See Bucket."""
        with self._typed(name):
            try:
                return (self.folder / name).stat().st_size
            except FileNotFoundError:
                return None

    def list(self, prefix: str) -> Iterator[Listed]:
        """See Bucket."""
        with self._typed(prefix):
            for folder, _, files in os.walk(self.folder / prefix):
                for name in files:
                    path = Path(folder, name)
                    try:
                        found = path.stat()
                    except FileNotFoundError:
                        continue  # deleted meanwhile
                    written_ms = found.st_mtime_ns // 1_000_000
                    yield Listed(str(path.relative_to(self.folder)), found.st_size, written_ms)

    def delete(self, names: Sequence[str]) -> None:
        """See Bucket."""
        for name in names:
            with self._typed(name):
                (self.folder / name).unlink(missing_ok=True)

    def is_empty(self) -> bool:
        """Say whether nothing is in the folder but what belongs to a disk, and objects that were not finished."""
        rest = {entry.name for entry in self.folder.iterdir()} - _OF_A_DISK - {TEMPORARY}
        unfinished = self.folder / TEMPORARY
        if rest or not unfinished.exists():
            return not rest
        return unfinished.is_dir() and all(
            _UNFINISHED.fullmatch(path.name) for path in unfinished.iterdir()
        )

    def sweep(self) -> None:
        """Remove what writers that died have left."""
        folder = self.folder / TEMPORARY
        if folder.is_dir():
            for path in folder.iterdir():
                with suppress(OSError):
                    path.unlink()


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
