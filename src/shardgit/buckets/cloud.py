"""Objects in S3, Google Cloud Storage or Azure, through obstore; Refused, at import, where that is not installed."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shardgit.buckets.bucket import Listed
from shardgit.errors import InvalidArgument, PermissionRefused, StorageFull, Unavailable
from shardgit.extras import lacking

try:
    from obstore import exceptions, store
except ImportError as cause:
    raise lacking("s3", "an object store") from cause

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FULL = ("507 Insufficient Storage", "<Code>XMinioStorageFull", "<Code>QuotaExceeded")
_BEHIND_THE_END = "416 "  # the status, as obstore words it
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request may take, and until when it is sent again.

    Only what may be sent twice is: reads, lists, deletes and puts without a condition. Pauses between tries double,
    with jitter, from 0.1 s to ``pause_max_s``. A call lasts ``retry_s`` + ``timeout_s`` at most.
    """

    timeout_s: float = 120
    retry_s: float = 300
    retries: int = 10
    pause_max_s: float = 15


class CloudBucket:
    """See Bucket. Credentials, region and endpoint come from the environment, as for the clouds' own tools.

    A store that is away, slow or in error is Unavailable once ``patience`` has ended.
    """

    def __init__(self, url: str, *, patience: Patience | None = None) -> None:
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query:
            raise InvalidArgument(
                "credentials belong into the environment, not into a URL", scheme=parts.scheme
            )
        self.where = url.rstrip("/")
        patience = patience or Patience()
        client: dict[str, Any] = {
            "timeout": timedelta(seconds=patience.timeout_s),
            "connect_timeout": timedelta(seconds=min(5.0, patience.timeout_s)),
        }
        if any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS):
            client["allow_http"] = True
        words: dict[str, Any] = {
            "client_options": client,
            "retry_config": {
                "retry_timeout": timedelta(seconds=patience.retry_s),
                "max_retries": patience.retries,
                "backoff": {"max_backoff": timedelta(seconds=patience.pause_max_s)},
            },
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
                "object store may not be used", **facts, cause=_said(cause)
            ) from cause
        except (exceptions.BaseError, OSError, ValueError) as cause:
            if any(word in str(cause) for word in _FULL):
                raise StorageFull(
                    "no space left in the object store", **facts, cause=_said(cause)
                ) from cause
            raise Unavailable("object store failed", **facts, cause=_said(cause)) from cause

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

    def get_range(self, name: str, start: int, end: int) -> bytes | None:
        """See Bucket."""
        with self._typed(name):
            try:
                return bytes(self._store.get_range(name, start=start, end=end))
            except FileNotFoundError:
                return None
            except exceptions.BaseError as cause:
                if _BEHIND_THE_END not in str(cause):
                    raise
                return b""

    def size(self, name: str) -> int | None:
        """See Bucket."""
        with self._typed(name):
            try:
                return int(self._store.head(name)["size"])
            except FileNotFoundError:
                return None

    def list(self, prefix: str) -> Iterator[Listed]:
        """See Bucket."""
        with self._typed(prefix):
            for some in self._store.list(prefix or None):
                for one in some:
                    written: datetime = one["last_modified"]
                    age = written - _EPOCH
                    yield Listed(one["path"], one["size"], age // _MILLISECOND)

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
