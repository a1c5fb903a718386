"""The blocks that a process has met already, bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardgit.oid import BlockId

# Ids of one generation of blocks seen whole; two of them take 32 MB at most, for 256 GiB of blocks.
SEEN_MAX = 1 << 17
SEEN_BYTES = 16


class Seen:
    """A set of blocks; of more than ``most`` the longest unseen are forgotten first, half of them at once."""

    def __init__(self, most: int = 2 * SEEN_MAX) -> None:
        self._most = most // 2
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def __contains__(self, block: BlockId) -> bool:
        key = block[:SEEN_BYTES]
        if key in self._young:
            return True
        if key not in self._old:
            return False
        self.add(block)
        return True

    def add(self, block: BlockId) -> None:
        """Take a block in."""
        if len(self._young) >= self._most:
            self._old, self._young = self._young, set()
        self._young.add(block[:SEEN_BYTES])

    def discard(self, block: BlockId) -> None:
        """Forget a block."""
        self._young.discard(block[:SEEN_BYTES])
        self._old.discard(block[:SEEN_BYTES])
