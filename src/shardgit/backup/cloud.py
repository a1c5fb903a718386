"""Objects in S3, Google Cloud Storage or Azure, through obstore."""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from obstore import exceptions, store

from shardgit.errors import (
    BackupCorrupt,
    InvalidArgument,
    PermissionRefused,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TIMEOUT_S = 120
RETRY_S = 300
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")


class CloudBucket:
    """See Bucket. Credentials, region and endpoint come from the environment, as for the clouds' own tools."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query:
            raise InvalidArgument(
                "credentials belong into the environment, not into a URL", scheme=parts.scheme
            )
        self.where = url.rstrip("/")
        client: dict[str, Any] = {"timeout": timedelta(seconds=TIMEOUT_S)}
        if any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS):
            client["allow_http"] = True
        words: dict[str, Any] = {
            "client_options": client,
            "retry_config": {"retry_timeout": timedelta(seconds=RETRY_S)},
        }
        if parts.scheme in {"s3", "s3a"} and "AWS_CHECKSUM_ALGORITHM" not in os.environ:
            words["checksum_algorithm"] = "SHA256"  # the store refuses what the wire has changed
        try:
            self._store: Any = store.from_url(url, **words)
        except (exceptions.BaseError, ValueError) as cause:
            raise InvalidArgument(
                "no object store by that URL", target=self.where, cause=_said(cause)
            ) from cause

    @contextmanager
    def _typed(self, name: str) -> Iterator[None]:
        facts = {"target": self.where, "object": name}
        try:
            yield
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as cause:
            raise PermissionRefused(
                "backup's target may not be used", **facts, cause=_said(cause)
            ) from cause
        except (exceptions.BaseError, OSError, ValueError) as cause:
            raise Unavailable("backup's target failed", **facts, cause=_said(cause)) from cause

    def put(self, name: str, data: bytes) -> None:
        """See Bucket."""
        with self._typed(name):
            # commit point: before the store's answer the object may or may not be there, and is
            # written again; it is never there in part.
            self._store.put(name, data, use_multipart=False)

    def create(self, name: str, data: bytes) -> bool:
        """See Bucket."""
        with self._typed(name):
            try:
                # commit point: a conditional put; of two writers of one name one has its object.
                self._store.put(name, data, use_multipart=False, mode="create")
            except exceptions.AlreadyExistsError:
                return False
            return True

    def replace(self, name: str, old: bytes, data: bytes) -> bool:
        """Write an object in the place of one that holds ``old``; False when it holds something else."""
        with self._typed(name):
            try:
                found = self._store.get(name)
                if bytes(found.bytes()) != old:
                    return False
                told = {"e_tag": found.meta["e_tag"], "version": found.meta["version"]}
                version = {key: text for key, text in told.items() if text is not None}
                self._store.put(name, data, use_multipart=False, mode=version)
            except (exceptions.PreconditionError, FileNotFoundError):
                return False
            return True

    def get(self, name: str) -> bytes | None:
        """See Bucket."""
        with self._typed(name):
            try:
                return bytes(self._store.get(name).bytes())
            except FileNotFoundError:
                return None

    def get_range(self, name: str, start: int, end: int) -> bytes:
        """See Bucket."""
        with self._typed(name):
            try:
                return bytes(self._store.get_range(name, start=start, end=end))
            except FileNotFoundError as cause:
                raise BackupCorrupt(
                    "object of the backup is missing", target=self.where, object=name
                ) from cause

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See Bucket."""
        with self._typed(prefix):
            for some in self._store.list(prefix or None):
                for one in some:
                    yield one["path"], one["size"]

    def delete(self, names: Sequence[str]) -> None:
        """See Bucket."""
        for at in range(0, len(names), 500):
            with self._typed(names[at]):
                try:
                    self._store.delete(list(names[at : at + 500]))
                except FileNotFoundError:
                    for name in names[at : at + 500]:
                        try:
                            self._store.delete(name)
                        except FileNotFoundError:
                            continue


def _said(cause: Exception) -> str:
    """Return an error's own words without the trace of requests that stands behind them."""
    return str(cause).split("\n", 1)[0][:300]
