"""Where backups lie: a folder or an object store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.buckets.bucket import check_cloud, folder_of
from shardgit.buckets.folder import FolderBucket
from shardgit.errors import BackupMissing, Refused

if TYPE_CHECKING:
    from shardgit.buckets.bucket import Bucket


def open_bucket(target: str, *, make: bool = False) -> Bucket:
    """Return the bucket at a path or URL; ``make`` makes a folder whose parent exists.

    Errors: BackupMissing without such a folder, InvalidArgument for another kind of URL, Refused
    when the driver of object stores is not installed.
    """
    folder = folder_of(target)
    if folder is not None:
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
    check_cloud(target, "backups go to a folder, file://, s3://, gs:// or az://")
    from shardgit.buckets.cloud import CloudBucket

    return CloudBucket(target)


def is_empty(bucket: Bucket) -> bool:
    """Say whether there is nothing at all, or what a first writer has left who died before it was there."""
    if isinstance(bucket, FolderBucket):
        return bucket.is_empty()
    return next(bucket.list(""), None) is None
