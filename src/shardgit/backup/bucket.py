"""Where backups lie: named objects in a folder or an object store, written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from shardgit.errors import (
    BackupCorrupt,
    BackupMissing,
    InvalidArgument,
    PermissionRefused,
    Refused,
    StorageFull,
    Unavailable,
)
from shardgit.faultpoints import reach
from shardgit.lmdbenv import NO_SPACE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CLOUD_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl")
TEMPORARY = "tmp"
_OF_A_DISK = {"lost+found"}
_UNFINISHED = re.compile("[0-9]+-[0-9a-f]{16}")


class Bucket(Protocol):
    """Named objects. Names are relative, with slashes; several threads may call at once.

    put and create return once the object is durable, whole; a reader never sees a part of one.
    Errors: Unavailable for what may pass, StorageFull, PermissionRefused, Refused.
    """

    where: str
    """The target in words, without secrets."""

    def put(self, name: str, data: bytes) -> None:
        """Write an object, over one of that name."""

    def create(self, name: str, data: bytes) -> bool:
        """Write an object; False when there is one of that name, which stays."""

    def get(self, name: str) -> bytes | None:
        """Return an object, None when it is missing."""

    def get_range(self, name: str, start: int, end: int) -> bytes:
        """Return some bytes of an object, fewer at its end; BackupCorrupt when it is missing."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Return name and size of the objects whose names start with ``prefix``/, in no order."""

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; those that are missing are passed over."""


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
                raise StorageFull("no space left in the backup's target", **facts) from cause
            if cause.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise PermissionRefused("backup's target may not be used", **facts) from cause
            text = cause.strerror or str(cause)
            raise Unavailable("backup's target failed", **facts, cause=text) from cause

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

    def get_range(self, name: str, start: int, end: int) -> bytes:
        """See Bucket."""
        with self._typed(name):
            try:
                with (self.folder / name).open("rb") as file:
                    return os.pread(file.fileno(), end - start, start)
            except FileNotFoundError as cause:
                raise BackupCorrupt(
                    "object of the backup is missing", target=self.where, object=name
                ) from cause

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See Bucket."""
        with self._typed(prefix):
            for folder, _, files in os.walk(self.folder / prefix):
                for name in files:
                    path = Path(folder, name)
                    yield str(path.relative_to(self.folder)), path.stat().st_size

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


def open_bucket(target: str, *, make: bool = False) -> Bucket:
    """Return the bucket at a path or URL; ``make`` makes a folder whose parent exists.

    Errors: BackupMissing without such a folder, InvalidArgument for another kind of URL, Refused
    when the driver of object stores is not installed.
    """
    scheme, mark, _ = target.partition("://")
    if not mark or scheme == "file":
        folder = Path(unquote(urlsplit(target).path) if mark else target).absolute()
        if make and not folder.exists():
            # The parent must be there: a disk that is not mounted is no place for a backup.
            try:
                folder.mkdir()
            except OSError as cause:
                raise Refused(
                    "folder for backups was not made", path=str(folder), cause=cause.strerror
                ) from cause
        if not folder.is_dir():
            raise BackupMissing("no backups there", target=str(folder))
        return FolderBucket(folder)
    if scheme not in CLOUD_SCHEMES:
        raise InvalidArgument(
            "backups go to a folder, file://, s3://, gs:// or az://", scheme=scheme
        )
    from shardgit.backup.cloud import CloudBucket

    return CloudBucket(target)


def is_empty(bucket: Bucket) -> bool:
    """Say whether there is nothing at all, or what a first writer has left who died before it was there."""
    if isinstance(bucket, FolderBucket):
        return bucket.is_empty()
    return next(bucket.list(""), None) is None
