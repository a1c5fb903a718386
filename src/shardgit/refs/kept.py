"""Bytes that were made once and are kept by what they follow from, the least used dropped first."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

KEY_BYTES = 1_024  # about what an entry costs beside its own bytes and those of its key


class Kept:
    """At most ``most_bytes``, keys and what they cost included; what is shorter than ``least_bytes`` is not worth it.

    For any number of threads.
    """

    def __init__(self, most_bytes: int, *, least_bytes: int = 0) -> None:
        self._most_bytes = most_bytes
        self._least_bytes = least_bytes
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[bytes, int]] = OrderedDict()
        self._lock = Lock()

    @property
    def used_bytes(self) -> int:
        """What is kept, with what it costs beside its bytes."""
        return self._bytes

    def get(self, key: Hashable) -> bytes | None:
        """Return what is kept under a key, None without."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, data: bytes, key_bytes: int = 0) -> None:
        """Keep bytes; ``key_bytes`` is what the key holds of a request, which counts as well."""
        if len(data) < self._least_bytes:
            return
        size = len(data) + key_bytes + KEY_BYTES
        with self._lock:
            self._bytes += size - self._kept.pop(key, (b"", 0))[1]
            self._kept[key] = (data, size)
            while self._bytes > self._most_bytes:
                _, (_, dropped) = self._kept.popitem(last=False)
                self._bytes -= dropped
