"""The nodes of a cluster as a process sees them: the newest ring it was told, and who did not answer lately."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.blocks.block import partition_of

if TYPE_CHECKING:
    from shardgit.oid import BlockId
    from shardgit.ring.nodes import NodeRing

AVOIDED_FIRST_S, AVOIDED_MAX_S = 1.0, 10.0


class Nodes:
    """The ring that this process goes by, and this node's number in it. For any number of threads.

    A node that failed is not asked for a second, and for twice as long with each failure, 10 s at most: what it has
    is in the object store, too.
    """

    def __init__(self, me: int, ring: NodeRing) -> None:
        self.me = me
        self._ring = ring
        self._lock = Lock()
        self._avoided: dict[int, tuple[float, float]] = {}  # until when, and for how long

    @property
    def ring(self) -> NodeRing:
        """The newest ring."""
        return self._ring

    @property
    def epoch(self) -> int:
        """Its epoch."""
        return self._ring.epoch

    def take(self, ring: NodeRing) -> bool:
        """Go by that ring, if it is newer; says whether it is."""
        with self._lock:
            if ring.epoch <= self._ring.epoch:
                return False
            self._ring = ring
            return True

    def owners(self, block: BlockId) -> tuple[int, ...]:
        """Return the nodes that may have a block, those it is put to first, replicas in turns by id."""
        ring = self._ring.ring
        partition = partition_of(block)
        homes, every = ring.shards_of(partition), ring.reads_of(partition)
        first = block[2] % len(homes)
        return homes[first:] + homes[:first] + every[len(homes) :]

    def keepers(self, block: BlockId) -> tuple[int, ...]:
        """Return the nodes that a block is put to."""
        return self._ring.ring.writes_of(partition_of(block))

    def is_mine(self, block: BlockId) -> bool:
        """Say whether the ring gives this node a block."""
        return self.me in self.keepers(block)

    def is_avoided(self, node: int) -> bool:
        """Say whether a node failed so short ago that it is not asked."""
        found = self._avoided.get(node)
        return found is not None and clock.monotonic() < found[0]

    def failed(self, node: int) -> None:
        """Note that a node did not answer as it should."""
        with self._lock:
            until, span = self._avoided.get(node, (0.0, 0.0))
            now = clock.monotonic()
            if now >= until:
                span = min(max(2 * span, AVOIDED_FIRST_S), AVOIDED_MAX_S)
                self._avoided[node] = (now + span, span)

    def answered(self, node: int) -> None:
        """Note that a node answered."""
        if node in self._avoided:
            with self._lock:
                self._avoided.pop(node, None)
