"""Values that lie in bundles, kept on this node within a bound, checked by their BLAKE3 whenever they are read."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit.errors import JournalCorrupt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shardgit.journal.bundles import Bundles
    from shardgit.journal.etcd_rows import Reference

DISK_BYTES = 1 << 30
MEMORY_BYTES = 16 << 20
SWEEP_SHARE = 16  # of the bound: so much is written before the folder is looked through again
FETCHES = 8  # of one process at once
_PART = ".part"


class BundleCache:
    """Reads values of bundles: from memory, from files of this node, from the bundles' store.

    The processes of a node share the folder. What is damaged, missing or not writable there is a miss. Usable from many
    threads.
    """

    def __init__(
        self,
        bundles: Bundles,
        folder: Path,
        *,
        disk_bytes: int = DISK_BYTES,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._bundles = bundles
        self._folder = folder
        self._disk_bytes = disk_bytes
        self._memory_bytes = memory_bytes
        self._memory: OrderedDict[bytes, bytes] = OrderedDict()
        self._held_bytes = 0
        self._written_bytes = 0
        self._lock = threading.Lock()
        self._fetchers: ThreadPoolExecutor | None = None
        self.hits = self.misses = 0
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)

    def keep(self, bundle: bytes, data: bytes) -> None:
        """Keep a whole bundle that this process has put."""
        self._write(bundle.hex(), data)

    def read(self, reference: Reference, key: bytes) -> bytes:
        """Return the value that a row's reference names.

        JournalCorrupt when its bundle is missing or damaged where bundles are kept; errors as of Bundles.
        """
        found = self._near(reference)
        return self._far(reference, key) if found is None else found

    def read_many(self, wanted: Sequence[tuple[Reference, bytes]]) -> list[bytes]:
        """Return the values of several rows; what is not on this node is fetched side by side. Errors as of read."""
        found = [self._near(reference) for reference, _ in wanted]
        missing = [number for number, value in enumerate(found) if value is None]
        if len(missing) < 2:
            return [
                self._far(*one) if value is None else value
                for one, value in zip(wanted, found, strict=True)
            ]
        with self._lock:
            if self._fetchers is None:
                self._fetchers = ThreadPoolExecutor(FETCHES, thread_name_prefix="journal-bundles")
            fetchers = self._fetchers
        fetched = dict(
            zip(missing, fetchers.map(lambda n: self._far(*wanted[n]), missing), strict=True)
        )
        return [fetched[number] if value is None else value for number, value in enumerate(found)]

    def _near(self, reference: Reference) -> bytes | None:
        """Return a value that this node has."""
        with self._lock:
            found = self._memory.get(reference.digest)
            if found is not None:
                self._memory.move_to_end(reference.digest)
                self.hits += 1
                return found
        found = self._from_disk(reference)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
            self._remember(reference.digest, found)
        return found

    @property
    def used_bytes(self) -> int:
        """What is held in memory."""
        return self._held_bytes

    def check(self, reference: Reference, key: bytes) -> bytes:
        """Return a value as it lies where bundles are kept, whatever this node has of it. Errors as of read."""
        found = self._bundles.read(reference.bundle, reference.offset, reference.length)
        facts = {"key": key.hex(), "bundle": reference.bundle.hex()}
        if found is None:
            raise JournalCorrupt("bundle of a row is missing", **facts)
        if not _is(found, reference):
            raise JournalCorrupt("bundle of a row is damaged", **facts)
        return found

    def _far(self, reference: Reference, key: bytes) -> bytes:
        found = self.check(reference, key)
        self._write(f"{reference.bundle.hex()}-{reference.offset}", found)
        self._remember(reference.digest, found)
        return found

    def close(self) -> None:
        """End the threads that fetch."""
        if self._fetchers is not None:
            self._fetchers.shutdown()

    def _from_disk(self, reference: Reference) -> bytes | None:
        whole = reference.bundle.hex()
        for name, offset in ((f"{whole}-{reference.offset}", 0), (whole, reference.offset)):
            path = self._folder / name
            try:
                with path.open("rb") as opened:
                    found = os.pread(opened.fileno(), reference.length, offset)
            except OSError:
                continue
            if _is(found, reference):
                return found
            with suppress(OSError):
                path.unlink()
        return None

    def _remember(self, digest: bytes, value: bytes) -> None:
        if len(value) > self._memory_bytes // 4:
            return
        with self._lock:
            if digest not in self._memory:
                self._memory[digest] = value
                self._held_bytes += len(value)
            while self._held_bytes > self._memory_bytes:
                self._held_bytes -= len(self._memory.popitem(last=False)[1])

    def _write(self, name: str, data: bytes) -> None:
        """Write a file beside and rename it; a reader never sees a part."""
        beside = self._folder / f"{name}-{os.urandom(4).hex()}{_PART}"
        try:
            beside.write_bytes(data)
            beside.rename(self._folder / name)
        except OSError:
            with suppress(OSError):
                beside.unlink()
            return
        with self._lock:
            self._written_bytes += len(data)
            if self._written_bytes < self._disk_bytes // SWEEP_SHARE:
                return
            self._written_bytes = 0
        self.sweep()

    def sweep(self) -> None:
        """Remove the oldest files while they are more than the bound."""
        found: list[tuple[int, int, Path]] = []
        with suppress(OSError):
            for path in self._folder.iterdir():
                with suppress(OSError):
                    stat = path.stat()
                    found.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._disk_bytes:
                return
            with suppress(OSError):
                path.unlink()
            total -= size


def _is(found: bytes, reference: Reference) -> bool:
    return len(found) == reference.length and blake3(found).digest() == reference.digest
