"""Bundles: large values of a clustered journal's rows, of many commits together in one immutable object.

A row whose value is large names its bytes: bundle, offset, length and BLAKE3. A bundle is durable before any row names
it, so one that no row names is an orphan, and a row whose bundle is missing is DataLoss.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from shardgit import clock
from shardgit.errors import Internal, StorageFull, Unavailable
from shardgit.lmdbenv import NO_SPACE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

BUNDLE_ID_BYTES = 16  # random, never used twice: a late delete hits nothing that was born again
_UNFINISHED = ".part"


class Bundles(Protocol):
    """Immutable byte strings by an id of 16 random bytes; usable from many threads at once.

    put returns once the bundle is durable, whole; from then on read sees it in every process of every node. An id is
    put once: a put that failed without an answer may be sent again with equal bytes, or left as an orphan.
    Errors: Unavailable for what may pass, StorageFull. Nothing here is checked against a hash: whoever reads has the
    BLAKE3 of what it asks for.
    """

    def put(self, bundle: bytes, data: bytes) -> None:
        """Write a bundle."""
        ...

    def read(self, bundle: bytes, offset: int, length: int) -> bytes | None:
        """Return bytes of a bundle, fewer where it ends before, None when it is missing."""
        ...

    def delete(self, bundles: Iterable[bytes]) -> None:
        """Delete bundles; those that are missing are passed over."""
        ...

    def scan(self) -> Iterator[tuple[bytes, int]]:
        """Return the bundles that are there and when each was written, in ms since 1970 by its keeper's clock.

        In no order; one that is put or deleted meanwhile may be among them or not.
        """
        ...


def check_bundle(bundle: bytes) -> None:
    """Raise Internal for what is no bundle's id."""
    if len(bundle) != BUNDLE_ID_BYTES:
        raise Internal("bundle id has another length", bytes=len(bundle))


class MemoryBundles:
    """Bundles in a dict, for tests."""

    def __init__(self) -> None:
        self._bundles: dict[bytes, tuple[bytes, int]] = {}
        self._lock = threading.Lock()

    def put(self, bundle: bytes, data: bytes) -> None:
        """See Bundles."""
        check_bundle(bundle)
        with self._lock:
            self._bundles[bundle] = (bytes(data), clock.now_ms())

    def read(self, bundle: bytes, offset: int, length: int) -> bytes | None:
        """See Bundles."""
        check_bundle(bundle)
        found = self._bundles.get(bundle)
        return None if found is None else found[0][offset : offset + length]

    def delete(self, bundles: Iterable[bytes]) -> None:
        """See Bundles."""
        with self._lock:
            for bundle in bundles:
                self._bundles.pop(bundle, None)

    def scan(self) -> Iterator[tuple[bytes, int]]:
        """See Bundles."""
        with self._lock:
            seen = [(bundle, at) for bundle, (_, at) in self._bundles.items()]
        return iter(seen)


class FileBundles:
    """Bundles as files of one folder: written beside, fsynced, renamed, the folder fsynced."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    @contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except OSError as cause:
            if cause.errno in NO_SPACE:
                raise StorageFull("no space left for bundles", path=str(self._folder)) from cause
            text = cause.strerror or str(cause)
            raise Unavailable("bundles failed", path=str(self._folder), cause=text) from cause

    def _path(self, bundle: bytes) -> Path:
        check_bundle(bundle)
        return self._folder / bundle.hex()

    def put(self, bundle: bytes, data: bytes) -> None:
        """See Bundles."""
        path = self._path(bundle)
        beside = path.with_name(f"{path.name}-{os.urandom(4).hex()}{_UNFINISHED}")
        with self._typed():
            try:
                with beside.open("xb") as opened:
                    opened.write(data)
                    opened.flush()
                    os.fsync(opened.fileno())
                beside.rename(path)
            except OSError:
                with suppress(OSError):
                    beside.unlink()
                raise
            self._sync_folder()

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, bundle: bytes, offset: int, length: int) -> bytes | None:
        """See Bundles."""
        path = self._path(bundle)
        with self._typed():
            try:
                with path.open("rb") as opened:
                    return os.pread(opened.fileno(), length, offset)
            except FileNotFoundError:
                return None

    def delete(self, bundles: Iterable[bytes]) -> None:
        """See Bundles."""
        with self._typed():
            for bundle in bundles:
                self._path(bundle).unlink(missing_ok=True)

    def scan(self) -> Iterator[tuple[bytes, int]]:
        """See Bundles."""
        with self._typed():
            names = [path for path in self._folder.iterdir() if path.suffix != _UNFINISHED]
        for path in names:
            with suppress(FileNotFoundError, ValueError):
                bundle = bytes.fromhex(path.name)
                if len(bundle) == BUNDLE_ID_BYTES:
                    yield bundle, path.stat().st_mtime_ns // 1_000_000
