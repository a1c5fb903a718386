"""Objects in memory, for tests and simulations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.buckets.bucket import Listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class MemoryBucket:
    """Objects in a dict."""

    where = "memory://"

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}

    def put(self, name: str, data: bytes) -> None:
        """See Bucket."""
        self.objects[name] = (data, clock.now_ms())

    def create(self, name: str, data: bytes) -> bool:
        """See Bucket."""
        mine = (data, clock.now_ms())
        return self.objects.setdefault(name, mine) is mine

    def get(self, name: str) -> bytes | None:
        """See Bucket."""
        found = self.objects.get(name)
        return None if found is None else found[0]

    def get_range(self, name: str, start: int, end: int) -> bytes | None:
        """See Bucket."""
        found = self.objects.get(name)
        return None if found is None else found[0][start:end]

    def size(self, name: str) -> int | None:
        """See Bucket."""
        found = self.objects.get(name)
        return None if found is None else len(found[0])

    def list(self, prefix: str) -> Iterator[Listed]:
        """See Bucket."""
        for name, (data, written_ms) in list(self.objects.items()):
            if not prefix or name.startswith(prefix + "/"):
                yield Listed(name, len(data), written_ms)

    def delete(self, names: Sequence[str]) -> None:
        """See Bucket."""
        for name in names:
            self.objects.pop(name, None)
