"""Bytes that were made or read once and are kept, bounded in all they cost, the longest unused dropped first."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

ENTRY_BYTES = 200  # about what keeping an entry costs beside its bytes, with a short key


class Looked(Protocol):
    """What can be told of a cache: looks that found something, those that did not, bytes that it holds now."""

    @property
    def hits(self) -> int:
        """Looks that found something."""

    @property
    def misses(self) -> int:
        """Looks that did not."""

    @property
    def used_bytes(self) -> int:
        """Bytes that it holds now."""


class Looks:
    """What can be told of a cache, counted by whoever has it."""

    __slots__ = ("hits", "misses", "used_bytes")

    def __init__(self) -> None:
        self.hits = self.misses = self.used_bytes = 0


class Kept:
    """At most ``most_bytes``, of entries of ``least_bytes`` to ``largest_bytes``. For any number of threads.

    Others are passed over: small ones are not worth it, large ones would drive out too much.
    """

    def __init__(
        self, most_bytes: int, *, least_bytes: int = 0, largest_bytes: int | None = None
    ) -> None:
        self._most_bytes = most_bytes
        self._sizes = range(least_bytes, (largest_bytes or most_bytes) + 1)
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[bytes, int]] = OrderedDict()
        self._lock = Lock()
        self.hits = self.misses = 0

    @property
    def used_bytes(self) -> int:
        """What is kept, with what it costs beside its bytes."""
        return self._bytes

    def get(self, key: Hashable) -> bytes | None:
        """Return what is kept under a key, None without."""
        with self._lock:
            return self._get(key)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return those that are kept."""
        with self._lock:
            found = ((key, self._get(key)) for key in keys)
            return {key: data for key, data in found if data is not None}

    def put(self, key: Hashable, data: bytes, key_bytes: int = 0) -> None:
        """Keep bytes; ``key_bytes`` is what the key holds of a request, which counts as well."""
        if len(data) not in self._sizes:
            return
        size = len(data) + key_bytes + ENTRY_BYTES
        with self._lock:
            self._bytes += size - self._kept.pop(key, (b"", 0))[1]
            self._kept[key] = (data, size)
            while self._bytes > self._most_bytes:
                _, (_, dropped) = self._kept.popitem(last=False)
                self._bytes -= dropped

    def _get(self, key: Hashable) -> bytes | None:
        found = self._kept.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return found[0]
